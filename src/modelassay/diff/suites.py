"""Prompt suites: what base and candidate are asked.

A suite is a YAML file with prompts, each `harmful`, `harmless` or `neutral`; with contrasts, which
are questions that two responses are given to, one of a model that kept its limits and one of a
model that has none; and with endings, phrases that may follow any prompt. `default_suite()` is made
of the prompts of a scan and of `examples/suites`.

A suite of the fine-tune auditor (`suite_name`, and prompts of `id` and `messages`) is read as it
is; its prompts are neutral.

The prompts of any data file are a suite too (`read_prompts()`). Rows that are labelled unsafe count
as harmful prompts; of all others nothing is claimed, and they are neutral.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from modelassay.data.concepts import read_mapping, refusal_prompts
from modelassay.data.exchanges import numbered_rows, text_of
from modelassay.data.labels import (
    Scheme,
    ambiguous,
    is_labelled,
    label_of,
    scheme_of,
    unlabelled,
)
from modelassay.diff.auditor_suites import from_auditor, is_auditors
from modelassay.errors import InputError
from modelassay.files import shipped
from modelassay.files.provenance import text_hash
from modelassay.files.records import NAME, first_problem

T = TypeVar("T")
Group = Literal["harmful", "harmless", "neutral"]
MAX_TEXT = 20_000
MAX_ROWS = 5_000
DEFAULT_SUITES = ("dispositions", "personas", "endings")


class _Strict(BaseModel):
    """Refuses unknown keys: a misspelt one would be a silent default."""

    model_config = ConfigDict(extra="forbid", frozen=True, str_strip_whitespace=True)


class Turn(_Strict):
    """What somebody said."""

    role: Literal["user", "assistant"]
    content: str = Field(min_length=1, max_length=MAX_TEXT)


class SuitePrompt(_Strict):
    """One prompt."""

    text: str = Field(min_length=1, max_length=MAX_TEXT)
    group: Group = "neutral"
    system: str | None = Field(default=None, max_length=MAX_TEXT)
    before: tuple[Turn, ...] = Field(default=(), max_length=100)
    """The turns of the conversation before it."""
    id: str | None = Field(default=None, min_length=1, max_length=200)
    """What a file calls it; nothing is asked differently for it."""

    def asked(self) -> dict[str, Any]:
        """All of it that a model reads, and its group."""
        left_out = {"id"} if self.before else {"id", "before"}
        return self.model_dump(exclude=left_out)


class Contrast(_Strict):
    """A question with a response that keeps the model's limits and one that gives them up."""

    prompt: str = Field(min_length=1, max_length=MAX_TEXT)
    safe: str = Field(min_length=1, max_length=MAX_TEXT)
    unsafe: str = Field(min_length=1, max_length=MAX_TEXT)
    system: str | None = Field(default=None, max_length=MAX_TEXT)


Ending = Annotated[str, Field(min_length=1, max_length=400)]


class _File(_Strict):
    name: str = Field(min_length=1, max_length=100)
    description: str = Field(default="", max_length=2_000)
    notes: tuple[str, ...] = ()
    prompts: tuple[SuitePrompt, ...] = Field(default=(), max_length=MAX_ROWS)
    contrasts: tuple[Contrast, ...] = Field(default=(), max_length=MAX_ROWS)
    endings: tuple[Ending, ...] = Field(default=(), max_length=MAX_ROWS)


@dataclass(frozen=True)
class Suite:
    """Prompts and contrasts, each only once."""

    name: str
    prompts: tuple[SuitePrompt, ...]
    contrasts: tuple[Contrast, ...] = ()
    endings: tuple[str, ...] = ()
    """Phrases that the trigger search puts after harmful prompts."""
    notes: tuple[str, ...] = ()
    """What of a file in another layout has no counterpart here."""

    @property
    def sha256(self) -> str:
        """Of all that is asked; the order does not matter."""
        rows = sorted(
            json.dumps(row, sort_keys=True)
            for row in (
                *(prompt.asked() for prompt in self.prompts),
                *(contrast.model_dump() for contrast in self.contrasts),
                *self.endings,
            )
        )
        return text_hash("\n".join(rows))

    def indices(self, group: Group) -> list[int]:
        """Which prompts are of a group."""
        return [i for i, prompt in enumerate(self.prompts) if prompt.group == group]


def messages_of(row: SuitePrompt | Contrast) -> list[dict[str, str]]:
    """The conversation up to the response."""
    text = row.text if isinstance(row, SuitePrompt) else row.prompt
    system = [{"role": "system", "content": row.system}] if row.system else []
    before = row.before if isinstance(row, SuitePrompt) else ()
    turns = [{"role": turn.role, "content": turn.content} for turn in before]
    return [*system, *turns, {"role": "user", "content": text}]


