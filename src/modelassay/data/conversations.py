"""Exchanges: a prompt and its answer, read from files or Hub data sets in the usual shapes.

A row is any of

* `{"messages": [{"role", "content"}, ...]}`: an optional system turn, one user turn, one answer;
* `{"prompt", "response"}`, `{"instruction", "output"}` (with an optional `input`) or
  `{"user", "assistant"}`, each with an optional `system`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import InputError
from modelassay.hub import read_dataset

SHAPES = (("prompt", "response"), ("instruction", "output"), ("user", "assistant"))


@dataclass(frozen=True)
class Exchange:
    """One turn of a conversation."""

    prompt: str
    response: str
    system: str | None = None
    complete: bool = True
    """False for the opening of a longer answer."""

    def to_dict(self) -> dict[str, Any]:
        """A row that `read_exchanges` reads back."""
        return {key: value for key, value in asdict(self).items() if value is not None}


def read_exchanges(
    where: str | Path, *, config: str | None = None, split: str = "train", token: Any = None
) -> list[Exchange]:
    """Reads exchanges from a JSON, JSONL, CSV or Parquet file or a Hub data set.

    Raises:
        InputError: no such data, or a row without prompt and answer.
        UnavailableError: the Hub cannot be reached.
    """
    rows = read_dataset(where, config=config, split=split, token=token)
    if not rows:
        raise InputError(f"{where} has no rows.")
    return [to_exchange(row, f"Row {number} of {where}") for number, row in enumerate(rows, 1)]


def to_exchange(row: Mapping[str, Any], name: str) -> Exchange:
    """One row as an `Exchange`.

    Args:
        row: In one of the shapes of this module.
        name: What an error calls the row.

    Raises:
        InputError: a field is missing, empty or no text.
    """
    if row.get("messages") is not None:
        row = _from_messages(row["messages"], name)
    for prompt, response in SHAPES:
        if prompt in row and response in row:
            text = _text(row[prompt], prompt, name)
            if row.get("input"):
                text = f"{text}\n{_text(row['input'], 'input', name)}"
            system = row.get("system")
            return Exchange(
                text,
                _text(row[response], response, name),
                _text(system, "system", name) if system else None,
                row.get("complete") is not False,
            )
    shapes = ", ".join(f"{a}/{b}" for a, b in SHAPES)
    raise InputError(f"{name} has neither `messages` nor a pair of fields {shapes}.")


def _from_messages(messages: Any, name: str) -> dict[str, Any]:
    if not isinstance(messages, Sequence) or not all(isinstance(m, Mapping) for m in messages):
        raise InputError(f"{name}: `messages` must be a list of role and content.")
    by_role = [(m.get("role"), m.get("content")) for m in messages]
    roles = [role for role, _ in by_role]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise InputError(
            f"{name} has the turns {', '.join(map(str, roles)) or 'none'}; one user turn and one"
            " assistant turn are expected, with an optional system turn before them."
        )
    turns = dict(by_role)
    return {
        "prompt": turns["user"],
        "response": turns["assistant"],
        "system": (turns.get("system") or "").strip(),
    }


def _text(value: Any, field: str, name: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{name}: `{field}` must be text that is not empty.")
    return value.strip()


def to_jsonl(exchanges: Iterable[Exchange]) -> str:
    """Exchanges as JSON lines."""
    import json

    return "".join(json.dumps(e.to_dict(), ensure_ascii=False) + "\n" for e in exchanges)
