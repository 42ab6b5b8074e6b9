"""The text that an SAE is trained and scored on: files or Hub data sets, streamed.

A row is a text, or an exchange, which is read as the model would see it in a conversation. Every
fiftieth row scores the SAE, and what it asks is kept out of the training in all rows:
responses to one prompt are never on both sides.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from modelassay.data.layouts import ANSWERED, conversation_of
from modelassay.data.messages import Turn
from modelassay.data.wording import plain_words
from modelassay.errors import InputError
from modelassay.hub import check_table, stream_dataset
from modelassay.models import LoadedModel
from modelassay.reading.prompts import render_messages

log = logging.getLogger(__name__)

TEXT_FIELDS = ("text", "content", "chosen")
HELD_OUT_EVERY = 50
MAX_HELD_OUT = 200
MAX_CHARACTERS = 100_000


class Corpus:
    """Texts for one model; each call opens the stream again, in the same order."""

    def __init__(
        self,
        model: LoadedModel,
        sources: Sequence[str],
        *,
        field: str | None = None,
        token: str | None = None,
    ) -> None:
        """Takes the sources in turn.

        Args:
            model: Whose chat template exchanges are written in.
            sources: Files or Hub data sets.
            field: Field that holds the text, if none of the usual names.
            token: Hub token.
        """
        self.model, self.sources, self.field, self.token = model, tuple(sources), field, token
        self._held_out: list[tuple[str, str]] | None = None

    def train(self) -> Iterator[str]:
        """The texts to train on."""
        kept_out = {key for key, _ in self._scored()}
        return (text for key, text in self._texts() if key not in kept_out)

    def held_out(self) -> list[str]:
        """The texts to score on.

        Raises:
            InputError: there is not a single one.
        """
        return [text for _, text in self._scored()]

    def _scored(self) -> list[tuple[str, str]]:
        if self._held_out is None:
            last = HELD_OUT_EVERY * MAX_HELD_OUT
            self._held_out = list(islice(self._texts(), 0, last, HELD_OUT_EVERY))
        if not self._held_out:
            raise InputError(f"{', '.join(self.sources)}: there is no text in it.")
        return self._held_out

    def _texts(self) -> Iterator[tuple[str, str]]:
        """Each text after what it is held out by: the prompt of an exchange, else itself."""
        # Sources by turns, so that no window holds one of them only.
        streams = [self._rows(source) for source in self.sources]
        while streams:
            for stream in list(streams):
                text = next(stream, None)
                if text is None:
                    streams.remove(stream)
                else:
                    yield text

    def _rows(self, source: str) -> Iterator[tuple[str, str]]:
        rows: Iterable[Mapping[str, Any]] = stream_dataset(source, token=self.token)
        for number, row in enumerate(rows, 1):
            key, text = self._text(row, f"Row {number} of {source}")
            if text.strip():
                yield plain_words(key or text), text[:MAX_CHARACTERS]

    def _text(self, row: Mapping[str, Any], where: str) -> tuple[str, str]:
        """What a row asks, if it is an exchange, and its text."""
        if self.field is not None:
            if not isinstance(text := row.get(self.field), str):
                raise InputError(f"{where} has no text in {self.field!r}; it has {_names(row)}.")
            return "", text
        given = {name: value for name, value in row.items() if value not in (None, "")}
        said = conversation_of(given, where, _if_text, prompt_alone=True)
        if said is not None:
            return said.said_by("user"), self._rendered(said.turns)
        fields = (*ANSWERED, *TEXT_FIELDS)
        found = [row[name] for name in fields if isinstance(row.get(name), str)][:1]
        if not found:
            raise InputError(f"{where} has no text; it has {_names(row)}. Name one with --field.")
        return "", found[0]

    def _rendered(self, turns: Sequence[Turn]) -> str:
        """A conversation as the model sees it, or as plain text if its template takes no such."""
        *before, (last, response) = turns
        if self.model.has_chat_template and before and last == "assistant":
            try:
                messages = [{"role": role, "content": text} for role, text in before]
                return render_messages(self.model, messages) + response
            except InputError:
                log.debug("The chat template takes no turns of %s.", [role for role, _ in turns])
        return "\n".join(text for _, text in turns)


def check_sources(sources: Sequence[str], *, field: str | None, token: str | None) -> None:
    """Refuses, without a model, sources that cannot be read: the first row of each is looked at.

    Raises:
        InputError: there is no such source, it is empty, or its rows hold no text.
        UnavailableError: the Hub cannot be reached.
    """
    for source in sources:
        check_table(source)
        row = next(iter(stream_dataset(source, token=token)), None)
        if row is None:
            raise InputError(f"{source}: there is no text in it.")
        where = f"Row 1 of {source}"
        if field is not None:
            if not isinstance(row.get(field), str):
                raise InputError(f"{where} has no text in {field!r}; it has {_names(row)}.")
            continue
        given = {name: value for name, value in row.items() if value not in (None, "")}
        said = conversation_of(given, where, _if_text, prompt_alone=True)
        fields = (*ANSWERED, *TEXT_FIELDS)
        if said is None and not any(isinstance(row.get(name), str) for name in fields):
            raise InputError(f"{where} has no text; it has {_names(row)}. Name one with --field.")


def _if_text(value: Any, _field: str, _name: str) -> str:
    return value if isinstance(value, str) else ""


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(row)[:12]) or "no fields"
