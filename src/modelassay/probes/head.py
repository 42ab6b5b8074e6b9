"""A head: a linear readout of pooled states that gives a risk, and the reader that serves it.

Every kind of probe ends as one: weights over (layer, pooling, hidden) and a bias, standardisation
and calibration folded in, so that a token costs one dot product a layer. Attention pooling has a
query besides, and weighs the tokens read so far by softmax(query · state).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from modelassay.data.labelled import At
from modelassay.probes.features import LARGEST

Pooling = Literal["last", "mean", "attention"]


@dataclass(frozen=True)
class Head:
    """Reads a risk in 0 … 1 off the residual stream."""

    at: At
    kind: str
    """How it was fitted: `logistic`, `means` or `attention`."""
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

    def risk(self, pooled: Tensor) -> Tensor:
        """Risks [sample] of pooled states [sample, layer, pooling, hidden]."""
        logits = torch.einsum("slph,lph->s", pooled.float(), self.weight) + self.bias
        return torch.sigmoid(logits)


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
        logit = self.head.bias
        for i, layer in enumerate(self.head.layers):
            hidden = activations[layer].float().cpu()
            for j, pooling in enumerate(self.head.poolings):
                pooled = self._pool(pooling, i, layer, hidden).clamp(-LARGEST, LARGEST)
                logit += float(self.head.weight[i, j] @ pooled)
        risk = float(torch.sigmoid(torch.tensor(logit)))
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
