"""How well a label predicts, on text that it was not made from, when its feature fires.

A label names tokens. It predicts that the feature fires on them (or after them) and nowhere else.
Its reliability is the balanced accuracy of that prediction over held-out tokens: the mean of the
share of firings that it foresaw and the share of silences that it foresaw. For a prediction that
says yes or no this is the AUROC as well: 0.5 is chance, 1 is perfect, whatever the density.

What it cannot tell: whether a feature that is not about single tokens (a topic, a tone, a place in
a text) is sensible; its label of tokens is then poor, and the number says so of the label, not of
the feature. It says nothing about what the feature does to the model, and holds for text like the
held-out text only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from modelassay.sae.evidence import Fired
from modelassay.statistics import N_CLUSTER_RESAMPLES, SEED

GROUPS = 50
"""Held-out texts are dealt into so many groups, which are what an interval draws from: tokens of
one text are not independent."""
MIN_GROUPS = 5
"""A feature that fires in fewer of them has no interval."""
AT_ONCE = 4096


@dataclass(frozen=True)
class Counts:
    """Held-out tokens, by group of texts and feature."""

    tokens: np.ndarray
    """int64 [group]."""
    fired: np.ndarray
    """int32 [group, width]."""
    predicted: np.ndarray
    """int32 [group, width], tokens on which the label says that the feature fires."""
    both: np.ndarray
    """int32 [group, width]."""


@dataclass(frozen=True)
class Scores:
    """Reliability of every label; NaN where it could not be measured."""

    value: np.ndarray
    """float64 [width]."""
    low: np.ndarray
    high: np.ndarray
    """95% bootstrap interval over groups of texts."""
    n_fired: np.ndarray
    """int64 [width], held-out tokens on which the feature fires."""
    n_tokens: int


def count_predictions(
    parts: Iterable[Fired], kinds: np.ndarray, on: Any, after: Any, width: int
) -> Counts:
    """Holds labels against what features do on held-out text.

    Args:
        parts: The text.
        kinds: int [vocabulary], tokens that count as one have the same number.
        on: Sparse bool [kind, width], whether a feature is said to fire on tokens of a kind.
        after: The same, of the token before.
        width: Features.
    """
    tokens = np.zeros(GROUPS, dtype=np.int64)
    fired, predicted, both = (np.zeros((GROUPS, width), dtype=np.int32) for _ in range(3))
    for part in parts:
        group = part.text % GROUPS
        read = kinds[np.array(part.ids)]
        said = on[read[1:]].maximum(after[read[:-1]])
        firing = csr_matrix((part.features > 0).numpy())
        tokens[group] += len(part.features)
        fired[group] += _per_feature(firing, width)
        predicted[group] += _per_feature(said, width)
        both[group] += _per_feature(said.multiply(firing).tocsr(), width)
    return Counts(tokens, fired, predicted, both)


def _per_feature(cells: Any, width: int) -> np.ndarray:
    return np.bincount(cells.indices[cells.data != 0], minlength=width).astype(np.int32)


def score_labels(counts: Counts) -> Scores:
    """Balanced accuracy of every label, with its interval.

    A feature that never fires, fires always, or has a label that names no token has no score.
    """
    n = int(counts.tokens.sum())
    n_fired = counts.fired.sum(axis=0, dtype=np.int64)
    width = len(n_fired)
    scored = (n_fired > 0) & (n_fired < n) & (counts.predicted.sum(axis=0) > 0)
    value = np.where(scored, _balanced(counts, np.ones((1, len(counts.tokens))))[0], np.nan)
    low, high = np.full(width, np.nan), np.full(width, np.nan)
    drawn_from = int((counts.tokens > 0).sum())
    enough = scored & ((counts.fired > 0).sum(axis=0) >= MIN_GROUPS)
    if drawn_from >= MIN_GROUPS:
        there = np.flatnonzero(counts.tokens > 0)
        rng = np.random.default_rng(SEED)
        share = np.full(drawn_from, 1 / drawn_from)
        draws = rng.multinomial(drawn_from, share, size=N_CLUSTER_RESAMPLES).astype(np.float32)
        for columns in np.array_split(np.flatnonzero(enough), max(1, enough.sum() // AT_ONCE)):
            part = Counts(
                counts.tokens[there],
                counts.fired[np.ix_(there, columns)],
                counts.predicted[np.ix_(there, columns)],
                counts.both[np.ix_(there, columns)],
            )
            # A draw without a firing cannot be scored; with firings in five groups it is rare.
            low[columns], high[columns] = np.nanquantile(
                _balanced(part, draws), [0.025, 0.975], axis=0
            )
    return Scores(value, low, high, n_fired, n)


def _balanced(counts: Counts, weights: np.ndarray) -> np.ndarray:
    """Balanced accuracy [draw, width] with groups weighted [draw, group]; NaN without firings."""
    tokens = weights @ counts.tokens[:, None]
    fired, predicted, both = (
        weights @ part.astype(np.float32) for part in (counts.fired, counts.predicted, counts.both)
    )
    silent = tokens - fired
    with np.errstate(invalid="ignore", divide="ignore"):
        return (both / fired + 1 - (predicted - both) / silent) / 2
