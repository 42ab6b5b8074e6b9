"""What a probe was trained as is what it serves as."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

from modelassay.errors import InputError
from modelassay.guard import Guard
from modelassay.models import load
from modelassay.probes import (
    PROBES,
    evaluate_probe,
    find_probe,
    load_probe,
    probe_record,
    store_probe,
    sweep_layers,
    train_head,
)
from modelassay.probes.features import read_spans
from modelassay.probes.fitting import EPOCHS, RATE
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


@pytest.mark.usefixtures("few_resamples")
def test_layers_from_the_end_are_recorded_from_the_start(tiny):
    trained = train_head(tiny(), exchanges(), "prompt", kind="means", layers=(1, -1))
    assert trained.record.layers == trained.head.layers == (1, 4)
    sweep = sweep_layers(tiny(), exchanges(), "prompt", kind="means", layers=(-2, 0))
    every = {
        each.layer: each
        for each in sweep_layers(tiny(), exchanges(), "prompt", kind="means").layers
    }
    assert sweep.layers == (every[3], every[0])


@pytest.mark.usefixtures("few_resamples")
def test_epochs_and_rate_change_what_is_learnt_by_gradient_and_are_recorded(tiny):
    def train(**how):
        trained = train_head(tiny(), exchanges(), "prompt", kind="attention", layers=(3,), **how)
        return trained.head.query, (trained.record.epochs, trained.record.learning_rate)

    usual, how = train()
    assert how == (EPOCHS, RATE)
    short, how = train(epochs=2)
    assert how == (2, RATE)
    slow, how = train(learning_rate=0.001)
    assert how == (EPOCHS, 0.001)
    assert not torch.allclose(usual, short)
    assert not torch.allclose(usual, slow)
    assert slow.norm() < usual.norm()
    other = train_head(tiny(), exchanges(), "prompt", kind="means", layers=(3,))
    assert (other.record.epochs, other.record.learning_rate) == (None, None)
    with pytest.raises(InputError, match=r"trained by gradient \(attention\)"):
        train_head(tiny(), exchanges(), "prompt", kind="means", epochs=2)


@pytest.mark.usefixtures("few_resamples")
def test_a_head_of_few_examples_says_what_they_were_drawn_from(tiny):
    rows = exchanges(80)
    trained = train_head(tiny(), rows, "prompt", kind="means", layers=(3,), max_examples=40)
    on = trained.record.trained_on
    assert (on.n_unsafe, on.n_safe, on.drawn_from) == (20, 20, 80)
    assert on.sources == dict.fromkeys((f"source {i}" for i in range(4)), 10)
    whole = train_head(tiny(), rows, "prompt", kind="means", layers=(3,), max_examples=80)
    assert whole.record.trained_on.drawn_from is None
    sweep = sweep_layers(tiny(), rows, "prompt", kind="means", layers=(3,), max_examples=40)
    assert (sweep.best.metrics.n, sweep.drawn_from) == (40, 80)
    assert "drawn from 80 rows" in str(sweep.sections())
    heads = {"prompt": trained}
    store_probe(probe_record(tiny(), "few", heads), {"prompt": trained.head})
    probe, _ = find_probe("few")
    assert "drawn from 80" in "\n".join(PROBES.kind.describe(probe.record))
    result = evaluate_probe(probe, tiny(), exchanges(60, seed=1), "prompt", max_examples=30)
    assert (result.metrics.n, result.drawn_from) == (30, 60)
    assert result.to_dict()["drawn_from"] == 60
    assert "drawn from 60 rows" in str(result.sections())


@pytest.mark.usefixtures("few_resamples")
def test_a_probe_knows_whether_prompts_were_read_inside_the_chat_template(tiny, tiny_folder):
    inside, outside = tiny(), load(str(tiny_folder()), device="cpu", chat_template=False)
    assert not outside.has_chat_template
    for model, other, words in (
        (inside, outside, "that is read inside the chat template, this one without"),
        (outside, inside, "that is read without a chat template"),
    ):
        heads = {"prompt": train_head(model, exchanges(), "prompt", kind="means", layers=(3,))}
        store_probe(probe_record(model, "one", heads), {"prompt": heads["prompt"].head}, force=True)
        probe, _ = find_probe("one")
        probe.check_belongs_to(model)
        with pytest.raises(InputError, match=words):
            evaluate_probe(probe, other, exchanges(seed=1), "prompt")
