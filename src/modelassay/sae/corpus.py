"""The text that a dictionary is trained and scored on: files or Hub data sets, streamed.

A row is a text, or an exchange, which is read as the model would see it in a conversation. Every
fiftieth row is kept out of the training and scores the dictionary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from modelassay.errors import InputError
from modelassay.hub import stream_dataset
from modelassay.labelled import PROMPT_FIELDS, RESPONSE_FIELDS
from modelassay.models import LoadedModel
from modelassay.prompts import render_chat

TEXT_FIELDS = ("text", "content", "chosen")
HELD_OUT_EVERY = 50
MAX_HELD_OUT = 200
MAX_CHARACTERS = 100_000


class Corpus:
    """Texts for one model; each call opens the stream anew, in the same order."""

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

    def train(self) -> Iterator[str]:
        """The texts to train on."""
        return (text for i, text in enumerate(self._texts()) if i % HELD_OUT_EVERY)

    def held_out(self) -> list[str]:
        """The texts to score on.

        Raises:
            InputError: there is not a single one.
        """
        kept = (text for i, text in enumerate(self._texts()) if not i % HELD_OUT_EVERY)
        texts = list(islice(kept, MAX_HELD_OUT))
        if not texts:
            raise InputError(f"{', '.join(self.sources)}: there is no text in it.")
        return texts

    def _texts(self) -> Iterator[str]:
        # Sources by turns, so that no window holds one of them only.
        streams = [self._rows(source) for source in self.sources]
        while streams:
            for stream in list(streams):
                text = next(stream, None)
                if text is None:
                    streams.remove(stream)
                else:
                    yield text

    def _rows(self, source: str) -> Iterator[str]:
        rows: Iterable[Mapping[str, Any]] = stream_dataset(source, token=self.token)
        for number, row in enumerate(rows, 1):
            text = self._text(row, f"Row {number} of {source}")
            if text.strip():
                yield text[:MAX_CHARACTERS]

    def _text(self, row: Mapping[str, Any], where: str) -> str:
        if self.field is not None:
            if not isinstance(text := row.get(self.field), str):
                raise InputError(f"{where} has no text in {self.field!r}; it has {_names(row)}.")
            return text
        prompt = next((row[name] for name in PROMPT_FIELDS if row.get(name)), None)
        response = next((row[name] for name in RESPONSE_FIELDS if row.get(name)), None)
        if isinstance(prompt, str) and isinstance(response, str) and self.model.has_chat_template:
            return render_chat(self.model, prompt) + response
        found = [part for part in (prompt, response) if isinstance(part, str)]
        found = found or [row[name] for name in TEXT_FIELDS if isinstance(row.get(name), str)][:1]
        if not found:
            raise InputError(f"{where} has no text; it has {_names(row)}. Name one with --field.")
        return "\n".join(found)


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(str(name)[:40] for name in list(row)[:12]) or "no fields"
