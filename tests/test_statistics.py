"""The statistics give what their formulas give, and what other libraries give."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csc_matrix
from sklearn.metrics import roc_auc_score

from modelassay import statistics as s
from modelassay.statistics import (
    LOOK_RATIO,
    binary_metrics,
    likelihood_drop,
    repeated_difference_interval,
    repeated_interval,
    threshold_at,
    tpr_at,
)


def samples(seed: int, ties: bool) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, k = rng.integers(2, 40, size=2)
    x, y = rng.normal(0.4, 1, n), rng.normal(0, 1, k)
    return (x.round(), y.round()) if ties else (x, y)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_the_share_of_pairs_in_order(seed, ties):
    x, y = samples(seed, ties)
    by_pairs = ((x[:, None] > y) + 0.5 * (x[:, None] == y)).mean()
    scores, truth = np.concatenate([x, y]), np.arange(len(x) + len(y)) < len(x)
    assert s.auroc(x, y) == pytest.approx(by_pairs, abs=1e-12)
    assert s.rank_auroc(scores, truth) == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_bootstrap_draws_the_rows_that_published_reports_drew(seed, paired, ties):
    x, y = samples(seed, ties)
    if paired:
        y = np.resize(y, x.shape)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, len(x), size=(2000, len(x)))
    columns = rows if paired else rng.integers(0, len(y), size=(2000, len(y)))
    expected = np.quantile(s.auroc(x[rows], y[columns]), [0.025, 0.975])
    assert s.bootstrap_interval(x, y, s.auroc, paired=paired) == pytest.approx(expected, abs=1e-12)


def test_a_sample_of_one_has_a_bootstrap_interval_without_width():
    one, more = np.array([1.0]), np.array([0.0, 2.0])
    assert s.bootstrap_interval(one, more, s.auroc, paired=False) == (0.5, 0.5)


def test_intervals_of_shares_are_the_published_ones():
    # Newcombe (1998), Statistics in Medicine 17, 873-890, table II, method 10.
    assert s.newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert s.newcombe_interval(9, 10, 3, 10) == pytest.approx((0.1705, 0.8090), abs=5e-5)
    assert s.newcombe_interval(10, 10, 0, 20) == pytest.approx((0.6791, 1.0), abs=5e-5)
    k, n, z = 7, 30, 1.959963984540054
    middle = (k / n + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * np.sqrt(k / n * (1 - k / n) / n + z**2 / (4 * n**2))
    assert s.wilson_interval(k, n) == pytest.approx((middle - half, middle + half))


def test_mcnemar_is_a_sign_test_of_the_pairs_that_changed():
    assert s.mcnemar_p_value(0, 0) == 1.0
    assert s.mcnemar_p_value(5, 0) == pytest.approx(2 * 0.5**5)


def test_benjamini_hochberg_steps_up():
    p = np.random.default_rng(0).uniform(size=50).round(1)
    order = np.argsort(p)
    steps = np.minimum.accumulate((p[order] * len(p) / np.arange(1, len(p) + 1))[::-1])[::-1]
    expected = np.empty(len(p))
    expected[order] = np.minimum(steps, 1)
    np.testing.assert_allclose(s.benjamini_hochberg(p), expected)
    assert len(s.benjamini_hochberg(np.zeros(0))) == 0


def test_sign_flips_count_the_patterns_that_reach_the_observed_sum():
    differences = np.array([[1.0, 1.0], [1.0, -1.0], [1.0, 1.0], [1.0, -1.0], [1.0, 0.5]])
    signs = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
    exact = (np.abs(signs @ differences) >= np.abs(differences.sum(axis=0))).mean(axis=0)
    found = s.sign_flip_p_values(csc_matrix(differences))
    np.testing.assert_allclose(found, exact, atol=0.02)


def test_a_cluster_bootstrap_draws_whole_groups():
    rng = np.random.default_rng(3)
    groups = np.repeat(np.arange(20), 4)
    positive = groups % 2 == 0
    risk = positive * 0.5 + rng.normal(size=20)[groups]
    whole = s.cluster_interval(lambda i: s.rank_auroc(risk[i], positive[i]), positive, groups)
    rows = s.cluster_interval(
        lambda i: s.rank_auroc(risk[i], positive[i]), positive, np.arange(len(risk))
    )
    assert whole[1] - whole[0] > 1.5 * (rows[1] - rows[0])  # rows of a group say the same


def test_sign_flips_are_uniform_under_the_null():
    draw = np.random.default_rng(0)
    p = s.sign_flip_p_values(csc_matrix(draw.standard_normal((40, 300))))
    assert 0.4 < p.mean() < 0.6
    assert (p < 0.05).mean() < 0.1
    shifted = s.sign_flip_p_values(csc_matrix(draw.standard_normal((40, 3)) + 2))
    assert (shifted < 1e-4).all()
    assert s.benjamini_hochberg(np.array([0.01, 0.02, 0.5])).tolist() == pytest.approx(
        [0.03, 0.03, 0.5]
    )


def test_metrics_of_a_case_worked_by_hand():
    positive = np.array([True] * 4 + [False] * 4)
    risk = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.3, 0.1, 0.1])
    metrics = binary_metrics(risk, positive, np.arange(8))
    assert metrics.auroc == pytest.approx(14 / 16)
    assert metrics.interval[0] <= metrics.auroc <= metrics.interval[1]
    assert metrics.tpr_at_fpr == {"0.01": None, "0.001": None}  # four negatives cannot tell
    assert tpr_at(risk, positive, 0.0) == 0.75
    assert tpr_at(risk, positive, 0.5) == 1.0
    assert threshold_at(risk[4:], 0.0) > 0.6


def test_threshold_never_exceeds_its_rate():
    rng = np.random.default_rng(0)
    for _ in range(50):
        negatives = rng.choice(np.linspace(0, 1, 7), size=rng.integers(1, 300))
        for rate in (0.0, 0.01, 0.1):
            assert (negatives >= threshold_at(negatives, rate)).mean() <= rate


def test_intervals_count_prompts_not_rows():
    """A hundred copies of ten prompts tell no more than ten prompts do."""
    rng = np.random.default_rng(1)
    positive = np.repeat([True, False], 10)
    risk = rng.random(20) + 0.3 * positive
    few = binary_metrics(risk, positive, np.arange(20)).interval
    many = binary_metrics(
        np.repeat(risk, 100), np.repeat(positive, 100), np.repeat(np.arange(20), 100)
    )
    assert many.n == 2000
    assert many.n_prompts == 20
    assert many.interval == pytest.approx(few, abs=0.02)


def test_likelihood_intervals_end_where_the_ratio_is_reached():
    low, high = repeated_interval(0, 20)
    assert (low, high) == (0, pytest.approx(1 - LOOK_RATIO ** (-1 / 20), abs=1e-6))
    low, high = repeated_interval(7, 20)
    for p in (low, high):
        ratio = (0.35 / p) ** 7 * (0.65 / (1 - p)) ** 13
        assert ratio == pytest.approx(LOOK_RATIO, rel=1e-4)


@pytest.mark.parametrize("counts", [(0, 20, 0, 40), (18, 20, 2, 40), (20, 20, 40, 40)])
def test_likelihood_intervals_of_a_difference_are_antisymmetric(counts):
    low, high = repeated_difference_interval(*counts)
    best = counts[0] / counts[1] - counts[2] / counts[3]
    assert low < best < high
    mirrored = repeated_difference_interval(*counts[2:], *counts[:2])
    assert mirrored == pytest.approx((-high, -low), abs=1e-5)
    for end in (low, high):
        assert likelihood_drop(*counts, end) == pytest.approx(np.log(LOOK_RATIO), abs=1e-4)


def test_likelihood_intervals_reach_the_ends():
    assert repeated_difference_interval(20, 20, 0, 40)[1] == 1
    assert repeated_difference_interval(0, 20, 40, 40)[0] == -1
    assert repeated_interval(20, 20)[1] == 1


def test_one_more_value_is_foretold():
    rng = np.random.default_rng(0)
    p_values, inside = [], 0
    for _ in range(2000):
        *sample, more = rng.standard_normal(13)
        found = s.predict(np.array(sample))
        low, high = found.interval
        inside += low <= more <= high
        p_values.append(found.p_value(more))
    assert inside / 2000 == pytest.approx(0.95, abs=0.015)
    assert np.mean(np.array(p_values) < 0.05) <= 0.06
    # A value nearer than the farthest one has at least the p-value of a rank.
    long_tail = s.predict(np.array([0.0] * 20 + [50.0]))
    assert long_tail.p_value(40.0) >= 1 / 22
    flat = s.predict(np.zeros(9))
    assert flat.p_value(0.0) == 1
    assert flat.p_value(1.0) == pytest.approx(0.1)