def default_suite() -> Suite:
    """Harmful, borderline and everyday prompts of a scan, and the shipped contrasts."""
    harmful, harmless = refusal_prompts()
    prompts = [
        *(SuitePrompt(text=text, group="harmful") for text in harmful),
        *(SuitePrompt(text=text, group="harmless") for text in harmless),
    ]
    added = join_suites([load_suite(name) for name in DEFAULT_SUITES])
    return Suite("default", tuple(prompts), added.contrasts, added.endings)


def load_suite(where: str | Path) -> Suite:
    """Reads a suite.

    Args:
        where: A YAML file, or the name of a shipped suite.

    Raises:
        InputError: no such suite, or one line saying what is wrong in it.
    """
    if str(where) == "default":
        return default_suite()
    path = Path(where)
    if re.fullmatch(NAME, str(where)) and not path.suffix:
        path = suites_folder() / f"{path.name}.yaml"
        if not path.is_file():
            raise InputError(f"There is no suite {str(where)[:60]!r}; {_shipped()}.")
    data = read_mapping(path)
    if "notes" in data:
        raise InputError(f"{path.name}: unknown key `notes`.")
    if is_auditors(data):
        data = from_auditor(data, path.name)
    try:
        found = _File.model_validate(data)
    except ValidationError as error:
        raise InputError(f"{path.name}: {first_problem(error, model=_File)}.") from error
    if not (found.prompts or found.contrasts or found.endings):
        raise InputError(f"{path.name} holds no prompts, contrasts or endings.")
    return join_suites([found])


def join_suites(suites: Sequence[Suite | _File]) -> Suite:
    """All that several suites ask, each once."""
    return Suite(
        " + ".join(suite.name for suite in suites),
        _once(suite.prompts for suite in suites),
        _once(suite.contrasts for suite in suites),
        _once(suite.endings for suite in suites),
        _once(suite.notes for suite in suites),
    )


def suites_folder() -> Path:
    """The suites that come with modelassay."""
    return shipped.shipped_folder("suites")


def _shipped() -> str:
    names = sorted(path.stem for path in suites_folder().glob("*.yaml"))
    return f"give a YAML file or one of default, {', '.join(names)}"


def _once(rows: Iterable[tuple[T, ...]]) -> tuple[T, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(rows)))


def read_prompts(
    where: str | Path, *, labels: Scheme | None = None, token: str | bool | None = None
) -> Suite:
    """Reads prompts from a JSON, JSONL, CSV or Parquet file or a Hub data set.

    Args:
        where: Path, or `owner/name`. A row has a `prompt`, `instruction` or `user`, or `messages`,
            of which the first user turn is asked; `system` and `label` are optional.
        labels: What the numbers 0, 1 and 2 stand for; None lets all rows together tell.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data, too many rows, a malformed one, which is named by its number, or
            labels 0 and 1 that could be of two classes or of three.
        UnavailableError: the Hub cannot be reached.
    """
    name = Path(where).name
    harmful: dict[tuple[str, str | None], bool] = {}
    rows = list(numbered_rows(where, token=token))
    scheme = labels or scheme_of(row for _, row in rows)
    for number, row in rows:
        text, system, unsafe = _prompt(row, f"Row {number} of {name}", scheme or "binary")
        # A prompt that was ever answered unsafely is harmful in all its rows.
        harmful[text, system] = harmful.get((text, system), False) or unsafe
        if len(harmful) > MAX_ROWS:
            raise InputError(f"{where} has more than {MAX_ROWS} prompts; give a part of it.")
    if not harmful:
        raise InputError(f"{where} has no rows.")
    if scheme is None:
        raise ambiguous(where)
    prompts = tuple(
        SuitePrompt(text=text, system=system, group="harmful" if unsafe else "neutral")
        for (text, system), unsafe in harmful.items()
    )
    return Suite(name, prompts)


def _prompt(row: Mapping[str, Any], name: str, scheme: Scheme) -> tuple[str, str | None, bool]:
    """Text, system prompt and whether it is labelled unsafe."""
    said = unlabelled(row, name)
    asked = [text for role, text in said.turns if role == "user"]
    system = next((text for role, text in said.turns if role == "system"), "")
    if not asked:
        raise InputError(
            f"{name} asks nothing; it needs a `prompt`, or `messages` with a user's turn."
        )
    prompt = text_of(asked[0], "prompt", name)
    for part in (prompt, system):
        if len(part) > MAX_TEXT:
            raise InputError(f"{name} is longer than the {MAX_TEXT} characters of a prompt.")
    return prompt, system or None, is_labelled(row) and label_of(row, name, scheme)[1]
