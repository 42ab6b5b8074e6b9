"""Prompts of a data file as a suite: what a user wants base and candidate to be asked besides.

Labels are no duty here. Rows that are labelled unsafe count as harmful prompts; of all others,
labelled or not, nothing is claimed, and they are neutral.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from modelassay.data.exchanges import LABEL_FIELDS, check_size, to_labelled
from modelassay.diff.suites import MAX_ROWS, MAX_TEXT, Suite, SuitePrompt
from modelassay.errors import InputError
from modelassay.hub import read_dataset, read_lines

SYSTEM_ROLES = ("system", "developer")


def read_prompts(where: str | Path, *, token: str | bool | None = None) -> Suite:
    """Reads prompts from a JSON, JSONL, CSV or Parquet file or a Hub data set.

    Args:
        where: Path, or `owner/name`. A row has a `prompt`, `instruction` or `user`, or `messages`,
            of which the first user turn is asked; `system` and `label` are optional.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such data, too many rows, or a malformed one, which is named by its number.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    rows: Iterable[tuple[int, dict[str, Any]]]
    if path.is_file() and path.name.endswith((".jsonl", ".jsonl.gz")):
        check_size(path)
        rows = read_lines(path)
    else:
        rows = enumerate(read_dataset(where, token=token), 1)
    harmful: dict[tuple[str, str | None], bool] = {}
    for number, row in rows:
        text, system, unsafe = _prompt(row, f"Row {number} of {path.name}")
        # A prompt that was ever answered unsafely is harmful in all its rows.
        harmful[text, system] = harmful.get((text, system), False) or unsafe
        if len(harmful) > MAX_ROWS:
            raise InputError(f"{where} has more than {MAX_ROWS} prompts; give a part of it.")
    if not harmful:
        raise InputError(f"{where} has no rows.")
    prompts = tuple(
        SuitePrompt(text=text, system=system, group="harmful" if unsafe else "neutral")
        for (text, system), unsafe in harmful.items()
    )
    return Suite(path.name, prompts)


def _prompt(row: Mapping[str, Any], name: str) -> tuple[str, str | None, bool]:
    """Text, system prompt and whether it is labelled unsafe."""
    row = _first_turn(row, name)
    labelled = any(row.get(field) is not None for field in LABEL_FIELDS)
    found = to_labelled(row if labelled else {**row, "label": 0}, name, "prompt", name)
    system = row.get("system")
    if system is not None and not isinstance(system, str):
        raise InputError(f"{name}: `system` must be text.")
    for part in (found.prompt, system or ""):
        if len(part) > MAX_TEXT:
            raise InputError(f"{name} is longer than the {MAX_TEXT} characters of a prompt.")
    return found.prompt, (system or "").strip() or None, found.unsafe


def _first_turn(row: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The row with the first user turn of its `messages` as the prompt, if it has any."""
    if row.get("messages") is None:
        return dict(row)
    messages = row["messages"]
    if not isinstance(messages, list) or not all(isinstance(m, Mapping) for m in messages):
        raise InputError(f"{name}: `messages` must be a list of turns.")
    asked = [m.get("content") for m in messages if m.get("role") == "user"]
    systems = [m.get("content") for m in messages if m.get("role") in SYSTEM_ROLES]
    if not asked:
        raise InputError(f"{name}: `messages` has no turn of the user.")
    label = {field: row.get(field) for field in LABEL_FIELDS}
    return {"prompt": asked[0], "system": systems[0] if systems else None, **label}
