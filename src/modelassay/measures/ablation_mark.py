"""The mark of directional ablation in what a sketch keeps of the matrices that write to the stream.

A sketch keeps W Ω, two columns of each such matrix. Ablation changes them by -s·r (rᵀ W Ω): along
one r on the left, and on the right along what the baseline holds. Tools change attention outputs,
MLP outputs or both, by one direction or one a layer, by as much everywhere or by a kernel over the
layers; each way is looked for, and each against what chance, pruning and rounding do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from modelassay.measures.directional_edits import AblationMark
from modelassay.measures.matrix_edits import EMPTY, compare_along, row_norms
from modelassay.models.writers import OUTPUTS, Kind

MARK_COSINE = 0.98
"""Between the change's right side and rᵀWΩ. Directional ablation gives 1.00; by chance, in the four
dimensions that a sketch keeps of a layer, three changes in a thousand come this near."""
MARK_SHARE = 0.8
"""Of the change in a layer that has rank one."""
MARK_STRENGTH, OVERDONE = (0.05, 7.0), 1.5
LONG_ROW = 3.0
"""Times the usual square of a row's norm; the others count as equal, as few columns blur them."""
NEARER = 0.01
"""Difference of cosines that tells rows of one size from weights as they are."""
MARKED_LAYERS, FEW_MARKED = 0.2, 2
"""Of the changed layers must carry the mark, and two at least."""
NARROW = 4
"""Columns of a layer in the sketch. With fewer, two in most sketches of one kind, six changes in a
hundred come near by chance:"""
MARKED_NARROW, FEW_NARROW = 0.8, 6
"""of such layers this share must carry the mark, and six at least."""
BLURRED = 0.1
"""A cosine over all writers this much below that over one kind is blurred by the other kind."""
MIN_TOGETHER = 8
"""Columns of all changed layers, for the mark to be looked for in all of them at once."""
TOGETHER_COSINE, TOGETHER_DEVIATIONS = 0.5, 6
"""Over all changed layers at once, rounding lowers the cosine, but chance allows much less: it must
lie this many standard deviations (1/√dimensions) above zero."""
TOGETHER_SHARE = 3
"""Times the direction's share in the weights must be its share in their change. Scaling all weights
changes each direction by its own share."""
VARIED_DEVIATIONS = 4
"""The same where each matrix may have lost another part of the direction: a cosine of its own for
each is one of a few dimensions, and all are weighed together. Edits with a kernel over the layers
read 4.7 to 6.1, fine-tunes 2 at most."""
PURE, PURE_DEVIATIONS = 0.6, 3.3
"""Where the changes of all matrices are nearly one direction, which training hardly gives (0.2 of
them at most), fewer deviations do: one in 3,000 is larger by chance."""
BY_ROWS, BY_SCALES = (0.1, 2.0), 0.9
"""Pruning and the scaling of rows change each row along itself: the cosine between a row's change
and what it loses, and its size, in the mean over the energy of the changes. By its part of the
direction an edit lowers a row by about 1.6/√hidden of it (0.02 to 0.09 at 576; pruning 0.5 to 1),
so the first limit is 0.1 + 2/√hidden. The size is 0.6 for any direction, and 1 for scaled rows."""
THERE = 0.1
"""Share of a direction in what a layer writes, times the rows: 1 for a usual one. What a matrix
hardly wrote is cut away by a low-rank copy, not by an edit (0.04); edits took 0.3 and more."""
ALONG = 0.3
"""Of a matrix's change must lie along a direction for its layer to be named."""
UNCHANGED = 1e-3
"""Half-precision storage alone makes changes of this size."""


@dataclass(frozen=True)
class Written:
    """One writing matrix in two sketches."""

    layer: int
    kind: Kind | None
    base: np.ndarray
    """[hidden, columns]."""
    change: np.ndarray
    """The same."""


