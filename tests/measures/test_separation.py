"""The statistic is honest: null where there is nothing, and what it claims where there is."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from modelassay.errors import InputError
from modelassay.measures.separation import measure_separation, pooled_separation
from modelassay.statistics import auroc, bootstrap_interval


def draw(rng, n=24, layers=4, width=30, effect=0.0, at=1):
    """Pairs that share a topic; at one layer the positives are moved along one direction."""
    topic = 2 * rng.normal(size=(n, layers, width))
    positive, negative = (topic + rng.normal(size=(n, layers, width)) for _ in range(2))
    positive[:, at, 0] += effect
    return torch.tensor(positive), torch.tensor(negative)


def keys(n, run=0):
    return [f"pair {run} {i}" for i in range(n)]


def digests(n):
    return [hashlib.sha256(key.encode()).digest() for key in keys(n)]


def brute_force(positive, negative, layers):
    """The nested procedure written out with vectors, fold by fold."""
    n = len(positive)
    order = sorted(range(n), key=digests(n).__getitem__)
    pos, neg = positive[order].numpy(), negative[order].numpy()
    folds = np.arange(n) % 8

    def project(train, rows, layer):
        d = (pos[train, layer] - neg[train, layer]).sum(axis=0)
        w = d / np.linalg.norm(d)
        middle = ((pos[train, layer] + neg[train, layer]) / 2).mean(axis=0) @ w
        return pos[rows, layer] @ w - middle, neg[rows, layer] @ w - middle

    p, q = np.empty(n), np.empty(n)
    for outer in range(8):
        best = (-np.inf, 0, 1.0)
        for layer in range(pos.shape[1]):
            parts = [
                project((folds != outer) & (folds != inner), folds == inner, layer)
                for inner in range(8)
                if inner != outer
            ]
            a, b = (np.concatenate(side) for side in zip(*parts, strict=True))
            scale = np.sqrt((a.var() + b.var()) / 2)
            best = max(best, ((a.mean() - b.mean()) / scale, layer, scale))
        _, layer, scale = best
        a, b = project(folds != outer, folds == outer, layer)
        p[folds == outer], q[folds == outer] = a / scale, b / scale
    return float(pooled_separation(p, q)), p, q


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("effect", [0.0, 1.5])
def test_gram_space_equals_the_procedure_written_out(effect):
    positive, negative = draw(np.random.default_rng(3), n=27, effect=effect)
    measured = measure_separation(positive, negative, range(4), keys(27), n_swaps=5)
    separation, p, q = brute_force(positive, negative, range(4))
    assert measured.separation == pytest.approx(separation, rel=1e-9)
    assert measured.positive_scores == pytest.approx(p.tolist(), rel=1e-6, abs=1e-9)
    assert measured.negative_scores == pytest.approx(q.tolist(), rel=1e-6, abs=1e-9)


@pytest.mark.usefixtures("few_resamples")
def test_swaps_equal_measuring_swapped_data():
    positive, negative = draw(np.random.default_rng(4), n=16, effect=1.0)
    measured = measure_separation(positive, negative, range(4), keys(16), n_swaps=3)
    order = sorted(range(16), key=digests(16).__getitem__)
    rng = np.random.default_rng(list(b"".join(sorted(digests(16)))))
    signs = rng.choice([-1.0, 1.0], size=(16, 3))
    for swap in range(3):
        flip = torch.zeros(16, dtype=torch.bool)
        flip[order] = torch.tensor(signs[:, swap] < 0)
        a = torch.where(flip[:, None, None], negative, positive)
        b = torch.where(flip[:, None, None], positive, negative)
        again = measure_separation(a, b, range(4), keys(16), n_swaps=1)
        assert again.separation == pytest.approx(measured.null[swap], rel=1e-4, abs=1e-5)


@pytest.mark.usefixtures("few_resamples")
def test_p_values_are_uniform_when_labels_mean_nothing():
    rng = np.random.default_rng(5)
    p = [
        measure_separation(
            *draw(rng, n=20, layers=3, width=12), range(3), keys(20, run), n_swaps=99
        ).p_value
        for run in range(300)
    ]
    # A binomial of 300 at 0.05 exceeds 26 about once in a thousand.
    assert sum(value <= 0.05 for value in p) <= 26
    assert 0.42 < np.mean(p) < 0.58


@pytest.mark.usefixtures("few_resamples")
def test_in_sample_separation_overfits_and_held_out_does_not():
    rng = np.random.default_rng(6)
    runs = [
        measure_separation(*draw(rng, n=16, width=100), range(4), keys(16), n_swaps=1)
        for _ in range(40)
    ]
    assert np.mean([run.in_sample_separation for run in runs]) > 1.5
    assert abs(np.mean([run.separation for run in runs])) < 0.15


def test_a_planted_direction_is_found_at_its_block():
    positive, negative = draw(np.random.default_rng(7), n=64, effect=4.0, at=2)
    measured = measure_separation(positive, negative, [10, 11, 12, 13], keys(64), n_swaps=200)
    assert measured.layer == 12
    assert measured.p_value == pytest.approx(1 / 201)
    assert measured.auroc > 0.9
    assert measured.by_layer[12] > measured.null_by_layer[12]
    for layer, (low, high) in measured.interval_by_layer.items():
        assert low < measured.by_layer[layer] < high
    assert measured.interval_by_layer[12][0] > measured.interval_by_layer[10][1]
    assert measured.by_layer[10] < 1
    assert measured.interval[0] < measured.separation < measured.interval[1]


def test_the_interval_covers_the_truth():
    """Coverage against the separation of fresh pairs along the direction that was learnt."""
    rng = np.random.default_rng(8)
    inside = 0
    for _ in range(60):
        positive, negative = draw(rng, n=64, layers=1, width=10, effect=2.0, at=0)
        measured = measure_separation(positive, negative, [0], keys(64), n_swaps=1)
        w = (positive - negative).mean(0)[0]
        w = w / w.norm()
        fresh = draw(rng, n=4000, layers=1, width=10, effect=2.0, at=0)
        truth = pooled_separation(*((side[:, 0] @ w).numpy() for side in fresh))
        inside += measured.interval[0] <= truth <= measured.interval[1]
    assert inside >= 50  # 95% nominal; a binomial of 60 at 0.92 falls below 50 in 1% of cases


def test_order_scale_and_offset_do_not_matter():
    positive, negative = draw(np.random.default_rng(9), n=30, effect=1.0)
    reference = measure_separation(positive, negative, range(4), keys(30), n_swaps=50)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    shuffled = measure_separation(
        positive[order], negative[order], range(4), [keys(30)[i] for i in order], n_swaps=50
    )
    moved = measure_separation(
        positive * 1000 + 500, negative * 1000 + 500, range(4), keys(30), n_swaps=50
    )
    for other in (shuffled, moved):
        assert other.separation == pytest.approx(reference.separation, rel=1e-6)
        assert other.p_value == reference.p_value
        assert other.interval == pytest.approx(reference.interval, rel=1e-6)


def test_swapping_the_sides_changes_no_held_out_number():
    positive, negative = draw(np.random.default_rng(10), n=30, effect=2.0)
    a = measure_separation(positive, negative, range(4), keys(30), n_swaps=1)
    b = measure_separation(negative, positive, range(4), keys(30), n_swaps=1)
    assert a.separation == pytest.approx(b.separation, rel=1e-9)


def test_in_sample_number_is_that_of_ams():
    from ams.extractor import ActivationExtractor

    positive, negative = draw(np.random.default_rng(11), n=16, layers=3, effect=1.0)
    stacked = torch.cat([positive, negative]).float().numpy()

    class Reader(ActivationExtractor):
        """AMS's own arithmetic on given activations."""

        def __init__(self):
            self.n_layers = 3

        def get_activations(self, prompts, layers, batch_size=8):
            return {layer: stacked[:, layer] for layer in layers}

    prompts = [["x"] * 16] * 2
    theirs, _ = Reader().extract_direction_with_layer_search(*prompts, search_layers=[0, 1, 2])
    ours = measure_separation(positive, negative, range(3), keys(16), n_swaps=1)
    assert ours.in_sample_separation == pytest.approx(theirs.separation, rel=1e-4)
    assert ours.in_sample_layer == theirs.layer


@pytest.mark.parametrize("n", [4, 5, 8, 9])
def test_few_pairs_still_give_a_number_and_a_wide_interval(n):
    measured = measure_separation(
        *draw(np.random.default_rng(12), n=n), range(4), keys(n), n_swaps=20
    )
    assert np.isfinite(measured.separation)
    assert measured.interval[1] - measured.interval[0] > 0.5


def test_too_few_pairs_and_dead_activations_are_refused():
    positive, negative = draw(np.random.default_rng(13), n=3)
    with pytest.raises(InputError, match="needs at least 4"):
        measure_separation(positive, negative, range(4), keys(3))
    same = torch.ones(8, 2, 5)
    with pytest.raises(InputError, match="same activations"):
        measure_separation(same, same, range(2), keys(8))


def test_auroc_is_that_of_scikit_learn():
    rng = np.random.default_rng(14)
    a, b = rng.integers(0, 6, 40).astype(float), rng.integers(0, 5, 30).astype(float)  # with ties
    expected = roc_auc_score([1] * 40 + [0] * 30, np.concatenate([a, b]))
    assert auroc(a, b) == pytest.approx(expected)
    low, high = bootstrap_interval(a, b, auroc, paired=False)
    assert low < expected < high
