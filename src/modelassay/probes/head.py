"""A head: a linear readout of pooled states that gives a risk, and the reader that serves it.

Every kind of probe ends as one: weights over (layer, pooling, hidden) and a bias, standardisation
and calibration folded in, so that a token costs one dot product a layer. Attention pooling has a
query besides, and weighs the tokens read so far by softmax(query · state).

A response is blocked by its worst moment, so thresholds are set, and rates counted, on the highest
risk over all of its tokens.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from modelassay.data.labelled import At
from modelassay.probes.features import LARGEST
from modelassay.statistics import wilson_interval

Pooling = Literal["last", "mean", "attention"]
Array = np.ndarray
BLOCK_RATE, PAUSE_RATE = 0.003, 0.05
"""Shares of harmless prompts, or responses, that may reach the two thresholds. A pause costs a
question to the classifier; a block is final."""
LEAST_BLOCK, LEAST_PAUSE = 0.5, 0.25
"""Few rows that separate well would put both next to zero, and any other prompt above them."""


@dataclass(frozen=True)
class ComplyReadout:
    """The second readout of a head of the kind `factored`, see `probes.fitting`."""

    weight: Tensor
    """float32 [layer, pooling, hidden]."""
    bias: float
    slope: float
    offset: float


@dataclass(frozen=True)
class Head:
    """Reads a risk in 0 … 1 off the residual stream."""

    at: At
    kind: str
    """How it was fitted: `logistic`, `means`, `factored` or `attention`."""
    layers: tuple[int, ...]
    poolings: tuple[Pooling, ...]
    weight: Tensor
    """float32 [layer, pooling, hidden]."""
    bias: float
    pause: float
    """Risk from which a response is held back and looked at again."""
    block: float
    """Risk from which it is refused."""
    query: Tensor | None = None
    """float32 [layer, hidden], for attention pooling."""
    comply: ComplyReadout | None = None
    """Whether a response does what it was asked; the risk is then of both."""

    def risk(self, pooled: Tensor) -> Tensor:
        """Risks [sample] of pooled states [sample, layer, pooling, hidden]."""
        sums = [torch.einsum("slph,lph->s", pooled.float(), weight) for weight in self.weights]
        return self.risk_of(sums)

    @property
    def weights(self) -> tuple[Tensor, ...]:
        """Of its readouts, one or two."""
        return (self.weight,) if self.comply is None else (self.weight, self.comply.weight)

    def risk_of(self, sums: Sequence[Tensor]) -> Tensor:
        """The risk, given what pooled states sum up to under each of `weights`."""
        logit = sums[0] + self.bias
        if (comply := self.comply) is not None:  # as `fitting.odds_of_both`
            other = sums[1] + comply.bias
            both = -torch.stack([-logit, -other, -logit - other]).logsumexp(0)
            logit = comply.slope * both + comply.offset
        return torch.sigmoid(logit)


class HeadReader:
    """Follows one span of tokens: give it states as they come, get the risk after the last.

    Keeps a running sum a layer and nothing else, so memory does not grow with the text.
    """

    def __init__(self, head: Head) -> None:
        """Starts at the beginning of a span."""
        self.head = head
        self.count = 0
        self.sums: dict[int, Tensor] = {}
        self.mass: dict[int, Tensor] = {}
        self.top: dict[int, Tensor] = {}

    def read(self, activations: Mapping[int, Tensor]) -> float:
        """The risk after more tokens of the span; 1 where a state is not a number.

        Args:
            activations: For each of the layers, [token, hidden] on any device, one token or more.
        """
        self.count += next(iter(activations.values())).shape[0]
        sums = [torch.tensor(0.0) for _ in self.head.weights]
        for i, layer in enumerate(self.head.layers):
            hidden = activations[layer].float().cpu()
            for j, pooling in enumerate(self.head.poolings):
                pooled = self._pool(pooling, i, layer, hidden).clamp(-LARGEST, LARGEST)
                sums = [
                    total + weight[i, j] @ pooled
                    for total, weight in zip(sums, self.head.weights, strict=True)
                ]
        risk = float(self.head.risk_of(sums))
        return risk if math.isfinite(risk) else 1.0

    def _pool(self, pooling: Pooling, i: int, layer: int, hidden: Tensor) -> Tensor:
        if pooling == "last":
            return hidden[-1]
        if pooling == "mean":
            total = hidden.sum(0) + self.sums.get(layer, 0.0)
            self.sums[layer] = total
            return total / self.count
        assert self.head.query is not None  # noqa: S101 (checked on loading)
        scores = hidden @ self.head.query[i]
        # The running softmax of online attention: what was summed is rescaled by a larger score.
        top = torch.maximum(scores.max(), self.top.get(layer, scores.max()))
        kept = torch.exp(self.top.get(layer, top) - top)
        weights = torch.exp(scores - top)
        mass = self.mass.get(layer, torch.tensor(0.0)) * kept + weights.sum()
        total = self.sums.get(layer, torch.zeros_like(hidden[0])) * kept + weights @ hidden
        self.top[layer], self.mass[layer], self.sums[layer] = top, mass, total
        return total / mass


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


def reached_thresholds(highest: Array, unsafe: Array, fold: Array) -> tuple[Array, Array]:
    """Which rows reach the thresholds for each fold, chosen from the harmless rows of the others.

    Args:
        highest: float [row].
        unsafe: bool [row].
        fold: int [row].

    Returns:
        bool [row] each: paused, and blocked.
    """
    paused, blocked = np.zeros(len(fold), dtype=bool), np.zeros(len(fold), dtype=bool)
    for k in np.unique(fold):
        pause, block = choose_thresholds(highest[~unsafe & (fold != k)])
        paused |= (fold == k) & (highest >= pause)
        blocked |= (fold == k) & (highest >= block)
    return paused, blocked


def block_rates(blocked: Array, unsafe: Array) -> dict[str, Any]:
    """Shares of safe and of unsafe rows that are blocked, with their intervals, by field."""
    rates: dict[str, Any] = {}
    for name, rows in (("block", ~unsafe), ("detected", unsafe)):
        k, n = int(blocked[rows].sum()), int(rows.sum())
        rates |= {f"{name}_rate": k / n, f"{name}_interval": wilson_interval(k, n)}
    return rates