def find_mark(written: Sequence[Written]) -> AblationMark | None:
    """Looks for the mark of directional ablation in weights as they are, and in rows of one size.

    Tools that take the direction out of rows scaled to one norm leave the mark in those. Which
    family of formulas made it is not told: whether columns keep their norms does not show in few
    sums of columns.

    Args:
        written: The writing matrices of all layers.
    """
    if _changed_by_rows(written):
        return None
    plain = _mark_among(written)
    # Two columns do not tell the norm of a row, but rows that are long are so in most layers.
    sizes = [np.square(w.base) / max(float(np.square(w.base).mean()), 1e-30) for w in written]
    energy = sum(size.sum(axis=1) for size in sizes) if sizes else np.ones(1)
    usual = np.median(energy)
    unusual = (energy > LONG_ROW * usual) | (energy < usual / LONG_ROW)
    energy = torch.from_numpy(np.where(unusual, energy, usual))
    norms = row_norms(energy).numpy()[:, None]
    even = [replace(w, base=w.base / norms, change=w.change / norms) for w in written]
    scaled = _mark_among(even)
    if plain is None or (scaled is not None and scaled[1] > plain[1] + NEARER):
        return scaled and scaled[0]
    return plain[0]


def _mark_among(written: Sequence[Written]) -> tuple[AblationMark, float] | None:
    """Looks for the mark in all that layers write and in each kind of it; with its cosine.

    Tools change attention outputs, MLP outputs or both. Where they change one kind alone, or each
    by a direction of its own, the other kind blurs the mark.
    """
    touched = {each.kind for each in written if _is_changed(each.base, each.change)}
    found = [_mark_of([each for each in written if each.kind in touched])]
    if len(touched) == 1 and len({each.kind for each in written}) > 1:
        return found[0] and (replace(found[0][0], kind=touched.pop()), found[0][1])
    for kind in OUTPUTS:
        if kind in touched:
            mark = _mark_of([each for each in written if each.kind == kind])
            found.append(mark and (replace(mark[0], kind=kind), mark[1]))
    whole, *parts = found
    marked = [part for part in parts if part is not None]
    if not marked or (whole and whole[1] > max(cosine for _, cosine in marked) - BLURRED):
        return whole
    if len(marked) == 1:
        return marked[0]
    together = AblationMark(
        strength=float(np.mean([mark.strength for mark, _ in marked])),
        layers=tuple(sorted({layer for mark, _ in marked for layer in mark.layers})),
        shared=all(mark.shared for mark, _ in marked),
    )
    return together, max(cosine for _, cosine in marked)


def _changed_by_rows(written: Sequence[Written]) -> bool:
    """Whether rows were changed along themselves, as pruning and scaling do."""
    lost, scaled = [], []
    for each in written:
        if not _is_changed(each.base, each.change):
            continue
        energy = np.square(each.change).sum(axis=1)
        sizes = np.linalg.norm(each.change, axis=1) * np.linalg.norm(each.base, axis=1)
        cosines = -(each.change * each.base).sum(axis=1) / np.maximum(sizes, 1e-30)
        lost.append(float(energy @ cosines / energy.sum()))
        scaled.append(float(energy @ np.abs(cosines) / energy.sum()))
    if not lost:
        return False
    least, gain = BY_ROWS
    limit = least + gain / np.sqrt(len(written[0].base))
    return bool(np.mean(lost) > limit or np.mean(scaled) > BY_SCALES)


def _is_changed(base: np.ndarray, change: np.ndarray) -> bool:
    return bool(np.linalg.norm(change) > UNCHANGED * np.linalg.norm(base))


def _mark_of(written: Sequence[Written]) -> tuple[AblationMark, float] | None:
    """Looks for the mark in every layer and in all of them together; with its cosine."""
    layers = sorted({each.layer for each in written})
    bases, changes = (
        {
            layer: np.concatenate([getattr(w, part) for w in written if w.layer == layer], axis=1)
            for layer in layers
        }
        for part in ("base", "change")
    )
    changed = [layer for layer in layers if _is_changed(bases[layer], changes[layer])]
    if len(changed) < 2:
        return None
    found = {layer: _fit(bases[layer], changes[layer]) for layer in changed}
    marked = [
        layer
        for layer in changed
        if found[layer].cosine > MARK_COSINE
        and found[layer].share > MARK_SHARE
        and found[layer].strength_in_range
    ]
    base = np.concatenate([bases[layer] for layer in changed], axis=1)
    together = _fit(base, np.concatenate([changes[layer] for layer in changed], axis=1))
    columns = base.shape[1]
    needed = max(TOGETHER_COSINE, TOGETHER_DEVIATIONS / np.sqrt(columns))
    if (
        columns >= MIN_TOGETHER
        and together.cosine > min(needed, MARK_COSINE)
        and together.share > TOGETHER_SHARE * together.share_before
        and together.strength_in_range
    ):
        # Rounding on top can hide the mark in single layers; together they show it.
        mark = AblationMark(together.strength, tuple(marked or changed), shared=True)
        return mark, together.cosine
    if varied := _varied_mark(written):
        return varied
    narrow = min(bases[layer].shape[1] for layer in changed) < NARROW
    share, few = (MARKED_NARROW, FEW_NARROW) if narrow else (MARKED_LAYERS, FEW_MARKED)
    enough = len(marked) >= max(few, share * len(changed))
    if enough and np.median([found[layer].there for layer in marked]) > THERE:
        strength = float(np.median([found[layer].strength for layer in marked]))
        cosine = float(np.median([found[layer].cosine for layer in marked]))
        return AblationMark(strength, tuple(marked), shared=False), cosine
    return None


