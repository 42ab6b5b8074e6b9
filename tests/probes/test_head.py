"""Thresholds hold on rows that chose nothing, at every token."""

from __future__ import annotations

import numpy as np

from modelassay.probes import (
    train_head,
)
from modelassay.probes.features import read_spans
from modelassay.probes.head import (
    LEAST_BLOCK,
    LEAST_PAUSE,
    reached_thresholds,
    span_risks,
)
from probe_rows import exchanges


def test_thresholds_hold_for_every_token_of_a_stream(tiny):
    """A probe trained on few easy rows must not block the harmless ones when they are streamed."""
    model, rows = tiny(), exchanges()
    trained = train_head(model, rows, "answer", layers=(1, 3))
    safe = [row for row in rows if not row.unsafe]
    spans = read_spans(model, safe, "answer", trained.head.layers)
    risks = span_risks(spans, [trained.head], np.zeros(len(safe), dtype=int))
    assert trained.head.block >= LEAST_BLOCK
    assert trained.head.pause >= LEAST_PAUSE
    assert (risks.highest >= trained.head.block).mean() <= 0.1
    assert trained.record.block_interval[1] > 0


def test_threshold_rates_come_from_rows_that_chose_nothing():
    """Noise: thresholds taken from other rows are exceeded about as often as they allow."""
    rng = np.random.default_rng(0)
    highest = 0.5 + rng.random(20_000) / 2
    unsafe = np.zeros(20_000, dtype=bool)
    fold = np.arange(20_000) % 5
    paused, blocked = reached_thresholds(highest, unsafe, fold)
    assert 0.001 < blocked.mean() < 0.006
    assert 0.04 < paused.mean() < 0.06
    few = np.full(10, 0.6)
    few[0] = 0.95  # a row cannot raise the threshold that it is held against
    assert reached_thresholds(few, unsafe[:10], np.arange(10) % 5)[1][0]
