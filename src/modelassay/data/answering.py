"""Writes harmless responses to prompts: those of a language model behind an endpoint.

For prompts that a classifier or a guard stops wrongly, and that have no good response to learn
from. Every answer is kept in a journal at once, by its prompt, so the same command goes on where a
stopped one was. Refusals are left out, and nothing says yet that the rest is safe: rows get no
label here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelassay.data.exchanges import numbered_rows
from modelassay.data.labelled import exchange_of
from modelassay.data.labels import LABEL_FIELDS, NAME_FIELD
from modelassay.data.teaching import DECLINED, Budget
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import write_rows_atomically
from modelassay.files.journal import Journal, check_out, open_journal
from modelassay.files.provenance import text_hash
from modelassay.hub import check_place
from modelassay.hub.chat_completions import (
    ChatModel,
    Completion,
    ContextFullError,
    Usage,
    whole_characters,
)
from modelassay.progress import OnProgress

ANSWERING_SCHEMA = "modelassay.data-answer/1"
INSTRUCTION = (
    "Answer the user's request briefly and helpfully, in a way that harms nobody. Where a part of"
    " it could be meant to do harm, answer what is harmless in it. Give the answer alone, without"
    " any remark on these instructions."
)
UNREAD = "it is longer than the model reads"
NO_TEXT = "the answer holds no text"
REFUSED = "the answer is a refusal"
NONSENSE = 10
"""Answers in a row without any text after which nothing more is paid for."""


@dataclass(frozen=True)
class AnsweredData:
    """What a run wrote."""

    schema: str
    file: str
    rows: int
    """Of the data."""
    asked: int
    """Prompts of the data that were asked, in this run and before."""
    answered: int
    """Rows of the file that have such an answer."""
    had_response: int
    """Rows that had a response before; they are in the file as they were."""
    left: int
    """Rows that were not asked about yet."""
    left_out: dict[str, int]
    """Why rows got no answer, and how many."""
    model: str
    host: str
    tokens_in: int | None
    tokens_out: int | None
    """Tokens in all runs; None where the endpoint does not tell."""
    cost: float | None
    stopped_by: str | None
    """The bound that was reached; None if all prompts were asked."""


def answer_data(
    where: str | Path,
    out: Path,
    chat: ChatModel,
    is_refusal: Callable[[str], bool],
    budget: Budget | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    token: str | bool | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> AnsweredData:
    """Asks a language model the prompts that have no response, and writes the exchanges.

    Args:
        where: Rows with prompts: a file or Hub data set.
        out: JSON lines; what was answered is kept beside it, in `OUT.progress`.
        chat: The model.
        is_refusal: Tells refusals, which are left out.
        budget: When to stop.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set; None for `train`.
        token: Hub token, None for the stored one.
        force: Begin again over what another model answered.
        on_progress: Told how many prompts are done.

    Raises:
        InputError: no such data, a malformed row, a file that is there already, or an endpoint that
            does not take such questions or gives no text.
        UnavailableError: the endpoint or the disk fails; what was answered is kept.
    """
    budget = budget or Budget()
    progress = out.with_name(f"{out.name}.progress")
    check_out(where, out, replaces=force or progress.exists())
    check_place(where, config, split)
    rows = [
        (dict(values), *exchange_of(values, f"Row {number} of {Path(where).name}", "prompt"))
        for number, values in numbered_rows(
            where, config=config, split=split or "train", token=token
        )
    ]
    prompts = list(dict.fromkeys(prompt for _, prompt, response in rows if not response))
    if not prompts:
        raise InputError(f"{where} has no prompt without a response.")
    identity = {"model": chat.model, "instruction": text_hash(INSTRUCTION)}
    with open_journal(
        progress,
        ANSWERING_SCHEMA,
        identity,
        called="a model's answers",
        option="--out",
        force=force,
    ) as journal:
        kept = _Kept(journal, urlsplit(chat.endpoint.url).hostname or "")
        try:
            stopped_by = kept.ask_all(prompts, chat, budget, on_progress)
        except UnavailableError as error:
            n = sum(kept.of(prompt) is not None for prompt in prompts)
            raise UnavailableError(
                f"{error} {n} of {len(prompts)} prompts are answered and kept."
            ) from error
    left_out: dict[str, int] = {}
    n_answered = 0

    def written() -> Iterator[dict[str, Any]]:
        nonlocal n_answered
        for values, prompt, response in rows:
            if response:
                yield values
                continue
            if (found := kept.of(prompt)) is None:
                continue
            text, why, host = found
            if why is None and is_refusal(text):
                why = REFUSED
            if why is not None:
                left_out[why] = left_out.get(why, 0) + 1
                continue
            n_answered += 1
            # A label was of the prompt, and would be read as one of the response.
            more = {k: v for k, v in values.items() if k not in (*LABEL_FIELDS, NAME_FIELD)}
            by = {"model": chat.model, "host": host}
            yield more | {"prompt": prompt, "response": text, "answered_by": by}

    write_rows_atomically(out, written())
    left = [p for _, p, response in rows if not response and kept.of(p) is None]
    return AnsweredData(
        schema=ANSWERING_SCHEMA,
        file=str(out),
        rows=len(rows),
        asked=sum(kept.of(prompt) is not None for prompt in prompts),
        answered=n_answered,
        had_response=sum(bool(response) for _, _, response in rows),
        left=len(left),
        left_out=left_out,
        model=chat.model,
        host=kept.host,
        tokens_in=kept.usage.prompt if kept.told else None,
        tokens_out=kept.usage.response if kept.told else None,
        cost=budget.cost_of(kept.usage) if kept.told else None,
        stopped_by=stopped_by,
    )


class _Kept:
    """Answers of this run and those before, by their prompts."""

    def __init__(self, journal: Journal, host: str) -> None:
        """Takes up what was answered before."""
        self.journal, self.host = journal, host
        self.answers: dict[str, tuple[str, str | None, str]] = {}
        self.usage, self.told = Usage(0, 0), True
        for line in journal.entries():
            self._count(**json.loads(line))

    def of(self, prompt: str) -> tuple[str, str | None, str] | None:
        """Text, why it is none, and the host; None if it was not asked for yet."""
        return self.answers.get(text_hash(prompt))

    def ask_all(
        self, prompts: list[str], chat: ChatModel, budget: Budget, on_progress: OnProgress | None
    ) -> str | None:
        """Asks each prompt that was not asked; gives the bound that ended it, if one did."""
        empty = 0
        for done, prompt in enumerate(prompts):
            if on_progress:
                on_progress(done, len(prompts))
            if self.of(prompt) is not None:
                continue
            bound = budget.reached(len(self.answers), self.usage, told=self.told)
            if bound is not None:
                return bound
            text, why, usage = _ask(chat, prompt)
            entry = {"about": text_hash(prompt), "host": self.host, "text": text, "why": why}
            used = None if usage is None else [usage.prompt, usage.response]
            self.journal.add({**entry, "usage": used})
            self._count(**entry, usage=used)
            empty = empty + 1 if why == NO_TEXT else 0
            if empty >= NONSENSE:
                raise InputError(
                    f"The last {NONSENSE} answers of {chat.model} hold no text; check --model. What"
                    " was answered is kept."
                )
        if on_progress:
            on_progress(len(prompts), len(prompts))
        return None

    def _count(
        self, about: str, host: str, text: str, why: str | None, usage: list[int] | None
    ) -> None:
        self.answers[about] = (text, why, host)
        if usage is None:
            self.told = False
        else:
            self.usage = Usage(self.usage.prompt + usage[0], self.usage.response + usage[1])


def _ask(chat: ChatModel, prompt: str) -> tuple[str, str | None, Usage | None]:
    """An answer, or why there is none; and the tokens that it took, None where that is not told."""
    messages = [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": whole_characters(prompt)},
    ]
    try:
        found: Completion = chat.ask(messages)
    except ContextFullError:
        return "", UNREAD, Usage(0, 0)
    if found.filtered:
        return "", DECLINED, found.usage or Usage(0, 0)
    text = (found.text or "").strip()
    text = text.rpartition("</think>")[2].strip() if text.startswith("<think>") else text
    return text, None if text else NO_TEXT, found.usage
