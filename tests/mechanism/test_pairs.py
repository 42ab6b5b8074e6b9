"""Twins are aligned from their ends, or left out."""

from __future__ import annotations

import pytest

from circuits import make_twins
from modelassay.data.concepts import refusal_prompts
from modelassay.errors import InputError
from modelassay.mechanism.pairs import align, align_twins, match_requests, unrelated
from modelassay.reading.prompts import Encoded


def row(*ids: int) -> Encoded:
    return Encoded(ids, len(ids))


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        (row(1, 2, 3, 9, 8), row(1, 2, 4, 9, 8), 3),
        (row(1, 2, 3, 5, 9, 8), row(1, 2, 4, 9, 8), 3),
        (row(1, 2, 3, 4, 5, 6, 7), row(1, 9), None),
        (row(1, 2, 3), row(1, 2, 3), None),
    ],
)
def test_tokens_lie_under_each_other_from_the_end(first, second, shared):
    found = align(first, second)
    assert (found and found.shared) == shared


def test_twins_share_the_template(tiny):
    model = tiny()
    pairs = align_twins(model, make_twins(12), most=10)
    assert len(pairs) == 10
    for pair in pairs:
        assert pair.harmful.ids[: -pair.shared] == pair.harmless.ids[: -pair.shared]
    assert all(p.harmful != p.harmless for p in unrelated(pairs))
    with pytest.raises(InputError, match="Only 0 of 2 pairs of prompts align"):
        align_twins(model, [("Why is the sea so calm tonight?", "Ink?")] * 2, most=4)


def test_requests_are_matched_by_length(tiny):
    pairs = match_requests(tiny(), most=64)
    assert len(pairs) > 48
    assert len({pair.harmless for pair in pairs}) == len(pairs)
    gaps = [abs(len(p.harmful.ids) - len(p.harmless.ids)) for p in pairs]
    assert sorted(gaps)[len(gaps) // 2] <= 2
    few = match_requests(tiny(), most=10)
    assert len(few) == 10
    assert set(few) <= set(pairs)
    assert len(pairs) <= len(refusal_prompts()[0])
