"""Fitting a linear probe, and scoring it on prompts that it was not fitted on.

A fitter is a callable `(features [n, d], unsafe [n], groups [n]) -> (weight [d], bias)`; whatever
it does, its scores are calibrated on out-of-fold ones (Platt 1999) and every metric comes from
folds that keep near-duplicate prompts together.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.errors import InputError
from modelassay.metrics import rank_auroc

Array = np.ndarray
Linear = tuple[Array, float]
Fitter = Callable[[Array, Array, Array], Linear]
REGULARISATION = (0.001, 0.01, 0.1)
"""Inverse strengths of the penalty that the inner cross-validation chooses from."""
FOLDS, INNER_FOLDS = 5, 4
MIN_PROMPTS = 10
"""Distinct prompts of each class; with fewer, folds have none to score."""


def fit_logistic(features: Array, unsafe: Array, groups: Array) -> Linear:
    """Logistic regression on standardised features; inner folds over prompts choose the penalty."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold

    mean, scale = _standard(features)
    x = (features - mean) / scale

    def fit(rows: Array, strength: float) -> LogisticRegression:
        model = LogisticRegression(C=strength, class_weight="balanced", tol=1e-3, max_iter=60)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # stopped before convergence: the penalty decides
            return model.fit(x[rows], unsafe[rows])

    folds = StratifiedGroupKFold(INNER_FOLDS).split(x, unsafe, groups)
    scores = np.zeros(len(REGULARISATION))
    for train, test in folds:
        if len(set(unsafe[test])) < 2 or len(set(unsafe[train])) < 2:
            continue
        for i, strength in enumerate(REGULARISATION):
            scores[i] += rank_auroc(fit(train, strength).decision_function(x[test]), unsafe[test])
    best = fit(np.arange(len(x)), REGULARISATION[int(scores.argmax())])
    weight = np.asarray(best.coef_)[0] / scale
    return weight, float(np.asarray(best.intercept_)[0] - weight @ mean)


def fit_means(features: Array, unsafe: Array, groups: Array) -> Linear:
    """The difference of the two classes' means of standardised features."""
    mean, scale = _standard(features)
    x = (features - mean) / scale
    weight = (x[unsafe].mean(0) - x[~unsafe].mean(0)) / scale
    return weight, float(-weight @ mean)


FITTERS: dict[str, Fitter] = {"logistic": fit_logistic, "means": fit_means}


@dataclass(frozen=True)
class Fitted:
    """A calibrated linear readout with scores it can be judged by."""

    weight: Array
    bias: float
    risk: Array
    """[row], each from a fit that saw no prompt like it."""


def fit_calibrated(features: Array, unsafe: Array, groups: Array, fitter: Fitter) -> Fitted:
    """Fits on all rows; calibrates, and scores each row, out of fold.

    Args:
        features: float32 [row, d].
        unsafe: bool [row].
        groups: int [row], equal for near-duplicate prompts.
        fitter: See this module.

    Raises:
        InputError: a class has too few prompts.
    """
    check_classes(unsafe, groups)
    score = np.zeros(len(unsafe))
    for train, test in folds_of(unsafe, groups):
        weight, bias = fitter(features[train], unsafe[train], groups[train])
        score[test] = _unit(features[train], weight, bias)(features[test])
    weight, bias = fitter(features, unsafe, groups)
    slope, offset = platt(score, unsafe)
    spread = float((features @ weight + bias).std()) or 1.0
    centre = float((features @ weight + bias).mean())
    return Fitted(
        weight=(slope / spread) * weight,
        bias=(slope / spread) * (bias - centre) + offset,
        risk=sigmoid(slope * score + offset),
    )


def folds_of(unsafe: Array, groups: Array) -> Sequence[tuple[Array, Array]]:
    """(train, test) row indices; a group is never in both."""
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return list(folds.split(np.zeros(len(unsafe)), unsafe, groups))


def leave_one_source_out(
    features: Array, unsafe: Array, groups: Array, sources: Array, fitter: Fitter
) -> dict[str, Array]:
    """Risk-ordered scores for each source from a fit that saw none of it.

    Returns:
        For each source, scores [row] of all rows from that fit: those of the source itself, and of
        the fifth of the other rows that was held out too, to compare it with; others are NaN.
    """
    _, test = folds_of(unsafe, groups)[0]
    other = np.zeros(len(unsafe), dtype=bool)
    other[test] = True
    scores: dict[str, Array] = {}
    for source in dict.fromkeys(sources.tolist()):
        left = sources == source
        # Near-duplicates of a left-out prompt in other sources are left out with it.
        train = ~left & ~other & ~np.isin(groups, groups[left])
        if len(set(unsafe[train])) < 2:
            continue
        weight, bias = fitter(features[train], unsafe[train], groups[train])
        kept = left | other
        scores[source] = np.where(kept, features @ weight + bias, np.nan)
    return scores


def check_classes(unsafe: Array, groups: Array) -> None:
    """Refuses data that folds cannot be made of.

    Raises:
        InputError: says which class is short of prompts.
    """
    for value, name in ((True, "unsafe"), (False, "safe")):
        n = len(np.unique(groups[unsafe == value]))
        if n < MIN_PROMPTS:
            raise InputError(
                f"The data has {n} distinct prompts labelled {name}; at least {MIN_PROMPTS} of each"
                " class are needed."
            )


def platt(score: Array, unsafe: Array) -> tuple[float, float]:
    """Slope and offset of the logistic curve from scores to risks (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    curve = LogisticRegression(C=1e3).fit(score[:, None], unsafe)
    return max(float(np.asarray(curve.coef_)[0, 0]), 1e-6), float(np.asarray(curve.intercept_)[0])


def _unit(train: Array, weight: Array, bias: float) -> Callable[[Array], Array]:
    """Scores on a common scale, so that those of different folds can be put together."""
    of_train = train @ weight + bias
    centre, spread = of_train.mean(), of_train.std() or 1.0
    return lambda features: (features @ weight + bias - centre) / spread


def _standard(features: Array) -> tuple[Array, Array]:
    scale = features.std(0)
    return features.mean(0), np.where(scale > 1e-6, scale, 1.0)


def sigmoid(x: Array) -> Array:
    """1 / (1 + e^-x), without overflow."""
    return 1 / (1 + np.exp(-np.clip(x, -500, 500)))
