"""Directional edits: which directions a change of weights takes out, where, how much, and by what.

Tools that remove refusals ("abliteration", Arditi et al. 2024) edit the matrices that write to the
residual stream so that they write less along a direction, or nothing. `matrix_edits` reads each
matrix by itself; here the matrices of a model say together whether that was done, in which layers
and components, how strongly (with intervals), with one direction or one for each layer, and by
which family of formulas.

A mark needs two layers, or both writers of one, and a share of what was changed. The score of a
model is the cosine that so many of its matrices reach, so a mark is there exactly when the score
passes `MARK_COSINE`. Its p-value is the share of benign changes with a score as high, plus one:
n of them claim no rate finer than 1 in n + 1, and none claim nothing. `benchmarks/bench_edits.py`
makes and scores them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
from torch import Tensor

from modelassay.measures.edit_kernels import KernelFit, fit_kernel
from modelassay.measures.matrix_edits import Fit, MatrixEdit
from modelassay.models.ablation import Family
from modelassay.models.writers import OUTPUTS, Kind
from modelassay.report.json import published

Component = Literal["attention", "mlp", "readers", "embeddings"]
WORDS: dict[Component, str] = {
    **OUTPUTS,
    "readers": "matrices that read the stream",
    "embeddings": "embeddings",
}
MARKED_SHARE, FEWEST_MARKED = 0.1, 2
"""Of the changed matrices must bear the mark, and so many at least."""
SHARED_COSINE = 0.9
SURE = 36.0
"""Times the noise in one entry (σ²) that a family must leave less over than the next: 6 σ for the
difference of two predictions; and"""
SURE_SHARE = 5e-4
"""of the change, for what the estimate of a direction costs."""
MADE_BY: dict[Family, str] = {
    "plain": "as most tools make it",
    "row-normalised": "as heretic makes it with row normalisation",
    "norm-preserving": "as heretic's default makes it",
    "column-norm-preserving": "as biprojected tools make it that preserve norms",
}
# fmt: off
NULL_SCORES: tuple[float, ...] = (
    *(0.90, 0.88, 0.88, 0.85, 0.81, 0.78, 0.69, 0.65, 0.64, 0.57, 0.53, 0.52, 0.51, 0.51,
      0.48, 0.47, 0.46, 0.45, 0.43, 0.43, 0.43, 0.43, 0.43, 0.43, 0.42, 0.41, 0.41, 0.41,
      0.40, 0.40, 0.40, 0.40, 0.39, 0.38, 0.37, 0.37, 0.37, 0.36, 0.36, 0.35, 0.34, 0.34,
      0.34, 0.34, 0.32, 0.31, 0.30, 0.30, 0.30, 0.30, 0.29, 0.29, 0.29, 0.29, 0.28, 0.28,
      0.28, 0.28, 0.26, 0.26, 0.26, 0.25, 0.25, 0.25, 0.24, 0.17, 0.15),
    *(101 * (0.0,)),
)
# fmt: on
"""Scores of benign changes, falling: 84 of each of two architectures, as
`benchmarks/bench_edits.py` makes them (six layers of `embedded`, six of `gemma`)."""


@dataclass(frozen=True)
class EditedMatrix:
    """A matrix that changed, and what its change tells."""

    name: str
    layer: int | None
    component: Component
    found: MatrixEdit


@dataclass(frozen=True)
class Strength:
    """How much of a direction was taken out of a component of a layer."""

    layer: int | None
    strength: float
    low: float
    high: float
    """95% interval."""


@dataclass(frozen=True)
class ComponentEdit:
    """An edit in one component, layer by layer."""

    component: Component
    strengths: tuple[Strength, ...]
    """Of the layers that were edited."""
    kernel: KernelFit | None

    @property
    def peak(self) -> Strength:
        """Where it is strongest."""
        return max(self.strengths, key=lambda s: s.strength)


@dataclass(frozen=True)
class AblationMark:
    """A direction taken out of weights, as their change shows it."""

    strength: float
    """Share of the direction that is gone, the median over what was edited: 1 for all of it, 2
    turns it round."""
    layers: tuple[int, ...]
    shared: bool
    """Whether it is one direction for all layers."""
    kind: Kind | None = None
    """Whose outputs alone it was taken out of; None for all that the layers write."""
    family: Family | None = None
    """Of the formulas, where it is certain."""
    n_directions: int = 1

    @property
    def taken_from(self) -> str:
        """What it was taken out of, in words: "12 layers", "the MLP outputs of 12 layers"."""
        layers = f"{len(self.layers)} layers"
        return layers if self.kind is None else f"the {OUTPUTS[self.kind]} of {layers}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return published(asdict(self), layers="blocks")


@dataclass(frozen=True)
class DirectionalEdits:
    """What the changes of a model's matrices tell about directions that were taken out."""

    score: float | None
    """Cosine that enough matrices reach; None where no matrix was changed that could tell."""
    p_value: float | None
    """How often benign changes score as high; None where none are known."""
    n_null: int = len(NULL_SCORES)
    components: tuple[ComponentEdit, ...] = ()
    """Empty where no directional edit was found."""
    layers_left_out: tuple[int, ...] = ()
    family: Family | None = None
    """The formula that leaves least over."""
    fit: float | None = None
    """Share of the change, without noise, that it explains."""
    next_family: Family | None = None
    next_fit: float | None = None
    family_is_sure: bool = False
    shared: bool = False
    shared_cosine: float | None = None
    """Median |cos| between the directions of different layers."""
    n_directions: int = 0
    turned: bool = False
    """Whether it is the base that lacks what the candidate has, or has less of it, as in a swapped
    pair."""
    rows_scaled: int = 0
    """Rows of writing matrices that were scaled or emptied one by one."""
    directions: Mapping[int, Tensor] = field(default_factory=dict, repr=False, compare=False)
    """Unit direction [hidden] by layer."""

    @property
    def mark(self) -> AblationMark | None:
        """The edit of what layers write, in short; None where there is none."""
        writers: dict[Kind, ComponentEdit] = {
            part.component: part for part in self.components if part.component in OUTPUTS
        }
        if not writers:
            return None
        strengths = [s for part in writers.values() for s in part.strengths]
        return AblationMark(
            strength=float(np.median([s.strength for s in strengths])),
            layers=tuple(sorted({s.layer for s in strengths if s.layer is not None})),
            shared=self.shared,
            kind=next(iter(writers)) if len(writers) == 1 else None,
            family=self.family if self.family_is_sure else None,
            n_directions=self.n_directions,
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        values = {
            key: value for key, value in asdict(replace(self, directions={})).items()
            if key != "directions"
        }  # fmt: skip
        values["components"] = [
            published(
                {**part, "strengths": [published(s, layer="block") for s in part["strengths"]]}
            )
            for part in values["components"]
        ]
        return published(values, layers_left_out="blocks_left_out")

    def sentences(self) -> list[str]:
        """What was found, in plain words."""
        if self.turned:
            return [
                "The base has less of a direction than the candidate, or lacks it: the two look"
                " swapped, or the candidate undoes an ablation of the base or makes rows larger."
            ]
        if not self.components or self.family is None or self.fit is None:
            return []
        said = [_where(part) for part in self.components]
        what = "one direction for all layers" if self.shared else "a direction of its own for each"
        if self.n_directions > 1:
            what = f"{self.n_directions} directions"
        text = f"Taken out: {what}, from {'; from '.join(said)}."
        fit = f"the {self.family} formula ({MADE_BY[self.family]}) explains {self.fit:.1%}"
        other = ""
        if self.next_family is not None and self.next_fit is not None:
            told = "" if self.family_is_sure else ", which cannot be told from it"
            other = f"; the next best is {self.next_family} with {self.next_fit:.1%}{told}"
        return [text, f"Of the change, {fit}{other}."]


def _where(part: ComponentEdit) -> str:
    """A component's edit: "MLP outputs of layers 13 to 28, 1.12 (1.11 to 1.13) at layer 25"."""
    peak = part.peak
    at = f"{peak.strength:.2f} ({peak.low:.2f} to {peak.high:.2f})"
    layers = sorted(s.layer for s in part.strengths if s.layer is not None)
    if not layers:
        return f"the {WORDS[part.component]}, strength {at}"
    text = f"the {WORDS[part.component]} of {layers_in_words(layers)}"
    return f"{text}, at most {at} in layer {peak.layer}"


def layers_in_words(layers: Sequence[int]) -> str:
    """For example "layer 3", "layers 3 to 9", "12 layers (3 to 29)"."""
    if len(layers) == 1:
        return f"layer {layers[0]}"
    first, last = layers[0], layers[-1]
    if last - first + 1 == len(layers):
        return f"layers {first} to {last}"
    return f"{len(layers)} layers ({first} to {last})"


def summarise(
    matrices: Sequence[EditedMatrix],
    n_layers: int,
    along: Mapping[tuple[int | None, Component], Sequence[Fit]] | None = None,
) -> DirectionalEdits:
    """What the changed matrices of a model say together.

    Args:
        matrices: Those that changed.
        n_layers: How many layers the model has.
        along: Strengths, in matrices without a mark of their own, of directions that other
            matrices lost (`unmarked` names them), for those where they are known.
    """
    writers = [m for m in matrices if m.component in OUTPUTS]
    score, p = _score(matrices)
    nothing = DirectionalEdits(
        score, p, rows_scaled=sum(m.found.rows_scaled for m in writers), n_null=len(NULL_SCORES)
    )
    turned = [m for m in writers if m.found.turned]
    marked = _marked(matrices)
    if len(turned) > max(len(marked), FEWEST_MARKED - 1):
        return replace(nothing, turned=True)
    if not marked:
        return nothing
    fits = _family_fits(marked)
    (family, (fit, left)), (second, (second_fit, second_left)) = sorted(
        fits.items(), key=lambda item: item[1][1]
    )[:2]
    # The simplest of formulas that come to the same.
    energy = sum(m.found.energy for m in marked)
    noise = np.mean([m.found.noise / m.found.entries for m in marked])
    several = sum(m.found.n_directions > 1 for m in marked) > MARKED_SHARE * len(marked)
    sure = not several and second_left - left > max(SURE * noise, SURE_SHARE * energy)
    if not sure and second == "plain":
        family, second, fit, second_fit = second, family, second_fit, fit
    cosine = _shared_cosine(marked, family)
    components = _components(marked, family, along or {}, n_layers)
    written = [x.strength for c in components if c.component in OUTPUTS for x in c.strengths]
    if written and np.median(written) < 0:  # more of it than before: nothing was taken out
        return replace(nothing, turned=True)
    edited = {s.layer for part in components for s in part.strengths}
    return replace(
        nothing,
        components=components,
        layers_left_out=tuple(layer for layer in range(n_layers) if layer not in edited),
        family=family,
        fit=fit,
        next_family=second,
        next_fit=second_fit,
        family_is_sure=bool(sure),
        shared=cosine is not None and cosine > SHARED_COSINE,
        shared_cosine=cosine,
        n_directions=round(float(np.median([m.found.n_directions for m in marked]))),
        directions=directions_by_layer(marked, family),
    )


def _groups(matrices: Sequence[EditedMatrix]) -> list[list[EditedMatrix]]:
    """Matrices that could have been edited together."""
    writers = [m for m in matrices if m.component in OUTPUTS]
    groups = [writers]
    for component in ("attention", "mlp", "readers"):
        groups.append([m for m in matrices if m.component == component])
    return [group for group in groups if len(group) >= FEWEST_MARKED]


def _needed(group: Sequence[EditedMatrix]) -> int:
    return max(FEWEST_MARKED, math.ceil(MARKED_SHARE * len(group)))


def _score(matrices: Sequence[EditedMatrix]) -> tuple[float | None, float | None]:
    """The cosine that enough matrices of a group reach, and how often benign changes' do."""
    reached = []
    for group in _groups(matrices):
        cosines = sorted((0.0 if m.found.turned else m.found.cosine for m in group), reverse=True)
        reached.append(cosines[_needed(group) - 1])
    if not reached:
        return None, None
    score = max(reached)
    if not NULL_SCORES:
        return score, None
    above = sum(null >= score for null in NULL_SCORES)
    return score, (above + 1) / (len(NULL_SCORES) + 1)


def _marked(matrices: Sequence[EditedMatrix]) -> list[EditedMatrix]:
    """The matrices that bear the mark, if they are enough to believe it."""
    kept: list[EditedMatrix] = []
    for group in _groups(matrices):
        marked = [m for m in group if m.found.marked]
        if len(marked) >= _needed(group):
            kept += [m for m in marked if not any(m is other for other in kept)]
    if not any(m.component in OUTPUTS for m in kept) and not kept:
        return []
    # Embeddings are one matrix: they count beside others.
    return kept + [m for m in matrices if m.component == "embeddings" and m.found.marked]


def _family_fits(marked: Sequence[EditedMatrix]) -> dict[Family, tuple[float, float]]:
    """What each family explains of the change without noise, and what it leaves over."""
    energy = sum(m.found.energy for m in marked)
    noise = sum(m.found.noise for m in marked)
    found: dict[Family, tuple[float, float]] = {}
    families: tuple[Family, ...] = tuple(marked[0].found.fits)
    for family in families:
        left = sum(
            min(m.found.several.get(family, math.inf), m.found.fits[family].residual)
            for m in marked
        )
        fit = 1 - max(left - noise, 0.0) / max(energy - noise, 1e-30)
        found[family] = (max(fit, 0.0), left)
    return found


def directions_by_layer(marked: Sequence[EditedMatrix], family: Family) -> dict[int, Tensor]:
    """One direction for each layer, that of the matrix whose strength is best known."""
    best: dict[int, Fit] = {}
    for m in marked:
        if m.layer is None or m.component not in OUTPUTS:
            continue
        fit = m.found.fits[family]
        known = best.get(m.layer)
        if known is None or _relative(fit) < _relative(known):
            best[m.layer] = fit
    return {layer: best[layer].direction for layer in sorted(best)}


def _relative(fit: Fit) -> float:
    return fit.error / max(abs(fit.strength), 1e-12)


def _shared_cosine(marked: Sequence[EditedMatrix], family: Family) -> float | None:
    """Median |cos| between layers; of spaces where several directions were taken out."""
    if sum(m.found.n_directions > 1 for m in marked) > len(marked) / 2:
        bases = {m.layer: m.found.basis for m in marked if m.component in OUTPUTS}
        spaces = [basis for basis in bases.values() if basis is not None]
    else:
        spaces = [r[:, None] for r in directions_by_layer(marked, family).values()]
    cosines = [
        (float((a.T @ b).square().sum()) / min(a.shape[1], b.shape[1])) ** 0.5
        for i, a in enumerate(spaces)
        for b in spaces[:i]
    ]
    return float(np.median(cosines)) if cosines else None


def _components(
    marked: Sequence[EditedMatrix],
    family: Family,
    along: Mapping[tuple[int | None, Component], Sequence[Fit]],
    n_layers: int,
) -> tuple[ComponentEdit, ...]:
    found = []
    for component in WORDS:
        fits: dict[int | None, list[Fit]] = {}
        for m in marked:
            if m.component == component:
                fits.setdefault(m.layer, []).append(m.found.fits[family])
        if not fits:
            continue
        for (layer, other), weak in along.items():
            if other == component:
                seen = [fit for fit in weak if fit.strength > Z_WEAK * fit.error]
                if seen:
                    fits.setdefault(layer, []).extend(seen)
        strengths = [_pooled(layer, fits[layer]) for layer in sorted(fits, key=lambda x: x or 0)]
        curve = dict.fromkeys(range(n_layers), 0.0) | {
            s.layer: s.strength for s in strengths if s.layer is not None
        }
        kernel = fit_kernel(curve) if component in OUTPUTS else None
        found.append(ComponentEdit(component, tuple(strengths), kernel))
    return tuple(found)


Z_WEAK = 5.0
"""Standard errors from 0 of a strength along a direction that other matrices lost."""
Z95 = 1.96


def _pooled(layer: int | None, fits: Sequence[Fit]) -> Strength:
    """Strengths of a component's matrices as one (experts have several)."""
    weights = np.array([1 / max(fit.error, 1e-6) ** 2 for fit in fits])
    strengths = np.array([fit.strength for fit in fits])
    mean = float((weights * strengths).sum() / weights.sum())
    error = float(max(weights.sum() ** -0.5, strengths.std() / len(fits) ** 0.5))
    return Strength(layer, mean, mean - Z95 * error, mean + Z95 * error)


def unmarked(
    found: DirectionalEdits, matrices: Sequence[EditedMatrix]
) -> list[tuple[EditedMatrix, Tensor]]:
    """Changed writers without a mark, each with the direction that may have been taken out of it.

    That is the direction that all layers share, or what the same layer's other writer lost.
    """
    if not found.directions:
        return []
    any_layer = next(iter(found.directions.values())) if found.shared else None
    pairs = []
    edited = {part.component for part in found.components}
    for m in matrices:
        if m.found.marked or m.component not in edited or m.component not in OUTPUTS:
            continue
        direction = found.directions.get(m.layer if m.layer is not None else -1, any_layer)
        if direction is not None:
            pairs.append((m, direction))
    return pairs
