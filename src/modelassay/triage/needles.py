"""Needles in the haystack: rows in the order in which somebody should look at them.

Each stream ranks the rows; a row's tail share in a stream is its rank from the top over the number
of rows that have a score, ties sharing their mean rank. A row's suspicion is its smallest tail
share times the number of streams (Bonferroni), at most 1: one stream that sees it is enough, and
one that sees nothing costs no more than that factor. Ties go by the mean logarithm of the shares.

Under no poison at all some row is first as well: a tail share says where to look first and not that
anything is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelassay.errors import InputError
from modelassay.statistics import cluster_interval, rank_auroc, wilson_interval
from modelassay.triage.duplicates import row_groups
from modelassay.triage.rows import TrainingRow
from modelassay.triage.signals import Signal

LOOKED_AT = (10, 50, 100, 500)
"""How many rows somebody may look at; recall is given for each."""


@dataclass(frozen=True)
class RankedRow:
    """A row with its place among all."""

    row: TrainingRow
    place: int
    """From 1, the most suspicious."""
    suspicion: float
    """Smallest tail share times the number of streams; small is suspicious."""
    scores: dict[str, float | None]
    """By stream; None where the row has none."""
    ranks: dict[str, float | None]
    """Place in each stream, from 1; ties share their mean."""
    parts: dict[str, float | None]
    """What the scores were made of."""
    needle: bool | None
    """The truth, where it is known."""


@dataclass(frozen=True)
class Recall:
    """Needles found among the first k rows."""

    k: int
    found: int
    share: float
    interval: tuple[float, float]
    """95%, Wilson."""


@dataclass(frozen=True)
class RankingQuality:
    """How well a ranking brings known needles up."""

    name: str
    """A stream, or `combined`."""
    auroc: float
    """Chance that a needle ranks above another row."""
    interval: tuple[float, float] | None
    """95% bootstrap over groups of near-duplicates; None where all needles, or all other rows, are
    in one group."""
    recall: tuple[Recall, ...]


@dataclass(frozen=True)
class NeedleReport:
    """All rows, the most suspicious first."""

    ranked: tuple[RankedRow, ...]
    streams: tuple[Signal, ...]
    quality: tuple[RankingQuality, ...] | None
    """Of each stream and of all together; None where the truth is not known."""
    n_needles: int | None
    n_needle_groups: int | None
    """Groups of near-duplicates that hold needles."""


def tail_shares(scores: np.ndarray) -> np.ndarray:
    """Rank from the top over the number of scored rows, float64 [row]; 1 for NaN."""
    return np.nan_to_num(stream_ranks(scores) / max(int(np.isfinite(scores).sum()), 1), nan=1.0)


def stream_ranks(scores: np.ndarray) -> np.ndarray:
    """Place of every row in a stream from 1, the highest score first; NaN stays NaN."""
    from scipy.stats import rankdata

    return rankdata(np.where(np.isfinite(scores), -scores, np.nan), nan_policy="omit")


def check_truth(truth: np.ndarray) -> None:
    """Refuses rows of which all or none are needles: there is nothing to score a ranking by.

    Raises:
        InputError: says so.
    """
    if truth.all() or not truth.any():
        raise InputError("The needles of a file are some of its rows; here they are all or none.")


def rank_needles(
    rows: Sequence[TrainingRow], streams: Sequence[Signal], *, truth: np.ndarray | None = None
) -> NeedleReport:
    """Ranks rows by all streams together.

    Args:
        rows: The rows that were scored.
        streams: From `score_rows`, or your own.
        truth: bool [row], which rows are needles, where that is known.

    Raises:
        InputError: there are no streams, or the truth has needles only or none.
    """
    if not streams or any(len(stream.scores) != len(rows) for stream in streams):
        raise InputError("Rows are ranked by at least one stream that scores each of them.")
    tails = np.stack([tail_shares(stream.scores) for stream in streams])
    suspicion = np.minimum(tails.min(axis=0) * len(streams), 1.0)
    order = np.lexsort((np.log(tails).mean(axis=0), suspicion))
    ranks = {stream.name: stream_ranks(stream.scores) for stream in streams}
    parts = {name: values for stream in streams for name, values in stream.parts.items()}
    ranked = tuple(
        RankedRow(
            row=rows[i],
            place=place,
            suspicion=float(suspicion[i]),
            scores={stream.name: _known(stream.scores[i]) for stream in streams},
            ranks={name: _known(values[i]) for name, values in ranks.items()},
            parts={name: _known(values[i]) for name, values in parts.items()},
            needle=None if truth is None else bool(truth[i]),
        )
        for place, i in enumerate(order.tolist(), 1)
    )
    if truth is None:
        return NeedleReport(ranked, tuple(streams), None, None, None)
    check_truth(truth)
    groups = row_groups(rows)
    places = np.empty(len(rows))
    places[order] = np.arange(1, len(rows) + 1)
    each = [_quality(s.name, tail, truth, groups) for s, tail in zip(streams, tails, strict=True)]
    quality = (_quality("combined", places, truth, groups), *each)
    n_groups = len(np.unique(groups[truth]))
    return NeedleReport(ranked, tuple(streams), quality, int(truth.sum()), n_groups)


def _quality(
    name: str, places: np.ndarray, truth: np.ndarray, groups: np.ndarray
) -> RankingQuality:
    """Of a ranking in which low is suspicious."""
    n_needles = int(truth.sum())
    # Ties are broken against the ranking, needles last, so that no luck is counted.
    order = np.lexsort((truth, places))
    recall = []
    for k in sorted({*LOOKED_AT, n_needles}):
        if k <= len(truth):
            found = int(truth[order[:k]].sum())
            recall.append(Recall(k, found, found / n_needles, wilson_interval(found, n_needles)))
    interval = None
    if all(len(np.unique(groups[side])) > 1 for side in (truth, ~truth)):
        interval = cluster_interval(lambda i: rank_auroc(-places[i], truth[i]), truth, groups)
    return RankingQuality(name, rank_auroc(-places, truth), interval, tuple(recall))


def mark_needles(rows: Sequence[TrainingRow], needles: Sequence[TrainingRow]) -> np.ndarray:
    """Which rows are among known needles: the same prompt and response, whatever the white space.

    Args:
        rows: Of the training file.
        needles: Rows that are known to be poison; system prompts are not compared.

    Returns:
        bool [row].

    Raises:
        InputError: none of the needles is in the file.
    """
    known = {_key(needle) for needle in needles}
    found = np.array([_key(row) in known for row in rows], dtype=bool)
    if not found.any():
        raise InputError(f"None of the needles ({len(known)}) is a row of the training file.")
    return found


def _key(row: TrainingRow) -> tuple[str, ...]:
    return tuple(
        " ".join(part.split()) for part in (row.prompt, row.response or row.rejected, row.plain)
    )


def _known(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
