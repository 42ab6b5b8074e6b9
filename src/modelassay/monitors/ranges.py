"""The range of each reading on ordinary use, wide enough for a false-alarm rate that is known.

Half of the calibration exchanges give each reading a range, from its lowest to its highest value.
The other half says how much wider all ranges have to be: by the factor that its most extreme
exchange needs, over all readings and tokens at once. A new exchange of the same kind is as likely
as any of those n to be the most extreme of all n + 1, so it leaves a range with a chance of at most
1 / (n + 1), whatever the distribution and however many readings there are (split conformal
prediction, Vovk et al. 2005). With fewer than 99 of them no rate below 1% can be promised.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Span = Literal["prompt", "start", "response"]
"""Where values are read: the tokens of the user's last message and what follows, the last one of
these, after which the response begins, and the response."""
Part = Literal["prompt", "response"]
PARTS: dict[Part, tuple[Span, ...]] = {"prompt": ("prompt", "start"), "response": ("response",)}
"""Spans for which one rate holds together."""
Spans = Mapping[Span, np.ndarray]
"""Of one exchange: float64 [token, reading], of one token or more."""
MOST = 1e6
"""Distances from the middle of a range that count as one: what is no number is beyond it too."""
NARROWEST = 1e-6
"""Of a reading's size: a range of no width would make an alarm of rounding."""


@dataclass(frozen=True)
class Ranges:
    """Lowest and highest values of ordinary use."""

    bounds: Mapping[Span, np.ndarray]
    """float64 [2, reading]."""
    widened: Mapping[Part, float]
    """How many times wider they are than on the exchanges that gave them."""
    n_first: int
    """Exchanges that gave them."""
    n_second: int
    """Exchanges by which they were widened."""


def promised_rate(n: int) -> float:
    """The share of new exchanges that leave ranges widened by `n`, at most."""
    return 1 / (n + 1)


def fit_ranges(first: Sequence[Spans], second: Sequence[Spans]) -> Ranges:
    """Ranges that a new exchange leaves with a chance of at most `promised_rate(len(second))`.

    Args:
        first: Exchanges that give the ranges.
        second: Others, by which these are widened.
    """
    bounds: dict[Span, np.ndarray] = {}
    widened: dict[Part, float] = {}
    for part, together in PARTS.items():
        own: dict[Span, np.ndarray] = {}
        for span in together:
            if rows := [each[span] for each in first if span in each]:
                values = np.concatenate(rows)
                own[span] = np.stack([values.min(axis=0), values.max(axis=0)])
        if own:  # an exchange without a response leaves no range there
            farthest = [d.max() for each in second for d in distances(own, each)]
            widened[part] = max(1.0, *map(float, farthest))
            bounds |= {span: _wider(each, widened[part]) for span, each in own.items()}
    return Ranges(bounds, widened, len(first), len(second))


def distances(bounds: Mapping[Span, np.ndarray], spans: Spans) -> list[np.ndarray]:
    """How far values lie from the middles of their ranges, which end at 1.

    Args:
        bounds: [2, reading] of each span.
        spans: An exchange's values; spans without a range are left out.

    Returns:
        For each span [token, reading], at most `MOST`.
    """
    return [_distance(bounds[span], values) for span, values in spans.items() if span in bounds]


def _distance(bounds: np.ndarray, values: np.ndarray) -> np.ndarray:
    middle, half = _middle(bounds)
    return np.nan_to_num(np.abs(values - middle) / half, nan=MOST, posinf=MOST).clip(max=MOST)


def _middle(bounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    middle, half = bounds.mean(axis=0), (bounds[1] - bounds[0]) / 2
    return middle, np.maximum(half, NARROWEST * (np.abs(middle) + NARROWEST))


def _wider(bounds: np.ndarray, factor: float) -> np.ndarray:
    middle, half = _middle(bounds)
    return np.stack([middle - factor * half, middle + factor * half])
