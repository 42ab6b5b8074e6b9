"""Results as plain JSON of bounded size, and the numbers of a result on their own."""

from __future__ import annotations

from dataclasses import asdict, is_dataclass
from typing import Any

import numpy as np

from modelassay.hub.chat_completions import whole_characters
from modelassay.report.json import finite
from modelassay.statistics import mean_change, wilson_interval

DEEPEST = 4
KEPT_ENTRIES = 3
"""Entries of a list whose numbers are kept."""
KEPT_KEYS = 40
LEVEL = 0.05
"""Below it a p-value counts."""


def plain(value: Any, longest: int) -> Any:
    """JSON values: floats at 6 significant digits, null for NaN, long texts cut.

    Args:
        value: Dataclasses, mappings, sequences, numbers, text.
        longest: Characters of a text that are kept.
    """
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value), longest)
    if isinstance(value, dict):
        return {str(key): plain(entry, longest) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(entry, longest) for entry in value]
    if isinstance(value, np.generic):
        return plain(value.item(), longest)
    if value is None or isinstance(value, bool | int | float):
        return finite(value)
    return cut(str(value), longest)


def cut(text: str, longest: int) -> str:
    """A text that says so where it was cut; halves of characters become question marks."""
    text = whole_characters(text)
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… ({len(text) - longest} more characters)"


def numbers_of(value: Any, depth: int = 0) -> Any:
    """What a result counts and measures, without its texts; None where that is nothing.

    Of lists the first few entries are kept, and of these a text that names them.
    """
    if isinstance(value, bool | int | float):
        return value
    if depth >= DEEPEST:
        return None
    if isinstance(value, dict):
        found = {
            key: numbers_of(entry, depth + 1) for key, entry in list(value.items())[:KEPT_KEYS]
        }
        found = {key: entry for key, entry in found.items() if entry is not None}
        texts = {key: value.get(key) for key in ("name", "label")}
        named = {key: text[:80] for key, text in texts.items() if text and isinstance(text, str)}
        return {**named, **found} if found else None
    if isinstance(value, list):
        found = [numbers_of(entry, depth + 1) for entry in value[:KEPT_ENTRIES]]
        return [entry for entry in found if entry is not None] or None
    return None


def rate(k: int, n: int) -> dict[str, Any]:
    """A share with its count and 95% Wilson interval; of nothing there is none, and it says so."""
    if n == 0:
        found: dict[str, Any] = {"k": 0, "n": 0, "rate": None, "interval": None}
        return found | {"note": "Nothing here could be judged, so there is no rate."}
    return {"k": k, "n": n, "rate": k / n, "interval": list(wilson_interval(k, n))}


def mean(values: Any) -> dict[str, Any]:
    """A mean over prompts [n] with its 95% t-interval, which takes two prompts."""
    found = mean_change(values)
    if found.interval is None:
        note = "One prompt gives no interval: how far others differ is not known."
        return {"mean": found.mean, "interval": None, "n": found.n, "note": note}
    return {"mean": found.mean, "interval": list(found.interval), "n": found.n}


def note_on_pairs(n: int) -> dict[str, str]:
    """What to know of a test of n pairs (McNemar's) that too few pairs were given for."""
    if 2.0 ** (1 - n) < LEVEL:
        return {}
    return {"note": f"{n} prompts cannot give a p-value below {LEVEL}; more prompts can tell."}
