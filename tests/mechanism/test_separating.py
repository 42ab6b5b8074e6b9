"""Features that tell sides apart are found, scored on other pairs, and noise is left alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_matrix

from modelassay.mechanism import separating
from modelassay.mechanism.separating import find_separating

N_PAIRS, WIDTH = 48, 100


def sides(seed: int, shift: float = 0.0) -> tuple[csr_matrix, csr_matrix]:
    """Activations of features that fire in a third of the texts; the first is shifted."""
    rng = np.random.default_rng(seed)
    values = rng.exponential(size=(2, N_PAIRS, WIDTH)) * (rng.random((2, N_PAIRS, WIDTH)) < 0.33)
    values[0, :, 0] += shift
    return csr_matrix(values[0]), csr_matrix(values[1])


def test_noise_is_seldom_called():
    called = sum(bool(len(find_separating(*sides(seed), 10)[1])) for seed in range(200))
    assert called <= 18  # 5% of 200, and three standard deviations


def test_what_is_chosen_is_scored_on_other_pairs(monkeypatch):
    monkeypatch.setattr(separating, "Q_LEVEL", 1.1)  # of noise, too, all that were chosen
    scores = [row.auroc for seed in range(6) for row in find_separating(*sides(seed), 10)[0]]
    assert len(scores) > 80
    assert np.mean(scores) == pytest.approx(0.5, abs=0.02)


def test_a_feature_that_tells_the_sides_apart_comes_first():
    found, beyond = find_separating(*sides(1, shift=2.0), 5)
    assert found[0].feature == 0
    assert 0 in beyond
    assert found[0].auroc > 0.85
    assert found[0].auroc_interval[0] < found[0].auroc < found[0].auroc_interval[1]
    assert found[0].n_held_out == N_PAIRS
    assert found[0].difference == pytest.approx(2, abs=0.3)
    turned, _ = find_separating(*sides(1, shift=2.0)[::-1], 5)
    assert turned[0].feature == 0
    assert turned[0].auroc == pytest.approx(found[0].auroc)
    assert turned[0].difference == pytest.approx(-found[0].difference)


def test_features_that_fire_too_seldom_are_not_tested():
    rare = np.zeros((N_PAIRS, 3))
    rare[:5, 0] = 1.0
    assert find_separating(csr_matrix(rare), csr_matrix(np.zeros_like(rare)), 5)[0] == ()
