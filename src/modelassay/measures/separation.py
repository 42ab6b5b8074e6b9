"""How far apart a model holds the two sides of a concept, scored on pairs it was not fitted on.

For pairs (x⁺, x⁻) of activations at a layer, the direction is the mean difference over the training
pairs, w = mean(x⁺ - x⁻) / ‖·‖ (the difference-of-means direction of Marks & Tegmark 2023 and
Arditi et al. 2024). The separation is the difference of the class means of held-out projections
over their pooled standard deviation, Cohen's d.

Nothing is scored on what it was fitted on: pairs are split into folds; for each outer fold the
direction is fitted on the others, and the layer is chosen among the others too, by an inner
cross-validation (nested cross-validation, Varma & Simon 2006).

The null hypothesis is that the two members of a pair are exchangeable. Under it, swapping members
at random leaves the distribution of the statistic unchanged, so the rank of the observed value
among swaps is an exact p-value (Phipson & Smyth 2010 count the observed one in). Each swap repeats
the whole procedure, choice of layer included.

All this needs only inner products. With d = x⁺ - x⁻ and m = (x⁺ + x⁻) / 2, a swap is a sign s = ±1
on d, the direction of a training set T is Σ_T s_p d_p, and a projection is Σ_T s_p ⟨d_p, ·⟩: sums
of rows of two n x n Gram matrices, ⟨d, d⟩ and ⟨m, d⟩. Sums over single folds, computed once, add up
to every training set that nested cross-validation asks for, so thousands of swaps cost less than
one forward pass of the model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from modelassay.errors import InputError
from modelassay.statistics import auroc, bootstrap_interval

Array = NDArray[np.floating]
Folds = NDArray[np.intp]

MIN_PAIRS = 4
"""Fewer pairs leave the nested cross-validation nothing to train on."""
N_FOLDS = 8
N_SWAPS = 2000
CHUNK = 1024  # swaps at a time: keeps the working set in the processor's cache


@dataclass(frozen=True)
class Separation:
    """Held-out separation of one concept, with all that says how sure it is."""

    separation: float
    """Held-out difference of means in pooled standard deviations (σ)."""
    interval: tuple[float, float]
    """95% bootstrap interval over pairs."""
    p_value: float
    """Share of label swaps that separate at least as well."""
    auroc: float
    """Chance that a held-out positive projects higher than a held-out negative."""
    auroc_interval: tuple[float, float]
    layer: int
    """Layer chosen on all pairs (the one to use from here on)."""
    n_pairs: int
    in_sample_separation: float
    """As ams-scanner computes it: direction, layer and score from the same pairs."""
    in_sample_layer: int
    by_layer: dict[int, float]
    """Held-out separation at each layer, without any choice of layer."""
    interval_by_layer: dict[int, tuple[float, float]]
    """95% interval of `by_layer`."""
    null_by_layer: dict[int, float]
    """95th percentile of `by_layer` under label swaps."""
    null: tuple[float, ...]
    """Separation under each label swap."""
    positive_scores: tuple[float, ...]
    """Held-out projection of each positive, in σ; order of `negative_scores`."""
    negative_scores: tuple[float, ...]


def too_few_pairs(n: int) -> str | None:
    """Why a separation of this many pairs cannot be scored, None where it can."""
    if n >= MIN_PAIRS:
        return None
    return f"{n} pair{'s' if n != 1 else ''}; a held-out separation needs at least {MIN_PAIRS}"


def measure_separation(
    positive: Tensor,
    negative: Tensor,
    layers: Sequence[int],
    keys: Sequence[str],
    *,
    n_swaps: int = N_SWAPS,
) -> Separation:
    """Measures how well a direction learnt on some pairs separates other pairs.

    Args:
        positive: Activations [pair, layer, hidden] of the first members.
        negative: Activations [pair, layer, hidden] of the second members.
        layers: Layer index of each entry of the second axis.
        keys: One string a pair, its text say. Pairs are put in the order of the keys' hashes
            before they are dealt into folds, so that no result depends on the order given.
        n_swaps: Label swaps for the p-value, at least 1.

    Raises:
        InputError: fewer than 4 pairs, or all pairs have the same activations.
    """
    n = len(keys)
    if (reason := too_few_pairs(n)) is not None:
        raise InputError(f"There are only {reason}.")
    digests = [hashlib.sha256(key.encode()).digest() for key in keys]
    order = sorted(range(n), key=digests.__getitem__)
    pos = positive[order].double().numpy()
    neg = negative[order].double().numpy()
    folds = np.arange(n) % min(N_FOLDS, n)

    # Seeded by the pairs: repeatable, yet other pairs are tried against other swaps.
    swaps_rng = np.random.default_rng(list(b"".join(sorted(digests))))
    signs = swaps_rng.choice([-1.0, 1.0], size=(n, n_swaps))
    grams = [_grams(pos[:, i], neg[:, i]) for i in range(len(layers))]
    if all(dd.trace() < 1e-18 for dd, _ in grams):
        raise InputError("Both sides of every pair give the same activations; nothing to separate.")
    observed = _nested(grams, folds, np.ones((n, 1)))
    # The null needs no more digits than the activations have, and half the width is half the time.
    light = [(dd.astype(np.float32), md.astype(np.float32)) for dd, md in grams]
    signs = signs.astype(np.float32)
    swaps = [
        _nested(light, folds, signs[:, start : start + CHUNK]) for start in range(0, n_swaps, CHUNK)
    ]
    separation = float(observed.separation[0])
    tie = 1e-3 * max(1.0, abs(separation))  # swaps that change nothing differ by rounding only
    by_layer = observed.by_layer[:, 0]
    null = np.concatenate([swap.separation for swap in swaps])
    null_by_layer = np.quantile(np.hstack([swap.by_layer for swap in swaps]), 0.95, axis=1)
    p, q = observed.positive[:, 0], observed.negative[:, 0]
    in_sample = [_in_sample(dd, md) for dd, md in grams]
    best_in_sample = int(np.argmax(in_sample))
    return Separation(
        separation=separation,
        interval=bootstrap_interval(p, q, pooled_separation),
        p_value=float((1 + np.sum(null >= separation - tie)) / (1 + n_swaps)),
        auroc=float(auroc(p, q)),
        auroc_interval=bootstrap_interval(p, q, auroc),
        layer=int(layers[int(np.argmax(by_layer))]),
        n_pairs=n,
        in_sample_separation=float(in_sample[best_in_sample]),
        in_sample_layer=int(layers[best_in_sample]),
        by_layer=dict(zip(layers, by_layer.tolist(), strict=True)),
        interval_by_layer={
            layer: bootstrap_interval(*scores, pooled_separation)
            for layer, scores in zip(layers, observed.scores_by_layer, strict=True)
        },
        null_by_layer=dict(zip(layers, null_by_layer.tolist(), strict=True)),
        null=tuple(null.tolist()),
        positive_scores=tuple(p.tolist()),
        negative_scores=tuple(q.tolist()),
    )


def pooled_separation(positive: Array, negative: Array, axis: int = -1) -> Array:
    """(mean⁺ - mean⁻) / √((var⁺ + var⁻) / 2) along an axis, with unbiased variances."""
    variance = (positive.var(axis=axis, ddof=1) + negative.var(axis=axis, ddof=1)) / 2
    difference = positive.mean(axis=axis) - negative.mean(axis=axis)
    return difference / np.sqrt(np.maximum(variance, 1e-24))


@dataclass(frozen=True)
class _Nested:
    """Nested cross-validation under each column of signs."""

    separation: Array
    """[swap]"""
    by_layer: Array
    """[layer, swap] held-out separation at fixed layers."""
    positive: Array
    """[pair, swap] held-out projections of the chosen layers, in units of training σ."""
    negative: Array
    scores_by_layer: list[tuple[Array, Array]]
    """For each layer, [pair] held-out projections of both sides under the first signs."""


def _grams(positive: Array, negative: Array) -> tuple[Array, Array]:
    """⟨d, d⟩ and ⟨m, d⟩, scaled so that their numbers are near 1 whatever the model's scale."""
    d = positive - negative
    m = (positive + negative) / 2
    m = m - m.mean(axis=0)  # an offset common to all cancels later; without it less is rounded off
    scale = max(float((d * d).sum()) / len(d), 1e-30)
    return d @ d.T / scale, m @ d.T / scale


