"""The risk of whole responses, read token by token with the reader that a guard serves them with.

A response is blocked by its worst moment, so thresholds are set, and rates counted, on the highest
risk over all of its tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from modelassay.probes.head import Head, HeadReader

Array = np.ndarray
BLOCK_RATE, PAUSE_RATE = 0.003, 0.05
"""Shares of harmless prompts, or responses, that may reach the two thresholds. A pause costs a
question to the classifier; a block is final."""
LEAST_BLOCK, LEAST_PAUSE = 0.5, 0.25
"""Few rows that separate well would put both next to zero, and any other prompt above them."""


@dataclass(frozen=True)
class SpanRisks:
    """Risks of spans."""

    final: Array
    """[row], after the last token."""
    highest: Array
    """[row], at any moment at which a guard would ask."""


def span_risks(
    spans: Iterable[tuple[int, Tensor]], heads: Sequence[Head], head_of: Array
) -> SpanRisks:
    """Reads spans as a guard does: a prompt at its end, a response at every token.

    Args:
        spans: (row, [token, layer, hidden]), layers as the heads'; every row once.
        heads: Heads that read the same layers.
        head_of: int [row], which of them reads it.
    """
    final, highest = np.zeros(len(head_of)), np.zeros(len(head_of))
    for row, activations in spans:
        head = heads[head_of[row]]
        reader = HeadReader(head)
        step = len(activations) if head.at == "prompt" else 1
        risks = [
            reader.read({layer: part[:, j] for j, layer in enumerate(head.layers)})
            for part in activations.split(step)
        ]
        final[row], highest[row] = risks[-1], max(risks)
    return SpanRisks(final, highest)


def choose_thresholds(harmless: Array) -> tuple[float, float]:
    """Pause and block, from the highest risks of harmless spans."""
    ordered = np.sort(harmless)[::-1]

    def at_rate(rate: float, least: float) -> float:
        # Above the first one that may not reach it, but never at certainty, which would block none.
        return min(max(float(ordered[int(rate * len(ordered))]) + 1e-6, least), 1 - 1e-6)

    block = at_rate(BLOCK_RATE, LEAST_BLOCK)
    return min(at_rate(PAUSE_RATE, LEAST_PAUSE), block), block


@dataclass(frozen=True)
class Reached:
    """Which rows reach thresholds that were chosen without them."""

    paused: Array
    """bool [row]."""
    blocked: Array


def reached_thresholds(highest: Array, unsafe: Array, fold: Array) -> Reached:
    """For each fold, thresholds from the harmless rows of the others.

    Args:
        highest: float [row].
        unsafe: bool [row].
        fold: int [row].
    """
    paused, blocked = np.zeros(len(fold), dtype=bool), np.zeros(len(fold), dtype=bool)
    for k in np.unique(fold):
        pause, block = choose_thresholds(highest[~unsafe & (fold != k)])
        paused[fold == k], blocked[fold == k] = (
            highest[fold == k] >= pause,
            highest[fold == k] >= block,
        )
    return Reached(paused, blocked)
