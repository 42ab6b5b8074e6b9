"""Which features tell the two sides of a contrast set apart, scored on pairs that chose none.

All features are tested by sign flips over pairs and corrected together. How well one tells the
sides apart is another question, and the best of thousands would look better than it is. So each
half of the pairs chooses the features that separate it most, and the direction in which they do;
they are scored on the other half. What both halves choose is scored on all pairs, each by the
direction of the other half.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from modelassay.statistics import (
    auroc,
    benjamini_hochberg,
    bootstrap_interval,
    sign_flip_p_values,
    wilson_interval,
)

MIN_PAIRS = 6
"""Pairs in which a feature must differ to be tested: fewer signs cannot give p < 0.03."""
Q_LEVEL = 0.05
HALVES = (slice(0, None, 2), slice(1, None, 2))


@dataclass(frozen=True)
class Separating:
    """How a feature tells the two sides of a contrast set apart."""

    feature: int
    auroc: float
    """Chance that it fires more on the side for which it was chosen, on pairs that did not choose
    it."""
    auroc_interval: tuple[float, float]
    """95% bootstrap interval over pairs, where none is wrong Wilson's."""
    n_held_out: int
    """Pairs that the AUROC is of."""
    difference: float
    """Mean activation on the positive side minus that on the negative, a token, over all pairs."""
    p_value: float
    q_value: float


def find_separating(
    positive: Any, negative: Any, most: int
) -> tuple[tuple[Separating, ...], np.ndarray]:
    """Features that tell two sides apart beyond chance.

    Args:
        positive: Sparse [pair, feature], mean activations on one side, none below 0.
        negative: The same on the other.
        most: Features that each half of the pairs may choose.

    Returns:
        Those chosen and beyond chance (q < 0.05), the best first; and the indices of all that are
        beyond chance, whether chosen or not.
    """
    positive, negative = positive.tocsc(), negative.tocsc()
    difference = (positive - negative).tocsc()
    difference.eliminate_zeros()
    n_firing = int(np.count_nonzero(np.diff((positive + negative).tocsc().indptr)))
    tested = np.flatnonzero(np.diff(difference.indptr) >= MIN_PAIRS)
    if not len(tested):
        return (), tested
    p_values = np.ones(n_firing)  # a feature that fires too seldom to be tested counts with p = 1
    p_values[: len(tested)] = sign_flip_p_values(difference[:, tested])
    q_values = benjamini_hochberg(p_values)

    a, b = positive[:, tested].toarray(), negative[:, tested].toarray()
    leaning = np.array([auroc(a[half], b[half], axis=0) - 0.5 for half in HALVES])
    chosen = [set(np.argsort(-np.abs(row), kind="stable")[:most].tolist()) for row in leaning]
    found = []
    for i in sorted(chosen[0] | chosen[1]):
        if q_values[i] >= Q_LEVEL:
            continue
        sides = []
        for side in (a, b):
            # Each half is scored in the direction of the other, if that chose the feature.
            scored = [np.sign(leaning[k, i]) * side[HALVES[1 - k], i] for k in (0, 1)]
            sides.append(np.concatenate([scored[k] for k in (0, 1) if i in chosen[k]]))
        value, interval = _auroc_interval(*sides)
        found.append(
            Separating(
                feature=int(tested[i]),
                auroc=value,
                auroc_interval=interval,
                n_held_out=len(sides[0]),
                difference=float((a[:, i] - b[:, i]).mean()),
                p_value=float(p_values[i]),
                q_value=float(q_values[i]),
            )
        )
    beyond = tested[q_values[: len(tested)] < Q_LEVEL]
    return tuple(sorted(found, key=lambda f: (-f.auroc, f.q_value, f.feature))), beyond


def _auroc_interval(
    positive: np.ndarray, negative: np.ndarray
) -> tuple[float, tuple[float, float]]:
    value = float(auroc(positive, negative))
    low, high = bootstrap_interval(positive, negative, auroc)
    if high > low:
        return value, (low, high)
    n = len(positive)  # no resample differs: the bootstrap knows nothing of chance
    least, largest = wilson_interval(round(value * n), n)
    return value, (min(low, least), max(high, largest))
