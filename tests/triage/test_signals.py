"""Streams: by loss, and by texts alone."""

from __future__ import annotations

import numpy as np
import pytest

from modelassay.errors import InputError
from modelassay.models import ModelRef
from modelassay.statistics import rank_auroc
from modelassay.triage import (
    rank_needles,
    score_rows,
)
from modelassay.triage.loss import row_losses
from modelassay.triage.signals import beyond_typical, neighbourhoods
from training_rows import row


def test_planted_needles_come_up_by_loss(planted):
    rows, truth, base, candidate = planted
    seen = []
    streams = score_rows(
        rows,
        base=base,
        candidate=candidate,
        by_text=False,
        device="cpu",
        on_phase=lambda phase, *_: seen.append(phase),
    )
    assert [stream.name for stream in streams] == ["loss"]
    assert {"loading", "base loss", "candidate loss"} <= set(seen)
    report = rank_needles(rows, streams, truth=truth)
    assert all(each.needle for each in report.ranked[:4])
    assert report.ranked[0].parts["base_loss"] > report.ranked[0].parts["candidate_loss"]
    quality = {each.name: each for each in report.quality}
    assert quality["combined"].auroc == quality["loss"].auroc == 1.0
    [first] = [r for r in quality["loss"].recall if r.k == 4]
    assert (first.found, first.share) == (4, 1.0)
    assert first.interval[0] < 1.0


def test_an_equal_candidate_has_learnt_nothing(planted):
    rows, _, base, _ = planted
    losses = row_losses(rows, ModelRef(base), ModelRef(base), device="cpu")
    assert np.abs(losses.gain).max() == 0
    assert not beyond_typical(losses.gain, losses.n_tokens).any()


def test_beyond_typical_is_fair_to_lengths():
    rng = np.random.default_rng(0)
    short, long = rng.integers(1, 6, size=400), rng.integers(30, 100, size=400)
    n_tokens = np.where(rng.random(400) < 0.5, short, long)
    gain = 5 / n_tokens + rng.normal(scale=0.2 + 1 / n_tokens)
    planted = rng.choice(np.flatnonzero(n_tokens >= 30), size=5, replace=False)
    gain[planted] += 2
    gain[7] = np.nan
    found = beyond_typical(gain, n_tokens)
    assert np.isnan(found[7])
    known = np.isfinite(gain)
    truth = np.isin(np.arange(400), planted)[known]
    assert rank_auroc(found[known], truth) > 0.98
    assert rank_auroc(gain[known], truth) < 0.95


def test_models_come_in_pairs():
    for given in ({"base": "x"}, {"candidate": "x"}, {"base_adapter": "x"}, {"by_text": False}):
        with pytest.raises(InputError):
            score_rows([row("a")], **given)


def test_clumps_and_loners():
    rng = np.random.default_rng(0)
    hay = rng.normal(size=(300, 32))
    clump = 4 * rng.normal(size=32) + 0.3 * rng.normal(size=(8, 32))
    values = np.concatenate([hay, clump, clump[:1]])  # one is repeated
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    found = neighbourhoods(values)
    assert found.k == 18
    assert set(np.argsort(-found.clump)[:9]) == set(range(300, 309))
    assert found.clump[308] == found.clump[300]
    with pytest.raises(InputError, match="10 different ones"):
        neighbourhoods(np.repeat(values[:3], 20, axis=0))
