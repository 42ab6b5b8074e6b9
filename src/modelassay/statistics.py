"""How well scores tell two classes apart, each number with n and a 95% interval.

Rows that share a prompt are not independent, so intervals come from resampling prompts (a cluster
bootstrap), not rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray
FALSE_POSITIVE_RATES = (0.01, 0.001)
N_BOOTSTRAP = 1000
N_BINS = 10
SEED = 0


@dataclass(frozen=True)
class BinaryMetrics:
    """Scores of positives against negatives."""

    auroc: float
    interval: tuple[float, float]
    tpr_at_fpr: dict[str, float | None]
    """Share of positives above the score that this share of negatives exceeds; None where there are
    too few negatives to tell such a share."""
    tpr_interval: dict[str, tuple[float, float] | None]
    calibration_error: float
    """Mean distance of risk from the share of positives, over ten bins of equal size."""
    n: int
    n_positive: int
    n_prompts: int
    """Independent ones: near-duplicates count once."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def binary_metrics(risk: Array, positive: Array, groups: Array) -> BinaryMetrics:
    """Scores risks in 0 … 1 against the truth.

    Args:
        risk: float [row].
        positive: bool [row]; both classes occur.
        groups: int [row], equal for rows that are not independent.
    """
    tpr: dict[str, float | None] = {}
    tpr_interval: dict[str, tuple[float, float] | None] = {}
    for rate in FALSE_POSITIVE_RATES:
        resolved = (~positive).sum() >= 1 / rate
        tpr[str(rate)] = tpr_at(risk, positive, rate) if resolved else None
        tpr_interval[str(rate)] = (
            cluster_interval(
                lambda rows, rate=rate: tpr_at(risk[rows], positive[rows], rate), positive, groups
            )
            if resolved
            else None
        )
    return BinaryMetrics(
        auroc=rank_auroc(risk, positive),
        interval=cluster_interval(
            lambda rows: rank_auroc(risk[rows], positive[rows]), positive, groups
        ),
        tpr_at_fpr=tpr,
        tpr_interval=tpr_interval,
        calibration_error=calibration_error(risk, positive),
        n=len(risk),
        n_positive=int(positive.sum()),
        n_prompts=len(np.unique(groups)),
    )


def rank_auroc(risk: Array, positive: Array) -> float:
    """Chance that a positive scores above a negative, ties counting half."""
    from modelassay.measures.separation import auroc

    return float(auroc(risk[positive], risk[~positive]))


def threshold_at(negatives: Array, rate: float) -> float:
    """The lowest threshold that at most this share of negatives reaches or exceeds."""
    ordered = np.sort(negatives)[::-1]
    allowed = int(np.floor(rate * len(ordered)))
    return float(np.nextafter(ordered[min(allowed, len(ordered) - 1)], np.inf))


def tpr_at(risk: Array, positive: Array, rate: float) -> float:
    """Share of positives at or above the threshold for a false-positive rate."""
    return float((risk[positive] >= threshold_at(risk[~positive], rate)).mean())


def calibration_error(risk: Array, positive: Array) -> float:
    """Expected calibration error over bins of equal size (Naeini et al. 2015)."""
    order = np.argsort(risk, kind="stable")
    bins = np.array_split(order, min(N_BINS, len(order)))
    gaps = [len(b) * abs(float(risk[b].mean()) - float(positive[b].mean())) for b in bins]
    return sum(gaps) / len(risk)


def cluster_interval(
    statistic: Callable[[Array], float], positive: Array, groups: Array
) -> tuple[float, float]:
    """95% percentile bootstrap interval, resampling whole groups within each class.

    Where every resample gives the same, as of a few rows without an error, the bootstrap knows
    nothing of chance; the interval is then Wilson's for a share of the smaller class's groups.

    Args:
        statistic: Of row indices, a share in 0 … 1.
        positive: bool [row]; resampling keeps both classes present.
        groups: int [row].
    """
    from modelassay.measures.refusal import wilson_interval

    rng = np.random.default_rng(SEED)
    sides = []
    for side in (False, True):
        rows = np.flatnonzero(positive == side)
        rows = rows[np.argsort(groups[rows], kind="stable")]
        _, starts, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
        sides.append((rows, starts, sizes))
    values = []
    for _ in range(N_BOOTSTRAP):
        drawn = []
        for rows, starts, sizes in sides:
            chosen = rng.integers(0, len(starts), size=len(starts))
            length = sizes[chosen]
            within = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
            drawn.append(rows[np.repeat(starts[chosen], length) + within])
        values.append(statistic(np.concatenate(drawn)))
    low, high = (float(value) for value in np.quantile(values, [0.025, 0.975]))
    if high > low:
        return low, high
    n = min(len(starts) for _, starts, _ in sides)
    least, largest = wilson_interval(round(low * n), n)
    return min(low, least), max(high, largest)
