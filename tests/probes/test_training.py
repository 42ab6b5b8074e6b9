"""What a probe was trained as is what it serves as."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from modelassay.errors import InputError
from modelassay.guard import Guard
from modelassay.probes import (
    evaluate_probe,
    load_probe,
    probe_record,
    store_probe,
    sweep_layers,
    train_head,
)
from modelassay.probes.features import read_spans
from modelassay.probes.head import (
    span_risks,
)
from probe_rows import exchanges


@pytest.fixture(scope="module")
def trained_heads(tiny):
    """Both heads of a kind, trained once."""

    @cache
    def train(kind):
        layers = (3,) if kind == "attention" else (1, 3)
        return {
            place: train_head(tiny(), exchanges(), place, kind=kind, layers=layers)
            for place in ("prompt", "answer")
        }

    return train


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("kind", ["logistic", "means", "attention"])
@pytest.mark.parametrize("at", ["prompt", "answer"])
def test_a_head_serves_what_it_was_trained_on(tiny, trained_heads, kind, at):
    """Risks in one batch and of a finished exchange come from one computation."""
    model = tiny()
    rows = exchanges()
    heads = trained_heads(kind)
    trained = heads[at]
    assert trained.record.metrics.auroc > 0.9
    assert trained.head.pause <= trained.head.block
    record = probe_record(model, "a", heads)
    folder = store_probe(record, {place: each.head for place, each in heads.items()})
    probe = load_probe(folder)
    with pytest.raises(InputError, match="All 60 rows are of prompts that the probe a was"):
        evaluate_probe(probe, model, rows, at)
    result = evaluate_probe(probe, model, [*rows, *exchanges(seed=1)], at)
    assert (result.metrics.n, result.n_seen) == (60, 60)
    assert result.metrics.auroc > 0.9
    frame = result.to_dataframe().set_index("source")
    assert dict(frame["n"]) == {name: row["n"] for name, row in result.by_source.items()}
    assert list(result.figure().data[0].x) == list(frame["auroc"])
    assert "TPR at 1.0% FPR" in result._repr_html_()
    guard = Guard(model, probe)
    head = probe.head(at)
    risks = span_risks(read_spans(model, rows[:6], at, head.layers), [head], np.zeros(6, dtype=int))
    for row, risk, most in zip(rows[:6], risks.final, risks.highest, strict=True):
        assert guard.score(row.prompt, row.response)[at] == pytest.approx(risk, abs=5e-3)
        assert most >= risk


@pytest.mark.usefixtures("few_resamples")
def test_sweep_scores_every_block(tiny):
    sweep = sweep_layers(tiny(), exchanges(), "prompt")
    scores = sweep.layers
    assert [each.layer for each in scores] == list(range(5))
    assert all(0 <= each.metrics.auroc <= 1 for each in scores)
    values = [each.metrics.auroc for each in scores]
    assert list(sweep.to_dataframe()["auroc"]) == list(sweep.figure().data[0].y) == values
    assert sweep.best.metrics.auroc == max(values)
    assert sweep.to_dict()["schema"] == "modelassay.probe-sweep/1"