def _varied_mark(written: Sequence[Written]) -> tuple[AblationMark, float] | None:
    """Looks for one direction of which each matrix has lost a part of its own, or none.

    So edits with a kernel over the layers do. Those that keep the norms of rows change more than
    the direction, so that the mark is not pure in any one matrix.
    """
    own = [each for each in written if _is_changed(each.base, each.change)]
    if len(own) < 2:
        return None
    sizes = [float(np.linalg.norm(each.change)) for each in own]
    even = np.concatenate([w.change / size for w, size in zip(own, sizes, strict=True)], axis=1)
    left, _, _ = np.linalg.svd(even, full_matrices=False)
    kept, lost = ([left[:, 0] @ getattr(w, part) for w in own] for part in ("base", "change"))
    fits = [
        compare_along(torch.from_numpy(k), torch.from_numpy(x))
        for k, x in zip(kept, lost, strict=True)
    ]
    along = np.array([np.linalg.norm(x) / size for x, size in zip(lost, sizes, strict=True)])
    cosines, strengths = (np.array(values) for values in zip(*fits, strict=True))
    cosine = float(along @ cosines / along.sum())
    # By chance a cosine in d dimensions has mean 0 and variance 1/d.
    columns = own[0].base.shape[1]
    deviations = cosine * along.sum() / np.sqrt(np.square(along).sum() / columns)
    before = np.mean([k @ k / np.square(w.base).sum() for k, w in zip(kept, own, strict=True)])
    share = float(np.square(along).mean())
    needed = PURE_DEVIATIONS if share > PURE else VARIED_DEVIATIONS
    if cosine <= TOGETHER_COSINE or deviations <= needed or share <= TOGETHER_SHARE * before:
        return None
    clear = (
        (cosines > TOGETHER_COSINE) & (np.square(along) > ALONG) & (strengths > MARK_STRENGTH[0])
    )
    marked = [w for w, is_clear in zip(own, clear, strict=True) if is_clear]
    if len(marked) < FEW_MARKED or {w.kind for w in marked} != {w.kind for w in own}:
        return None  # of one kind alone the mark is clearer where that is looked at by itself
    layers = sorted({w.layer for w in marked})
    return AblationMark(float(np.median(strengths[clear])), tuple(layers), shared=True), cosine


@dataclass(frozen=True)
class _Fit:
    """A change as an ablation of its own leading direction."""

    share: float
    """Of the change, along that direction."""
    share_before: float
    """Of the weights, along it."""
    cosine: float
    strength: float

    rows: int

    @property
    def there(self) -> float:
        """How much of the direction the weights wrote; 1 for a usual one."""
        return self.share_before * self.rows

    @property
    def strength_in_range(self) -> bool:
        """Whether a direction can be gone so far; what hardly was there is not turned round."""
        low, high = MARK_STRENGTH
        return low < self.strength < high and (self.strength < OVERDONE or self.there > EMPTY)


def _fit(base: np.ndarray, change: np.ndarray) -> _Fit:
    left, values, _ = np.linalg.svd(change, full_matrices=False)
    kept, lost = torch.from_numpy(left[:, 0] @ base), torch.from_numpy(left[:, 0] @ change)
    cosine, strength = compare_along(kept, lost)
    return _Fit(
        share=float(values[0] ** 2 / max((values**2).sum(), 1e-30)),
        share_before=float(kept @ kept / max(np.square(base).sum(), 1e-30)),
        cosine=cosine,
        strength=strength,
        rows=len(base),
    )
