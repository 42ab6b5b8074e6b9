"""Suspected erasure: a direction that a band of layers writes less than intact models explain.

Tools take directions out by strengths that rise and fall over the layers, with rows scaled back to
their norms, and often of attention only. What they leave along the direction is (1 - strength)² of
what was there: too much for a hole in one layer, but in the sum over a band of neighbours the
smallest natural eigenvalue climbs towards the mean, and the direction stays behind.

Two things make this visible. *Rows scaled to length one*: an edit of N⁻¹W that keeps N, the rows'
norms, has r itself as its null vector in every layer, whatever the rows' sizes. *The edge as its
own measure*: the gap below the edge of the spectrum, log λₖ₊₁/λₖ, is held against the distance over
which the next ten eigenvalues spread. Intact models have such outliers too, but nearly all lie on
a few coordinates (3 to 10), where those of residual streams that training uses for nothing lie;
directions that are read from activations spread over a third of the coordinates and more.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import erfc, log, sqrt

import torch
from torch import Tensor

from modelassay.measures.spectra import smallest_pairs
from modelassay.models.writers import OUTPUTS, Kind
from modelassay.report.text import number_runs

WIDTHS = ((1, 1), (2, 1), (4, 2), (8, 4))
"""Layers of a band, and steps between bands; all layers together are one band more."""
MOST_DIRECTIONS, NEXT = 3, 10
"""Eigenvalues that may lie below a gap, and those above it that tell the edge's spread."""
LEAST_SPREAD = 0.02
"""Of the logarithm: an edge may be sharp in the sum of many layers."""
DENSE_SHARE = 0.05
"""Share of the coordinates over which a direction has to spread to count in full."""
FLOOR = 1e-6
"""Share of the mean eigenvalue that float32 arithmetic leaves of nothing."""
CENTRE, SCALE = -3.1, 1.45
"""Of the logarithm of the scores of intact models' bands, which is close to normal: SmolLM2 and
Gemma 3 agree on it (docs/method.md)."""
USUAL = 0.3
"""Outlying gap that a quarter of an intact model's bands stay below, at most (0.18)."""
ALPHA = 0.01
"""A p-value below this is a suspicion; chosen before any edit was measured. It counts every band as
a test of its own, though bands overlap, and takes the wider of the two distributions, so that it
errs on the side of intact."""
RUN = 3
"""Neighbours that are read together in large models."""
UNWRITTEN = 1e-9
"""Share of the mean that a coordinate gets which nothing writes: padding, or pruned away."""


@dataclass(frozen=True)
class Suspicion:
    """A direction that a band of layers hardly writes, and how rare that is in intact models."""

    layers: tuple[int, ...]
    kind: Kind | None
    """Whose outputs lack it; None for those of attention and MLP both."""
    p_value: float
    """Chance that an intact model shows as much in any of the bands that were searched."""
    ratio: float
    """Of the neighbouring eigenvalues at the gap."""
    n_directions: int
    """Eigenvalues below the gap."""
    shared: bool
    """Whether several layers lack the same direction."""

    @property
    def text(self) -> str:
        """What is suspected, in one sentence, and how to make sure."""
        what = OUTPUTS[self.kind] if self.kind else "weights"
        layers = " and ".join(number_runs(self.layers, "-"))
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"
        directions = "a direction" if self.n_directions == 1 else f"{self.n_directions} directions"
        return (
            f"Suspected erasure: {directions} may have been weakened in the {what} of"
            f" layer{'s' if len(self.layers) > 1 else ''} {layers} ({p})."
            " The base model would settle it: modelassay diff BASE MODEL."
        )


@dataclass(frozen=True)
class Band:
    """What the sum over some neighbouring layers shows."""

    kind: Kind
    layers: tuple[int, ...]
    score: float
    """Squared gap over the spread of the edge, less where few coordinates make it."""
    outlying: float
    """Gap over spread, of one direction."""
    ratio: float
    n_directions: int


@dataclass
class _Open:
    """A band whose layers are still coming."""

    layers: tuple[int, ...]
    total: Tensor
    columns: int = 0


