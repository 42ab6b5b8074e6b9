"""heretic's strengths by layer, and its trials drawn by seed.

More than 4,000 published models come from that tool. It searches strengths and directions for each
model; drawing from the same ranges makes any number of edits of its kind.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from math import modf

from torch import Tensor
from torch.nn.functional import normalize

from modelassay.models.ablation import Ablation, Family
from modelassay.models.writers import Kind


@dataclass(frozen=True)
class Kernel:
    """heretic's strength by layer: a tent around a peak."""

    peak: float
    """Layer of the greatest strength; it need not be whole."""
    distance: float
    """Layers that are farther from the peak are left alone."""
    strength: float
    """At the peak."""
    least: float
    """At that distance."""

    def at(self, layer: int) -> float:
        """Strength in a layer."""
        away = abs(layer - self.peak)
        if away > self.distance:
            return 0.0
        return self.strength + away / max(self.distance, 1e-12) * (self.least - self.strength)


def draw_kernels(n_layers: int, seed: int) -> dict[Kind, Kernel]:
    """Kernels of attention and MLP, each drawn from the ranges that heretic searches.

    The MLP's range of strengths begins below 0 and is cut there: one in seven leaves it alone.
    """
    draw, last = random.Random(seed), n_layers - 1  # noqa: S311
    kernels: dict[Kind, Kernel] = {}
    lowest: dict[Kind, float] = {"attention": 0.8, "mlp": -0.25}
    for kind, low in lowest.items():
        strength = max(0.0, draw.uniform(low, 1.5))
        peak = draw.uniform(0.6, 1.0) * last
        least = draw.uniform(0.0, 1.0) * strength
        kernels[kind] = Kernel(peak, draw.uniform(1.0, 0.6 * last), strength, least)
    return kernels


def draw_ablation(
    directions_by_layer: Mapping[int, Tensor],
    n_layers: int,
    seed: int,
    family: Family = "norm-preserving",
) -> Ablation:
    """One trial of heretic: kernels, and by chance one direction for all layers or each its own.

    One for all lies between those of two neighbours, at 0.4 to 0.9 of the depth.

    Args:
        directions_by_layer: The unit vector [hidden] that was read after each layer.
        n_layers: Of the model.
        seed: Decides all that is drawn.
        family: `norm-preserving` is heretic's default; `plain` and `row-normalised` are its others.
    """
    draw = random.Random(f"directions {seed}")  # noqa: S311
    directions = directions_by_layer
    if draw.random() < 0.5:
        between, layer = modf(draw.uniform(0.4, 0.9) * (n_layers - 1))
        low, high = (directions_by_layer[int(layer) + i] for i in (0, 1))
        directions = dict.fromkeys(range(n_layers), normalize(low.lerp(high, between), dim=0))
    strengths: dict[Kind, dict[int, float]] = {
        kind: {layer: w for layer in range(n_layers) if (w := kernel.at(layer))}
        for kind, kernel in draw_kernels(n_layers, seed).items()
    }
    touched = sorted({layer for by_layer in strengths.values() for layer in by_layer})
    return Ablation(
        {layer: directions[layer] for layer in touched}, family=family, strengths=strengths
    )
