"""Batches hold as much as the budget allows, and shrink when memory runs out."""

from __future__ import annotations

import pytest

from modelassay.errors import UnavailableError
from modelassay.reading.batching import pad, run_in_batches


def test_batches_hold_the_budget_and_what_is_alike():
    items, batches = ["a", "b", "cc", "dd", "eee", "E" * 9], []
    told = []

    def run(batch):
        batches.append(list(batch))
        return [item.upper() for item in batch]

    found = run_in_batches(
        run,
        items,
        len,
        6,
        noun="word",
        alike=lambda item: item < "dd",
        on_progress=lambda *step: told.append(step),
    )
    assert found == [item.upper() for item in items]
    assert batches == [["a", "b", "cc"], ["dd", "eee"], ["E" * 9]]
    assert told[0] == (0, 6)
    assert told[-1] == (6, 6)


def test_batches_hold_no_more_items_than_asked_for():
    sizes = []

    def run(batch):
        sizes.append(len(batch))
        return list(batch)

    assert run_in_batches(run, ["x"] * 7, len, 100, noun="word", most=3) == ["x"] * 7
    assert sizes == [3, 3, 1]


def test_batches_are_halved_until_they_fit():
    sizes = []

    def scarce(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise MemoryError
        return list(batch)

    assert run_in_batches(scarce, ["x"] * 8, len, 8, noun="word") == ["x"] * 8
    assert sizes == [8, 4, 2, 2, 2, 2]

    def never(batch):
        raise MemoryError

    with pytest.raises(UnavailableError, match="one word of 1 tokens fits into memory"):
        run_in_batches(never, ["x"], len, 8, noun="word")


def test_padding_goes_to_either_side():
    assert pad([[1], [2, 3]]).tolist() == [[1, 0], [2, 3]]
    assert pad([[1], [2, 3]], 9, "left").tolist() == [[9, 1], [2, 3]]