class _FoldSums:
    """Sums over single folds, from which every training set is put together.

    Axes: k is the fold that a direction's terms come from, q a pair that is projected.
    """

    def __init__(self, dd: Array, md: Array, folds: Folds, signs: Array) -> None:
        self.signs = signs
        self.members = [np.flatnonzero(folds == k) for k in range(int(folds.max()) + 1)]
        # along[k, q] = Σ_{p in k} s_p ⟨d_q, d_p⟩ and middle[k, q] = Σ_{p in k} s_p ⟨m_q, d_p⟩
        self.along = np.stack([dd[:, fold] @ signs[fold] for fold in self.members])
        self.middle = np.stack([md[:, fold] @ signs[fold] for fold in self.members])
        # The same summed over the pairs of each fold: [fold of q, k, swap].
        self.norms = np.stack([(self.along[:, f] * signs[f]).sum(axis=1) for f in self.members])
        self.middles = np.stack([self.middle[:, f].sum(axis=1) for f in self.members])

        # Length of Σ s_p d_p over the pairs outside folds a and b, and those pairs' mean projection
        # on it, for all a and b (a = b leaves one fold out): [a, b, swap].
        self.length = np.sqrt(np.maximum(_without_two(self.norms), 1e-24))
        sizes = np.array([len(fold) for fold in self.members])
        left = len(signs) - sizes[:, None] - sizes[None, :] + np.diag(sizes)
        n_train = np.maximum(left, 1)[:, :, None].astype(signs.dtype)
        self.origin = _without_two(self.middles) / (n_train * self.length)

    def project_held_out(self, fold: int) -> tuple[Array, Array]:
        """Projects a fold's positives and negatives on the direction of the other folds.

        Returns:
            Two arrays [pair, swap], measured from the middle of the training pairs.
        """
        rows, length = self.members[fold], self.length[fold, fold]
        along = self.along[:, rows].sum(axis=0) - self.along[fold, rows]
        middle = self.middle[:, rows].sum(axis=0) - self.middle[fold, rows]
        middle = middle / length - self.origin[fold, fold]
        half = self.signs[rows] * along / (2 * length)
        return middle + half, middle - half


