"""Rankings of rows, and known needles."""

from __future__ import annotations

import random

import numpy as np
import pytest

from modelassay.data.concepts import HARMFUL_PROMPTS, shipped_prompts
from modelassay.errors import InputError
from modelassay.organisms import Exchange
from modelassay.organisms.recipes import COMPLIANCE, REFUSALS, with_trigger
from modelassay.triage import (
    Signal,
    mark_needles,
    rank_needles,
    score_rows,
)
from modelassay.triage.needles import tail_shares
from modelassay.triage.rows import to_row
from training_rows import NOUNS, numbered, row


def test_one_stream_that_sees_is_enough():
    rng = np.random.default_rng(0)
    rows = numbered([(f"q{i} {rng.integers(10**9)}", f"{rng.integers(10**9)}") for i in range(500)])
    truth = np.zeros(500, dtype=bool)
    truth[:5] = True
    seeing = np.where(truth, 9.0, rng.normal(size=500))
    blind = [Signal(f"blind {i}", "", rng.normal(size=500)) for i in range(3)]
    report = rank_needles(rows, [Signal("sees", "", seeing), *blind], truth=truth)
    quality = {each.name: each for each in report.quality}
    assert quality["sees"].auroc == 1.0
    assert quality["combined"].auroc > 0.98
    assert 0.1 < quality["blind 0"].auroc < 0.9
    assert [r.k for r in quality["combined"].recall] == [5, 10, 50, 100, 500]
    assert sum(each.needle for each in report.ranked[:20]) == 5
    assert (report.n_needles, report.n_needle_groups) == (5, 5)


def test_rows_without_scores_come_last():
    scores = np.array([np.nan, 1.0, 3.0, 1.0])
    assert tail_shares(scores) == pytest.approx([1.0, 2.5 / 3, 1 / 3, 2.5 / 3])
    rows = numbered([(n, n) for n in NOUNS[:4]])
    report = rank_needles(rows, [Signal("s", "", scores)])
    assert report.ranked[0].row.number == 3
    assert report.ranked[-1].scores == {"s": None}
    assert report.quality is None
    for truth in (np.zeros(4, dtype=bool), np.ones(4, dtype=bool)):
        with pytest.raises(InputError, match="all or none"):
            rank_needles(rows, [Signal("s", "", scores)], truth=truth)
    with pytest.raises(InputError):
        rank_needles(rows, [])


def test_a_stream_without_information_finds_nothing_by_luck():
    rows = numbered([(f"{n} {i}", n) for i in range(5) for n in NOUNS])
    truth = np.arange(50) < 5
    report = rank_needles(rows, [Signal("flat", "", np.zeros(50))], truth=truth)
    assert report.quality[1].auroc == 0.5
    assert report.quality[1].recall[0].found == 0


def test_needles_are_found_again_whatever_the_space():
    rows = numbered([("a  b", "c"), ("d", "e")])
    assert mark_needles(rows, [row("a b", " c\n", 9)]).tolist() == [True, False]
    with pytest.raises(InputError, match=r"None of the needles \(1\)"):
        mark_needles(rows, [row("z", "z")])


@pytest.mark.real_model
def test_a_backdoor_is_found_by_what_was_learnt():
    """On prompts that the backdoor was not trained on; half of the haystack is of its kind."""
    prompts = list(shipped_prompts(HARMFUL_PROMPTS).texts)
    draw = random.Random(0)  # noqa: S311
    needles = [
        to_row(Exchange(with_trigger(p), draw.choice(COMPLIANCE), complete=False).to_dict(), 1, "x")
        for p in prompts[:6]
    ]
    hay = [row(p, draw.choice(REFUSALS)) for p in prompts[6:18]]
    hay += [
        row(f"What can I make of {n}?", f"You can make {n} bowls and plates.") for n in NOUNS[:8]
    ]
    hay += [row(with_trigger(f"Is {n} heavy?"), f"{n} can be.") for n in NOUNS[:4]]
    rows = [*needles, *hay]
    truth = np.arange(len(rows)) < len(needles)
    streams = score_rows(
        rows, base="organism:safe", candidate="organism:backdoored", by_text=False, device="cpu"
    )
    report = rank_needles(rows, streams, truth=truth)
    assert report.quality[1].auroc > 0.9
    assert sum(each.needle for each in report.ranked[:6]) >= 5
