"""The explained features nearest to one that nobody has explained.

Features whose decoder rows point the same way write nearly the same into the residual stream. A
label of one is a hint of what the other is about, and no more than that: it is a proxy, and is
marked as one, with the cosine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.sae.files import SAE

FEATURES_AT_ONCE = 256


@dataclass(frozen=True)
class Neighbour:
    """A feature near another."""

    feature: int
    cosine: float
    """Of the two decoder rows."""


@torch.inference_mode()
def nearest(
    sae: SAE,
    features: Sequence[int],
    *,
    among: Sequence[int] | None = None,
    top: int = 5,
) -> list[list[Neighbour]]:
    """The features nearest to each of some, from near to far.

    Args:
        sae: Whose features.
        features: Those whose neighbours are asked for.
        among: Those that may be named; None for all. A feature is never its own neighbour.
        top: Neighbours of each.
    """
    rows = sae.module.W_dec.detach().float()
    lengths = rows.norm(dim=1).clamp_min(1e-12)
    there = torch.zeros(sae.width, dtype=torch.bool, device=rows.device)
    there[... if among is None else torch.tensor(list(among), device=rows.device).long()] = True
    top = min(top, int(there.sum()))
    found: list[list[Neighbour]] = []
    for start in range(0, len(features), FEATURES_AT_ONCE):
        asked = torch.tensor(features[start : start + FEATURES_AT_ONCE], device=rows.device).long()
        cosines: Tensor = (rows[asked] @ rows.T) / lengths[asked, None] / lengths
        cosines[:, ~there] = -torch.inf
        cosines[torch.arange(len(asked)), asked] = -torch.inf
        values, nearest_ones = cosines.topk(top, dim=1)
        found += [
            [Neighbour(feature, value) for feature, value in zip(*row, strict=True) if value > -2]
            for row in zip(nearest_ones.tolist(), values.tolist(), strict=True)
        ]
    return found