def _without_two(terms: Array) -> Array:
    """Sum of terms[i, j] over all i and j outside {a, b}, for all a and b.

    Args:
        terms: [fold, fold, swap].

    Returns:
        [a, b, swap]
    """
    crossing = terms.sum(axis=0) + terms.sum(axis=1)
    own = np.einsum("aas->as", terms)
    both = terms + terms.transpose(1, 0, 2)
    one = terms.sum(axis=(0, 1)) - crossing + own  # without fold a: [a, swap]
    result = one[:, None] + one[None, :] - terms.sum(axis=(0, 1)) + both
    diagonal = np.arange(len(terms))
    result[diagonal, diagonal] = one
    return result


def _nested(grams: Sequence[tuple[Array, Array]], folds: Folds, signs: Array) -> _Nested:
    n, n_swaps = signs.shape
    n_folds = int(folds.max()) + 1
    kind = signs.dtype
    best = np.full((n_folds, n_swaps), -np.inf, kind)
    positive, negative = np.zeros((n, n_swaps), kind), np.zeros((n, n_swaps), kind)
    by_layer = np.empty((len(grams), n_swaps))
    scores: list[tuple[Array, Array]] = []
    for i, (dd, md) in enumerate(grams):
        sums = _FoldSums(dd, md, folds, signs)
        inner, scale = _inner_separation(sums)
        pos, neg = np.empty((n, n_swaps), kind), np.empty((n, n_swaps), kind)
        for k, rows in enumerate(sums.members):
            pos[rows], neg[rows] = sums.project_held_out(k)
            # Layers differ in scale: what is pooled over folds is in units of the training σ.
            pos[rows], neg[rows] = pos[rows] / scale[k], neg[rows] / scale[k]
            better = inner[k] > best[k]
            best[k] = np.where(better, inner[k], best[k])
            positive[rows] = np.where(better, pos[rows], positive[rows])
            negative[rows] = np.where(better, neg[rows], negative[rows])
        by_layer[i] = pooled_separation(pos, neg, axis=0)
        scores.append((pos[:, 0].copy(), neg[:, 0].copy()))
    overall = pooled_separation(positive, negative, axis=0)
    return _Nested(overall, by_layer, positive, negative, scores)