class BandSearch:
    """The search over bands of the layers of one kind, fed one layer after the other."""

    def __init__(self, kind: Kind, layers: Sequence[int], needed: float) -> None:
        """Plans the bands.

        Args:
            kind: Whose outputs are fed.
            layers: Which will come, in order.
            needed: Columns that a band needs to be judged.
        """
        self.kind: Kind = kind
        self.bands: list[Band] = []
        self._needed = needed
        self._waiting = plan_bands(layers)
        self._open: list[_Open] = []

    def add(self, layer: int, gram: Tensor, columns: int) -> None:
        """Takes in a layer's Gram matrix [hidden, hidden] of so many columns of its own."""
        scaled = rows_scaled(gram)
        self._open += [
            _Open(band, torch.zeros_like(gram)) for band in self._waiting if band[0] == layer
        ]
        for band in self._open:
            if layer in band.layers:
                band.total += scaled
                band.columns += columns
            if layer == band.layers[-1] and band.columns >= self._needed:
                self.bands.append(judge_band(self.kind, band.layers, band.total))
        self._open = [band for band in self._open if band.layers[-1] > layer]


def plan_bands(
    layers: Sequence[int], widths: Sequence[tuple[int, int]] = WIDTHS
) -> list[tuple[int, ...]]:
    """Runs of neighbours, each width at its steps up to the end, and all layers."""
    runs = {tuple(layers)}
    for width, step in WIDTHS:
        last = len(layers) - width
        runs |= {tuple(layers[i : i + width]) for i in {*range(0, last + 1, step), max(last, 0)}}
    return sorted(runs)


def rows_scaled(gram: Tensor) -> Tensor:
    """The Gram matrix of the same weights with all rows of length one.

    Rows of zeros get an eigenvalue of one, and so does the direction along the rows' norms, which
    is where the all-ones direction goes: LayerNorm models never write that.
    """
    squares = gram.diagonal()
    written = squares > UNWRITTEN * squares.mean()
    norms = squares.clamp_min(0).sqrt()
    inverse = torch.where(written, norms, torch.inf).reciprocal()
    scaled = (gram * inverse).mul_(inverse[:, None])
    scaled.diagonal().add_((~written).float())
    along = norms / norms.norm().clamp_min(1e-30)
    return scaled.addr_(along, along)


def judge_band(kind: Kind, layers: tuple[int, ...], total: Tensor) -> Band:
    """The gap with the highest score among the smallest eigenvalues of a sum of Gram matrices."""
    values, vectors = smallest_pairs(total, MOST_DIRECTIONS + NEXT + 1)
    logs = values.clamp_min(FLOOR * float(total.diagonal().mean())).log()
    found = []
    for k in range(1, MOST_DIRECTIONS + 1):
        gap = float(logs[k] - logs[k - 1])
        outlying = gap / max(float(logs[k + NEXT] - logs[k]), LEAST_SPREAD)
        # How many coordinates the directions below the gap spread over.
        share = vectors[:, :k].square().sum(dim=1) / k
        spread = 1 / float(share.square().sum()) / len(total)
        score = outlying * gap * min(1.0, spread / DENSE_SHARE)
        found.append(Band(kind, layers, score, outlying, float(values[k - 1] / values[k]), k))
    return replace(max(found, key=lambda band: band.score), outlying=found[0].outlying)


def neighbours(layers: Sequence[int], sampled: int | None) -> list[tuple[int, ...]]:
    """Runs of `RUN` layers that share none: all of them, or a sample spread over the depth.

    Most edits peak in the last two fifths (heretic's always do), so a sample has its runs at equal
    distances up to the last layer.
    """
    starts = list(range(0, len(layers), RUN))
    starts[-1] = max(len(layers) - RUN, 0)
    if sampled is not None and sampled < len(starts):
        starts = [starts[(i + 1) * len(starts) // sampled - 1] for i in range(sampled)]
    return [tuple(layers[i : i + RUN]) for i in starts]


def suspect(bands: Sequence[Band]) -> Suspicion | None:
    """What the bands of a model make suspect together; None where intact models explain it."""
    if not bands:
        return None
    # A model whose edges are rougher than usual everywhere is held against itself.
    usual = sorted(band.outlying for band in bands)[len(bands) // 4]
    rougher = max(1.0, usual / USUAL)

    def p_value(band: Band) -> float:
        z = (log(max(band.score / rougher, 1e-12)) - CENTRE) / SCALE
        return min(1.0, len(bands) * erfc(z / sqrt(2)) / 2)

    marked = [band for band in bands if p_value(band) < ALPHA]
    if not marked:
        return None
    best = max(marked, key=lambda band: band.score)
    kinds = {band.kind for band in marked}
    like = [band for band in marked if len(band.layers) <= len(best.layers)]
    return Suspicion(
        layers=tuple(sorted({layer for band in like for layer in band.layers})),
        kind=best.kind if len(kinds) == 1 else None,
        p_value=p_value(best),
        ratio=best.ratio,
        n_directions=best.n_directions,
        shared=len(best.layers) > 1,
    )
