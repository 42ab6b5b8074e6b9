"""Spans: which characters of a response are what its label is about.

A row may name them as `spans`: a list of [start, end] that counts characters of the response as the
row writes it, the end not included. A response is harmless up to the first of them and unsafe from
there on, so a probe that learns from spans does not call the opening of a response unsafe.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from modelassay.errors import InputError

FIELD = "spans"
MAX_SPANS = 1000
Span = tuple[int, int]
"""Start and end, in characters of the response; the end is not part of it."""


def spans_of(row: Mapping[str, Any], response: str, name: str, *, unsafe: bool) -> tuple[Span, ...]:
    """What a row marks in its response, in order; empty where it marks nothing.

    Args:
        row: As this module describes; a table may write the list as JSON.
        response: What was read from the row, without the space around it.
        name: What an error calls the row.
        unsafe: How the row is labelled.

    Raises:
        InputError: they are of the wrong kind, outside the response, or in a safe one.
    """
    value = row.get(FIELD)
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{name}: `{FIELD}` is not valid JSON.") from error
    if value is None or value == "" or len(found := _listed(value, name)) == 0:
        return ()
    if not unsafe:
        raise InputError(f"{name} is labelled safe and has `{FIELD}` of what is unsafe.")
    written = next((text for text in _texts(row) if text.strip() == response), response)
    before = len(written) - len(written.lstrip())
    inside = []
    for start, end in found:
        if not 0 <= start < end <= len(written):
            raise InputError(
                f"{name}: `{FIELD}` has [{start}, {end}], which is no part of a response of"
                f" {len(written)} characters."
            )
        kept = max(0, start - before), min(len(response), end - before)
        if kept[0] < kept[1]:  # else it marks the space around the response
            inside.append(kept)
    return tuple(sorted(inside))


def _listed(value: Any, name: str) -> list[Span]:
    wrong = InputError(f"{name}: `{FIELD}` must be a list of [start, end], in characters.")
    if hasattr(value, "tolist"):  # of a Parquet file
        value = value.tolist()
    if not isinstance(value, list) or len(value) > MAX_SPANS:
        raise wrong
    found = []
    for each in value:
        each = each.tolist() if hasattr(each, "tolist") else each
        if not isinstance(each, list | tuple) or len(each) != 2:
            raise wrong
        if any(isinstance(place, bool) or not isinstance(place, int) for place in each):
            raise wrong
        found.append((each[0], each[1]))
    return found


def _texts(value: Any) -> Iterator[str]:
    """Every text of a row, those inside of messages too."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)