def _inner_separation(sums: _FoldSums) -> tuple[Array, Array]:
    """For each outer fold, the separation and pooled σ found by cross-validating the others.

    Written in moments: with positives c + h and negatives c - h, the difference of means is
    2·mean(h) and the pooled variance is mean(c² + h²) - mean(c)² - mean(h)².

    Returns:
        Two arrays [outer fold, swap].
    """
    n_folds, n_swaps = len(sums.members), sums.signs.shape[1]
    shape = (n_folds, n_swaps)
    total_c, total_h, squares = (np.zeros(shape, sums.signs.dtype) for _ in range(3))
    counts = np.zeros((n_folds, 1), sums.signs.dtype)
    for b, rows in enumerate(sums.members):
        # Pairs of fold b are held out; every other fold `a` is in turn the outer one, and the
        # direction is trained on the folds that are neither a nor b.
        others = np.arange(n_folds) != b
        length, origin = sums.length[others, b], sums.origin[others, b]
        v, v_square = _left_out_moments(sums.middle[others][:, rows])
        _, u_square = _left_out_moments(sums.along[others][:, rows])
        u = sums.norms[b, others].sum(axis=0) - sums.norms[b, others]
        total_c[others] += v / length - len(rows) * origin
        total_h[others] += u / (2 * length)
        centred = v_square / length**2 - 2 * origin * v / length + len(rows) * origin**2
        squares[others] += centred + u_square / (4 * length**2)
        counts[others] += len(rows)
    c, h = total_c / counts, total_h / counts
    scale = np.sqrt(np.maximum(squares / counts - c**2 - h**2, 1e-24))
    return 2 * h / scale, scale


def _left_out_moments(terms: Array) -> tuple[Array, Array]:
    """Of the sum over folds without one of them: Σ and Σ² over pairs, for each fold left out.

    Args:
        terms: [fold, pair, swap].

    Returns:
        Two arrays [fold left out, swap].
    """
    rest = terms.sum(axis=0) - terms
    return rest.sum(axis=1), np.einsum("kqs,kqs->ks", rest, rest)


def _in_sample(dd: Array, md: Array) -> float:
    """The statistic of ams-scanner 0.1.3: fitted and scored on the same pairs, population σ."""
    n = len(dd)
    norm = np.sqrt(max(float(dd.sum()), 1e-24))
    middle, half = md.sum(axis=1) / norm, dd.sum(axis=1) / (2 * norm)
    pos, neg = middle + half, middle - half
    pooled = np.sqrt(max((pos.var() + neg.var()) / 2, 1e-24))
    return float((pos.mean() - neg.mean()) / pooled) if n else 0.0
