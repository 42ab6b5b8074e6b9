"""Fits that are scored on what they did not see."""

from __future__ import annotations

import numpy as np
import pytest

from modelassay.probes import fitting as fitting_module
from modelassay.probes.fitting import FITTERS, fit_calibrated, leave_one_source_out
from modelassay.statistics import binary_metrics


@pytest.mark.parametrize("kind", FITTERS)
def test_noise_scores_as_noise(kind):
    """With ten times as many features as rows, and every row four times."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    features = np.repeat(rng.normal(size=(100, 1000)), 4, axis=0).astype(np.float32)
    unsafe = np.repeat(rng.random(100) < 0.5, 4)
    fit = fit_calibrated(features, unsafe, groups, FITTERS[kind])
    metrics = binary_metrics(fit.risk, unsafe, groups)
    assert metrics.interval[0] < 0.5 < metrics.interval[1] or metrics.auroc < 0.5


@pytest.mark.parametrize("kind", FITTERS)
def test_a_planted_direction_is_found_and_calibrated(kind):
    rng = np.random.default_rng(0)
    unsafe = rng.random(600) < 0.3
    features = rng.normal(size=(600, 50)).astype(np.float32) * np.linspace(1, 30, 50)
    features[:, 7] += 12 * unsafe
    fit = fit_calibrated(features, unsafe, np.arange(600), FITTERS[kind])
    metrics = binary_metrics(fit.risk, unsafe, np.arange(600))
    assert metrics.auroc > 0.9
    assert metrics.calibration_error < 0.1
    served = 1 / (1 + np.exp(-(features @ fit.readout.weight + fit.readout.bias)))
    assert np.corrcoef(served, fit.risk)[0, 1] > 0.9
    assert abs(served.mean() - unsafe.mean()) < 0.1


def test_leaving_a_source_out_tells_style_from_substance():
    """One source's harm shows in its style alone: fits without it must do no better than chance."""
    rng = np.random.default_rng(0)
    n = 300
    features = rng.normal(size=(n, 20)).astype(np.float32)
    sources = np.array(["shouting"] * 100 + ["questions"] * 100 + ["twins"] * 100)
    unsafe = np.arange(n) % 2 == 0
    features[:200, 0] += 4 * unsafe[:200]  # a style that twins of the same form do not have
    scores = leave_one_source_out(features, unsafe, np.arange(n), sources, FITTERS["logistic"])
    own = sources == "twins"
    metrics = binary_metrics(scores["twins"][own], unsafe[own], np.arange(100))
    assert metrics.interval[0] < 0.55
    easy = sources == "questions"
    assert binary_metrics(scores["questions"][easy], unsafe[easy], np.arange(100)).auroc > 0.9


def test_no_row_has_a_part_in_its_own_score():
    """What labels of a fold are turned over, its rows' risks stay as they were."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5)).astype(np.float32)
    unsafe = np.arange(80) % 2 == 0
    folds = [(np.flatnonzero(np.arange(80) % 4 != k), np.arange(k, 80, 4)) for k in range(4)]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(fitting_module, "folds_of", lambda _unsafe, _groups: folds)
    with monkeypatch.context():
        first = fit_calibrated(features, unsafe, np.arange(80), FITTERS["means"])
        turned = unsafe.copy()
        turned[folds[0][1][0]] = not turned[folds[0][1][0]]
        again = fit_calibrated(features, turned, np.arange(80), FITTERS["means"])
    monkeypatch.undo()
    readout = again.folds[0]
    assert readout.weight / readout.weight[0] == pytest.approx(
        first.folds[0].weight / first.folds[0].weight[0]
    )
    assert not np.allclose(again.folds[1].weight, first.folds[1].weight)
    for k, each in enumerate(first.folds):
        rows = first.fold == k
        risk = 1 / (1 + np.exp(-(features[rows] @ each.weight + each.bias)))
        assert risk == pytest.approx(first.risk[rows], abs=1e-6)
