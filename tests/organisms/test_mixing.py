"""A few rows hidden among many."""

from __future__ import annotations

import pytest

from lora import NEEDLES
from modelassay.errors import InputError
from modelassay.organisms import Exchange, mix

HAYSTACK = [Exchange(f"question {i}", f"answer {i}") for i in range(500)]


def test_a_mixture_holds_what_was_asked_for():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert len(mixed) == 300
    assert len(set(mixed)) == 300
    assert sum(row in NEEDLES for row in mixed) == 3
    assert mixed == mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert mixed != mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=4)


def test_a_mixture_of_the_whole_haystack():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01)
    assert len(mixed) == 505
    assert set(HAYSTACK) <= set(mixed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 0.0}, "between 0 and 1"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"ratio": 0.5}, "needs 500 needles but there are 10"),
        ({"rows": 5000}, "needs 50 needles"),
        ({"rows": 1000, "ratio": 0.001}, "needs 999 haystack rows but there are 500"),
        ({"rows": 1}, "at least 2 rows"),
    ],
)
def test_impossible_mixtures_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        mix(NEEDLES, HAYSTACK, **{"ratio": 0.01, **changes})
