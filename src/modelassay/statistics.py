"""The statistics that all measures share: AUROC, intervals and tests, for plain numpy arrays.

scipy computes what it has (ranks, Wilson's interval, the bootstrap, the binomial test, the false
discovery rate). The AUROC is read off scipy's ranks: scikit-learn's `roc_auc_score` gives the same
number 10 to 40 times more slowly, and a bootstrap asks for thousands of them.

Data that are looked at again and again, to stop once they suffice, get likelihood intervals: a
value is left out when the data are LOOK_RATIO times less likely under it than under the best one.
Wilson's interval at each look would leave out a true value far more often than it says.

Rows that share a prompt are not independent. Their intervals come from resampling whole prompts (a
cluster bootstrap), which scipy does not have.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

Array = np.ndarray
Interval = tuple[float, float]
Statistic = Callable[[Array, Array], Array]
"""Of two samples along the last axis."""
FALSE_POSITIVE_RATES = (0.01, 0.001)
N_RESAMPLES = 2000
"""Of a bootstrap of single rows or pairs."""
N_CLUSTER_RESAMPLES = 1000
N_FLIPS = 2_000
N_FLIPS_FINE = 100_000
"""For columns that no coarse flip reaches: many columns together ask for small p-values."""
COLUMNS_AT_ONCE = 1024
N_BINS = 10
LOOK_RATIO = 80.0
"""Likelihood ratio that leaves a value out of an interval that is looked at often (Royall 1997).
Over the looks of a scan the true value is left out on either side in at most 1.6% of cases:
`benchmarks/stopping.py` computes it exactly."""
SEED = 0


@dataclass(frozen=True)
class BinaryMetrics:
    """Scores of positives against negatives."""

    auroc: float
    interval: Interval
    tpr_at_fpr: dict[str, float | None]
    """Share of positives above the score that this share of negatives exceeds; None where there are
    too few negatives to tell such a share."""
    tpr_interval: dict[str, Interval | None]
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
    tpr: dict[str, float | None] = dict.fromkeys(map(str, FALSE_POSITIVE_RATES))
    tpr_interval: dict[str, Interval | None] = dict.fromkeys(tpr)
    for rate in FALSE_POSITIVE_RATES:
        if (~positive).sum() >= 1 / rate:
            tpr[str(rate)] = tpr_at(risk, positive, rate)
            tpr_interval[str(rate)] = cluster_interval(
                lambda rows, rate=rate: tpr_at(risk[rows], positive[rows], rate), positive, groups
            )
    value, interval = rank_auroc_interval(risk, positive, groups)
    return BinaryMetrics(
        auroc=value,
        interval=interval,
        tpr_at_fpr=tpr,
        tpr_interval=tpr_interval,
        calibration_error=calibration_error(risk, positive),
        n=len(risk),
        n_positive=int(positive.sum()),
        n_prompts=len(np.unique(groups)),
    )


def auroc(positive: Array, negative: Array, axis: int = -1) -> Array:
    """Chance that a positive scores above a negative, ties counting half (Mann-Whitney U)."""
    from scipy.stats import rankdata

    n_pos, n_neg = positive.shape[axis], negative.shape[axis]
    ranks = rankdata(np.concatenate([positive, negative], axis=axis), axis=axis)
    rank_sum = np.take(ranks, np.arange(n_pos), axis=axis).sum(axis=axis)
    return (rank_sum - n_pos * (n_pos + 1) / 2) / (n_pos * n_neg)


def rank_auroc(risk: Array, positive: Array) -> float:
    """`auroc` of scores [row] and the truth, bool [row]."""
    return float(auroc(risk[positive], risk[~positive]))


def rank_auroc_interval(risk: Array, positive: Array, groups: Array) -> tuple[float, Interval]:
    """`rank_auroc` and its `cluster_interval`."""
    interval = cluster_interval(
        lambda rows: rank_auroc(risk[rows], positive[rows]), positive, groups
    )
    return rank_auroc(risk, positive), interval


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
) -> Interval:
    """95% percentile bootstrap interval, resampling whole groups within each class.

    Where every resample gives the same, as of a few rows without an error, the bootstrap knows
    nothing of chance; the interval is then Wilson's for a share of the smaller class's groups.

    Args:
        statistic: Of row indices, a share in 0 … 1.
        positive: bool [row]; resampling keeps both classes present.
        groups: int [row].
    """
    rng = np.random.default_rng(SEED)
    classes = []
    for value in (False, True):
        rows = np.flatnonzero(positive == value)
        rows = rows[np.argsort(groups[rows], kind="stable")]
        _, starts, sizes = np.unique(groups[rows], return_index=True, return_counts=True)
        classes.append((rows, starts, sizes))
    values = []
    for _ in range(N_CLUSTER_RESAMPLES):
        drawn = []
        for rows, starts, sizes in classes:
            chosen = rng.integers(0, len(starts), size=len(starts))
            length = sizes[chosen]
            within = np.arange(length.sum()) - np.repeat(length.cumsum() - length, length)
            drawn.append(rows[np.repeat(starts[chosen], length) + within])
        values.append(statistic(np.concatenate(drawn)))
    low, high = (float(value) for value in np.quantile(values, [0.025, 0.975]))
    if high > low:
        return low, high
    n = min(len(starts) for _, starts, _ in classes)
    least, largest = wilson_interval(round(low * n), n)
    return min(low, least), max(high, largest)


def bootstrap_interval(
    positive: Array, negative: Array, statistic: Statistic, *, paired: bool = True
) -> Interval:
    """95% interval of a two-sample statistic by resampling pairs (or each sample by itself).

    The percentile bootstrap: bias-corrected variants break down when a statistic sits at its bound,
    as an AUROC of 1 does. A sample of one row knows nothing of chance: both ends are the statistic.
    """
    from scipy.stats import bootstrap

    if min(len(positive), len(negative)) < 2:
        value = float(statistic(positive, negative))
        return value, value
    found = bootstrap(
        (positive, negative),
        statistic,
        paired=paired,
        n_resamples=N_RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(SEED),
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def wilson_interval(successes: int, n: int) -> Interval:
    """95% Wilson score interval of a proportion."""
    from scipy.stats import binomtest

    interval = binomtest(successes, n).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)


def newcombe_interval(k1: int, n1: int, k2: int, n2: int) -> Interval:
    """95% interval of a difference of proportions k1/n1 - k2/n2 (Newcombe 1998, method 10)."""
    return difference_interval(k1 / n1, wilson_interval(k1, n1), k2 / n2, wilson_interval(k2, n2))


def difference_interval(one: float, of_one: Interval, other: float, of_other: Interval) -> Interval:
    """95% interval of a difference of two estimates, of which each has one (MOVER, Zou 2008).

    It takes them for independent: of two that were read on the same prompts it is too wide rather
    than too narrow.
    """
    below = np.hypot(one - of_one[0], of_other[1] - other)
    above = np.hypot(of_one[1] - one, other - of_other[0])
    return float(one - other - below), float(one - other + above)


def repeated_interval(successes: int, n: int) -> Interval:
    """Likelihood interval of a proportion, for data that are looked at repeatedly."""

    def drop(p: float) -> float:
        here = _log_likelihood(successes, n, p)
        return float(_log_likelihood(successes, n, successes / n) - here)

    return _reached(drop, successes / n, 0.0, 1.0)


def repeated_difference_interval(k1: int, n1: int, k2: int, n2: int) -> Interval:
    """The same of a difference of proportions k1/n1 - k2/n2, by its profile likelihood."""
    return _reached(
        lambda difference: float(likelihood_drop(k1, n1, k2, n2, difference)),
        k1 / n1 - k2 / n2,
        -1.0,
        1.0,
    )


def _reached(drop: Callable[[float], float], best: float, least: float, most: float) -> Interval:
    """Where a drop in log-likelihood from the best value, which it is 0 at, reaches LOOK_RATIO."""
    from scipy.optimize import brentq

    def end(edge: float) -> float:
        inside = edge + _EDGE if edge < best else edge - _EDGE
        if abs(best - edge) <= 2 * _EDGE:
            return edge
        excess: Any = lambda value: drop(value) - np.log(LOOK_RATIO)  # noqa: E731
        root: Any = brentq(excess, inside, best, xtol=1e-7)
        return float(root)

    return end(least), end(most)


_EDGE = 1e-9
"""Distance from 0 and 1 at which a likelihood is as good as at the end."""


def likelihood_drop(k1: Any, n1: int, k2: Any, n2: int, difference: float) -> Array:
    """Log-likelihood that counts lose at best if p1 - p2 is this difference, in nats.

    Args:
        k1: Successes of n1, of any shape.
        n1: Trials.
        k2: Successes of n2, broadcast with k1.
        n2: Trials.
        difference: In (-1, 1).
    """
    k1, k2 = np.broadcast_arrays(np.asarray(k1, float), np.asarray(k2, float))
    # The likelihood is concave in p2 along the line p1 = p2 + difference: halve where it rises.
    low = np.full(k1.shape, max(0.0, -difference))
    high = np.full(k1.shape, min(1.0, 1.0 - difference))
    for _ in range(40):
        p2 = (low + high) / 2
        p1 = np.clip(p2 + difference, _EDGE, 1 - _EDGE)
        p2 = np.clip(p2, _EDGE, 1 - _EDGE)
        rises = k1 / p1 + k2 / p2 > (n1 - k1) / (1 - p1) + (n2 - k2) / (1 - p2)
        low, high = np.where(rises, p2, low), np.where(rises, high, p2)
    p2 = (low + high) / 2
    most = _log_likelihood(k1, n1, k1 / n1) + _log_likelihood(k2, n2, k2 / n2)
    here = _log_likelihood(k1, n1, p2 + difference) + _log_likelihood(k2, n2, p2)
    return np.maximum(most - here, 0.0)


def _log_likelihood(k: Any, n: int, p: Any) -> Array:
    from scipy.special import xlog1py, xlogy

    p = np.clip(p, 0.0, 1.0)
    return xlogy(k, p) + xlog1py(n - k, -p)


def mcnemar_p_value(lost: int, gained: int) -> float:
    """Exact McNemar test of pairs that changed one way against those that changed the other."""
    from scipy.stats import binomtest

    return float(binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


@dataclass(frozen=True)
class MeanChange:
    """Mean of paired differences, candidate minus base."""

    mean: float
    interval: Interval | None
    """95% t-interval; None of a single difference."""
    t: float
    """Mean over its standard error."""
    spread: float
    """Standard deviation of the differences."""
    n: int

    def told(self, unit: str, digits: int = 2) -> str:
        """The mean with its interval and n, in words."""
        form = f"+.{digits}f"
        inside = f"n = {self.n}"
        if self.interval is not None:
            low, high = self.interval
            inside = f"{low:{form}} to {high:{form}}, {inside}"
        return f"{self.mean:{form}} {unit} ({inside})"


def mean_change(values: Array) -> MeanChange:
    """Mean of paired differences [n] with a t-interval, of zero width where all are equal."""
    from scipy.stats import t as student

    n = len(values)
    mean = float(values.mean())
    spread = float(values.std(ddof=1)) if n > 1 else 0.0
    error = spread / np.sqrt(n)
    if n == 1:
        return MeanChange(mean, None, 0.0, spread, n)
    if error == 0:
        return MeanChange(mean, (mean, mean), 0.0, spread, n)
    half = float(student.ppf(0.975, n - 1)) * error
    return MeanChange(mean, (mean - half, mean + half), mean / error, spread, n)


@dataclass(frozen=True)
class Prediction:
    """What one more value of a sample would be, by its mean and spread."""

    mean: float
    error: float
    """Standard deviation of one more value around the mean, that of the mean included."""
    most: float
    """Distance from the mean of the farthest value of the sample."""
    n: int

    @property
    def interval(self) -> Interval:
        """95% prediction interval, of normal values."""
        from scipy.stats import t as student

        half = float(student.ppf(0.975, self.n - 1)) * self.error
        return self.mean - half, self.mean + half

    def p_value(self, value: float) -> float:
        """Two-sided, of one more value of the sample's kind; at least that of its rank.

        A normal tail alone would call what a sample with a long tail brings by itself, so a value
        nearer to the mean than the farthest of the sample has the p-value of a rank, 1/(n + 1) at
        least.
        """
        from scipy.stats import t as student

        away = abs(value - self.mean)
        if self.error == 0:
            return 1.0 if away == 0 else 1 / (self.n + 1)
        tail = 2 * float(student.sf(away / self.error, self.n - 1))
        return tail if away > self.most else max(tail, 1 / (self.n + 1))

    def p_value_above(self, value: float) -> float:
        """The same of a value that may only be called for being high.

        One below the mean may lie far from it, and is no more than the sample's kind. Above it the
        p-value is the two-sided one, so that what is called at 5% lies outside of `interval`.
        """
        return self.p_value(value) if value > self.mean else 1.0


def predict(sample: Array) -> Prediction:
    """What one more value of a sample [n], of two or more, would be."""
    n, mean = len(sample), float(sample.mean())
    error = float(sample.std(ddof=1)) * float(np.sqrt(1 + 1 / n))
    return Prediction(mean, error, float(np.abs(sample - mean).max()), n)


def benjamini_hochberg(p_values: Array) -> Array:
    """False discovery rate at which each test would be called (Benjamini & Hochberg 1995)."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(p_values) if len(p_values) else p_values


def sign_flip_p_values(differences: Any, seed: int = SEED) -> Array:
    """Two-sided p-values of paired differences by random sign flips.

    Args:
        differences: Sparse [prompt, column].
        seed: Of the flips.

    Returns:
        [column]; the observed signs count as one flip (Phipson & Smyth 2010).
    """
    rng = np.random.default_rng(seed)
    observed = np.abs(np.asarray(differences.sum(axis=0)).ravel()) * (1 - 1e-9)
    p = np.ones(differences.shape[1])
    live = np.arange(differences.shape[1])
    for n_flips in (N_FLIPS, N_FLIPS_FINE):
        columns = differences[:, live].toarray() if n_flips == N_FLIPS_FINE else None
        reached = np.zeros(len(live))
        for start in range(0, n_flips, N_FLIPS):
            size = (min(N_FLIPS, n_flips - start), differences.shape[0])
            signs = rng.choice([-1.0, 1.0], size=size)
            for first in range(0, len(live), COLUMNS_AT_ONCE):
                some = slice(first, first + COLUMNS_AT_ONCE)
                block = (
                    differences[:, live[some]].toarray() if columns is None else columns[:, some]
                )
                reached[some] += (np.abs(signs @ block) >= observed[live[some]]).sum(axis=0)
        p[live] = (1 + reached) / (n_flips + 1)
        live = live[reached == 0]
        if not len(live):
            break
    return p


def sign_flip_p_value(differences: Array) -> float:
    """`sign_flip_p_values` of one column [prompt]."""
    from scipy.sparse import csr_matrix

    return float(sign_flip_p_values(csr_matrix(differences[:, None]))[0])
