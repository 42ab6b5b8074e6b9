"""One matrix: does its change take directions out of it, which, how much, and by which formula?

Every tool that removes refusals by a direction r leaves a change ΔW with two marks that training
does not make. With W [out, in] writing to the stream, N the diagonal of its row norms and X = N⁻¹W:

    plain                    ΔW = -w r rᵀW
    row-normalised           ΔW = -w N r rᵀX
    norm-preserving          ΔW = N rownorm(X - w r rᵀX) - W, mostly cut to a low rank
    column-norm-preserving   ΔW = colnorm(W - w r rᵀW) - W

so that some direction t in the left space of ΔW (of N⁻¹ΔW in the second and third) has
tᵀΔW ≈ -w tᵀW: on the right stands what W itself wrote along t, not just any vector. This is looked
for first: with U an orthonormal basis of that space, UᵀΔW is regressed on UᵀW, and the directions
are the left eigenvectors of the coefficients. It stays visible under a fine-tune on top, and finds
several directions as well as one. Scaling a whole matrix has this form too, so a direction must
hold more of the change than of the weights; and single rows that were scaled or emptied have it,
so it must be a direction of many coordinates.

Then each family's formula is fitted. ⟨ΔW, ΔŴ⟩ and ‖ΔŴ‖² are sums over rows or columns of few
vectors (products of W and ΔW with r), so no predicted matrix is ever made; the family that leaves
least of ΔW over is named beside the next one. Intervals of strengths come from what is left over.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from modelassay.measures.weight_changes import Spectrum, WeightChange, kept_by_noise
from modelassay.models.ablation import RANK, Family

MOST_SEARCHED = 24
"""Singular vectors among which directions are looked for, at most."""
COLUMNS_EACH = 16
"""Columns of a matrix for each of them, so that chance does not fit what it regresses."""
MARK_COSINE = 0.95
"""Between tᵀΔW and tᵀW. Edits give 0.98 to 1.00; what is trained 0.1 to 0.4, and up to 0.9 where
training took back what an adapter had written."""
LEAST_RAW = 0.9
"""The same before noise is allowed for. Where weights were pruned or rounded coarsely, what is left
over is no noise without a pattern, and allowing for more would make edits of 0.6 to 0.8."""
CONCENTRATED = 3.0
"""Times as much of the change as of the weights must lie along a direction, and as much of it must
be gone as of each of its rows by itself: scaling, pruning and emptying change rows one by one."""
MOST_DIRECTIONS = 8
"""More than these are no few directions that were taken out."""
LEAST_STRENGTH = 0.02
EMPTY = 0.2
"""Of what a typical row writes: less is strange where nothing was edited, and no loss where it is
gone. Pruning and cutting a matrix to a lower rank empty such directions."""
SMALL_ROW = 0.05
"""Of the root mean square of row norms: shorter rows are scaled as if they had this norm."""
SPACES: dict[bool, tuple[Family, Family]] = {
    False: ("plain", "column-norm-preserving"),
    True: ("row-normalised", "norm-preserving"),
}
"""Families without and with rows scaled to one norm. Where several directions are gone, those of a
space cannot be told apart: what keeping norms changes is small, and fits as another mixture."""
FIXED_POINT = 3
"""Times a direction is improved by what it predicts."""
NODES = 5
"""Strengths at which an edit that was cut is worked out; the others are interpolated."""
Z95 = 1.96


@dataclass(frozen=True)
class Fit:
    """One family's formula, fitted to the change of one matrix."""

    direction: Tensor
    """float64 [rows], unit: r."""
    strength: float
    error: float
    """Standard error of the strength."""
    residual: float
    """‖ΔW - ΔŴ‖²."""


@dataclass(frozen=True)
class MatrixEdit:
    """What the change of one matrix tells about directions that were taken out of it."""

    energy: float
    """‖ΔW‖²."""
    noise: float
    """Of that, what rounding and the like make."""
    entries: int
    cosine: float
    """Of the direction that comes nearest to the mark, allowing for noise; 0 where none could."""
    n_directions: int
    """How many bear the mark."""
    fits: Mapping[Family, Fit] = field(default_factory=dict)
    """Of the direction that holds most of the change; empty where none bears the mark."""
    several: Mapping[Family, float] = field(default_factory=dict)
    """What is left over of ΔW with all marked directions, where there are more than one."""
    basis: Tensor | None = None
    """[rows, n] orthonormal: the space of the marked directions."""
    turned: bool = False
    """Whether it is the matrix before that lacks what the one after has."""
    rows_scaled: int = 0
    """Rows that were scaled or emptied."""

    @property
    def marked(self) -> bool:
        """Whether a direction was taken out."""
        return bool(self.fits)


@dataclass(frozen=True)
class _Candidate:
    """A direction in the left space of a change."""

    direction: Tensor
    """[rows], unit, in the scaled space where rows are normalised."""
    cosine: float
    lost: float
    """‖tᵀΔ‖²."""
    blur: float
    """Relative error that noise in the direction makes of a strength."""
    normalised: bool
    by_rows: bool
    """Whether it is gone because of what happened to single rows."""
    empty: bool
    """Whether the matrix before wrote next to nothing along it."""


def measure_edit(change: WeightChange, spectrum: Spectrum) -> MatrixEdit:
    """Looks for directions that were taken out of a matrix.

    Args:
        change: The matrix before and after, its rows along the residual stream.
        spectrum: Of its change.
    """
    rank = spectrum.rank
    noise = spectrum.noise(rank)
    rows, columns = change.shape
    searched = min(rank, MOST_SEARCHED, max(columns // COLUMNS_EACH, 1))
    nothing = MatrixEdit(change.energy, noise * rows * columns, rows * columns, 0.0, 0)
    if not searched or not change.scale:
        return nothing
    norms = row_norms(change.row_energy)
    found = _candidates(change, spectrum, norms, searched, noise)
    if any(c.by_rows and c.cosine > MARK_COSINE for c in found[False]):
        nothing = replace(nothing, rows_scaled=_scaled_rows(change))
    ours, reverse = (
        [c for c in found[turned] if not (c.by_rows or c.empty)] for turned in (False, True)
    )
    nearest, turned = _nearest(ours), _nearest(reverse)
    if turned > MARK_COSINE >= nearest:
        return replace(nothing, cosine=turned, turned=True)
    marked = [c for c in ours if c.cosine > MARK_COSINE]
    if not marked:
        return replace(nothing, cosine=nearest)
    spaces = {n: [c for c in marked if c.normalised == n] for n in (False, True)}
    widest = max(spaces.values(), key=len)
    if len(widest) > MOST_DIRECTIONS:
        return nothing
    starts = {n: max(x, key=lambda c: c.lost).direction for n, x in spaces.items() if x}
    plain = starts[False] if False in starts else _unit(norms * starts[True])
    scaled = starts[True] if True in starts else _unit(plain / norms)
    fits = _together(
        change,
        {
            "plain": _plain(change, plain),
            "column-norm-preserving": _column_norms_kept(change, plain),
            "row-normalised": _rows_scaled(change, scaled, norms),
            "norm-preserving": _row_norms_kept(change, spectrum, scaled, norms),
        },
    )
    several: dict[Family, float] = {}
    if len(widest) > 1:
        left = {n: _several(change, x, norms) for n, x in spaces.items() if len(x) > 1}
        several = {family: left[n] for n in left for family in SPACES[n]}
    blur = max(widest, key=lambda c: c.lost).blur
    return replace(
        nothing,
        cosine=nearest,
        n_directions=len(widest),
        fits={
            family: replace(fit, error=math.hypot(fit.error, blur * fit.strength))
            for family, fit in fits.items()
        },
        several=several,
        basis=torch.linalg.qr(torch.stack([c.direction for c in widest], dim=1)).Q,
    )


def _scaled_rows(change: WeightChange) -> int:
    """How many rows changed by a multiple of themselves."""
    alike = change.row_overlap.square() > 0.98 * change.row_energy * change.change_energy
    return int((alike & (change.change_energy > 1e-4 * change.row_energy)).sum())


def _nearest(candidates: Sequence[_Candidate]) -> float:
    return max((c.cosine for c in candidates), default=0.0)


def row_norms(row_energy: Tensor) -> Tensor:
    """[rows] norms to scale rows by; the shortest rows are taken for longer than they are."""
    least = SMALL_ROW * float(row_energy.mean().sqrt())
    return row_energy.sqrt().clamp_min(max(least, 1e-30))


def compare_along(kept: Tensor, lost: Tensor) -> tuple[float, float]:
    """The rule of the mark: how far tᵀΔ is -w tᵀW, as a cosine, and w.

    Args:
        kept: [columns] tᵀW.
        lost: [columns] tᵀΔ.
    """
    overlap = -float(kept @ lost)
    there = float(kept.square().sum())
    cosine = overlap / max((there * float(lost.square().sum())) ** 0.5, 1e-30)
    return cosine, overlap / max(there, 1e-30)


def _unit(vector: Tensor, dim: int = 0) -> Tensor:
    return vector / vector.norm(dim=dim, keepdim=True).clamp_min(1e-30)


def _candidates(
    change: WeightChange, spectrum: Spectrum, norms: Tensor, searched: int, noise: float
) -> dict[bool, list[_Candidate]]:
    """Directions near to the mark, in both spaces: of the change, and of its reverse (True)."""
    rows, columns = change.shape
    values = spectrum.values.double().cpu()
    left, right = spectrum.left.double().cpu(), spectrum.right.double().cpu()
    # The leading part of N⁻¹ΔW, whose noise is as large in long rows as in short ones.
    inner, scaled_values, turn = torch.linalg.svd(
        (left / norms[:, None]) * values, full_matrices=False
    )
    weights, _ = change.onto(
        torch.cat([left[:, :searched], inner[:, :searched] / norms[:, None]], dim=1)
    )
    weights = weights.double().cpu()
    plain = values[:searched, None] * right[:searched]
    scaled = scaled_values[:searched, None] * (turn[:searched] @ right)
    scaled_energy = float((change.change_energy / norms**2).sum())
    scaled_noise = max(scaled_energy - float(scaled_values.square().sum()), 0.0) / (rows * columns)
    scaled_scale = float((change.row_energy / norms**2).sum())
    # What is gone of each row by itself, read from either side.
    overlap, gone_by_row = change.row_overlap, {}
    now = change.row_energy + 2 * overlap + change.change_energy
    gone_by_row[False] = -overlap / change.row_energy.clamp_min(1e-30)
    gone_by_row[True] = (overlap + change.change_energy) / now.clamp_min(1e-30)
    found: dict[bool, list[_Candidate]] = {False: [], True: []}
    typical = float(change.row_energy.median()), float((change.row_energy / norms**2).median())
    for normalised, basis, lost, kept, e2, total, scale in (
        (False, left, plain, weights[:searched], noise, change.energy, change.scale),
        (True, inner, scaled, weights[searched:], scaled_noise, scaled_energy, scaled_scale),
    ):
        share = CONCENTRATED * max(total - e2 * rows * columns, 0.0) / scale
        for turned in (False, True):
            # Read from the other side, what was there is what is there now.
            before, gone = (kept + lost, -lost) if turned else (kept, lost)
            for t in _eigenvectors(gone, before):
                a, b = t @ gone, t @ before
                lost_along, there = float(a @ a), float(b @ b)
                raw, strength = compare_along(b, a)
                if lost_along <= share * there or strength <= LEAST_STRENGTH:
                    continue
                r = _unit(basis[:, :searched] @ t)
                left_kept, right_kept = kept_by_noise(lost_along**0.5, e2, change.shape)
                blur = (1 - left_kept) * scale / rows / max(there, 1e-30)
                rows_part = r.square() * (1 if normalised else norms**2)
                by_rows = float(rows_part @ gone_by_row[turned] / rows_part.sum())
                found[turned].append(
                    _Candidate(
                        r,
                        _cosine(raw, blur, right_kept),
                        lost_along,
                        blur,
                        normalised,
                        by_rows=strength <= CONCENTRATED * by_rows,
                        empty=there < EMPTY * typical[normalised],
                    )
                )
    return found


def _eigenvectors(change: Tensor, weights: Tensor) -> list[Tensor]:
    """Unit vectors t for which tᵀΔ is most like a multiple of tᵀW, both [n, columns]."""
    coefficients = change @ weights.T @ torch.linalg.pinv(weights @ weights.T, hermitian=True)
    _, vectors = torch.linalg.eig(coefficients.T)
    # Two directions of one strength come as a complex pair, whose parts span the same.
    parts = torch.cat([vectors.T.real, vectors.T.imag])
    parts = _unit(parts[parts.norm(dim=1) > 1e-6], dim=1)
    alike = ((parts @ parts.T).abs() >= 1 - 1e-6).tolist()
    kept: list[int] = []
    for i, others in enumerate(alike):
        if not any(others[k] for k in kept):
            kept.append(i)
    return list(parts[kept])


def _cosine(raw: float, blur: float, kept: float) -> float:
    """A cosine of tᵀΔ and tᵀW that is no chance, as it would be without noise.

    The part of t that noise made hears what W writes along any direction (`blur`), and of tᵀΔ
    only a part is `kept` from what it would be.
    """
    if raw < LEAST_RAW:
        return raw
    return min(raw / (max(1 - blur, 0.3) * max(kept, 0.3)) ** 0.5, 1.0)


@dataclass(frozen=True)
class _Ask:
    """Products that a fit waits for: with what writes (leftᵀW and leftᵀΔW) or what is read."""

    vectors: Tensor
    """[rows, n] or [columns, n]."""
    onto: bool


_Products = tuple[Tensor, Tensor]
"""Of W and of ΔW: float64 [n, columns] or [rows, n]."""
_Work = Generator[_Ask, _Products, Fit]


def _together(change: WeightChange, works: Mapping[Family, _Work]) -> dict[Family, Fit]:
    """Runs fits side by side: what they ask for at one time is read in one pass."""
    found: dict[Family, Fit] = {}
    asked = {family: next(work) for family, work in works.items()}
    while asked:
        for onto in (True, False):
            group = {family: ask for family, ask in asked.items() if ask.onto == onto}
            if not group:
                continue
            vectors = torch.cat([ask.vectors for ask in group.values()], dim=1)
            products = (change.onto if onto else change.times)(vectors)
            sizes = [ask.vectors.shape[1] for ask in group.values()]
            parts = (p.double().cpu().split(sizes, dim=0 if onto else 1) for p in products)
            for family, *product in zip(group, *parts, strict=True):
                try:
                    asked[family] = works[family].send((product[0], product[1]))
                except StopIteration as done:
                    found[family] = done.value
                    del asked[family]
    return {family: found[family] for family in works}


def _plain(change: WeightChange, start: Tensor) -> _Work:
    r = start
    for _ in range(FIXED_POINT):
        kept, _ = yield _Ask(r[:, None], onto=True)
        _, deltas = yield _Ask(kept.T, onto=False)
        r = _unit(-deltas[:, 0])
    kept, gone = (x[0] for x in (yield _Ask(r[:, None], onto=True)))
    w, error, there = _gone_along(kept, gone)
    return Fit(r, w, error, max(change.energy - w**2 * there, 0.0))


def _column_norms_kept(change: WeightChange, start: Tensor) -> _Work:
    r = start
    kept, gone = (x[0] for x in (yield _Ask(r[:, None], onto=True)))
    squares = change.column_energy.clamp_min(1e-30)

    def lengthened(w: float, kept: Tensor) -> Tensor:
        """[columns] by how much W_j - w r q_j has to be scaled to have the norm of W_j."""
        return (1 - (2 * w - w**2) * kept.square() / squares).clamp_min(1e-12).rsqrt()

    def left_over(w: float) -> float:
        scale = lengthened(w, kept)
        along = (scale - 1) * change.column_overlap - w * scale * kept * gone
        alike = scale * (squares - w * kept.square())
        return change.energy - 2 * float(along.sum()) + 2 * float((squares - alike).sum())

    w = _gone_along(kept, gone)[0]
    for _ in range(FIXED_POINT):
        w = _least(left_over, w)
        scale = lengthened(w, kept)
        right = scale * kept
        both = torch.stack([right, (scale - 1) * right], dim=1)
        weights, deltas = yield _Ask(both, onto=False)
        r = _unit(weights[:, 1] - deltas[:, 0])
        kept, gone = (x[0] for x in (yield _Ask(r[:, None], onto=True)))
    w = _least(left_over, w)
    return Fit(r, w, _gone_along(kept, gone)[1], max(left_over(w), 0.0))


@dataclass(frozen=True)
class _Scaled:
    """A direction of scaled rows, and what is there and gone along it."""

    r: Tensor
    """[rows], unit."""
    c: Tensor
    """[columns] rᵀN⁻¹W."""
    gone: Tensor
    """[columns] rᵀN⁻¹ΔW."""
    along: Tensor
    """[rows] Wc."""
    h: Tensor
    """[rows] ΔWc."""

    def strength(self, norms: Tensor) -> tuple[float, float, float]:
        """Of -w N r c, with its standard error, and ‖N r c‖²."""
        left, size = norms * self.r, float(self.c @ self.c)
        there = float(left @ left) * size
        w = -float(left @ self.h) / max(there, 1e-30)
        return w, _error(self.gone + w * self.c, size), there


def _rows_scaled(change: WeightChange, start: Tensor, norms: Tensor) -> _Work:
    found = yield from _improved(start, norms, keep_norms=False)
    w, error, there = found.strength(norms)
    return Fit(found.r, w, error, max(change.energy - w**2 * there, 0.0))


def _row_norms_kept(
    change: WeightChange, spectrum: Spectrum, start: Tensor, norms: Tensor
) -> _Work:
    found = yield from _improved(start, norms, keep_norms=True)
    r, c, h = found.r, found.c, found.h
    size, along = float(c @ c), found.along / norms

    def predicted(w: float) -> tuple[Tensor, Tensor]:
        """α and β of ΔŴ_i = α_i W_i + β_i c."""
        z = w * r
        short = (1 - 2 * z * along + z.square() * size).clamp_min(1e-12).rsqrt()
        return short - 1, -norms * z * short

    def whole(w: float) -> float:
        alpha, beta = predicted(w)
        with_change = float(alpha @ change.row_overlap + beta @ h)
        squares = alpha.square() * change.row_energy + beta.square() * size
        squares += 2 * alpha * beta * norms * along
        return change.energy - 2 * with_change + float(squares.sum())

    first, error, _ = found.strength(norms)
    w = _least(whole, first)
    # Of an edit that was cut to a few singular vectors, only these are predicted. W is asked once,
    # for its products at some strengths: between them they follow a polynomial.
    few = min(RANK, len(spectrum.values))
    across = spectrum.left[:, :few].double().cpu()
    had = spectrum.values[:few, None].double().cpu() * spectrum.right[:few].double().cpu()
    nodes = _nodes(w)
    scaled = torch.cat([across * predicted(node)[0][:, None] for node in nodes], dim=1)
    products = (yield _Ask(scaled, onto=True))[0].unflatten(0, (len(nodes), few))

    def cut(w: float) -> float:
        rows = torch.tensordot(_interpolation(nodes, w), products, 1)
        rows += torch.outer(across.T @ predicted(w)[1], c)
        return change.energy - 2 * float((had * rows).sum()) + float(rows.square().sum())

    cut_w = _least(cut, w)
    residual, w = min((whole(w), w), (cut(cut_w), cut_w))
    return Fit(r, w, error, max(residual, 0.0))


def _improved(
    start: Tensor, norms: Tensor, *, keep_norms: bool
) -> Generator[_Ask, _Products, _Scaled]:
    """A direction improved by what it predicts of ΔWc."""
    r = start
    for step in range(FIXED_POINT + 1):
        c, gone = (x[0] for x in (yield _Ask((r / norms)[:, None], onto=True)))
        along, h = (x[:, 0] for x in (yield _Ask(c[:, None], onto=False)))
        if step == FIXED_POINT:
            return _Scaled(r, c, gone, along, h)
        size, seen = float(c @ c), h / norms
        z = -seen / max(size, 1e-30)
        if keep_norms:
            z = _solve_rows(seen, along / norms, size, z)
        r = _unit(z) * torch.sign(z @ r)
    raise AssertionError


def _solve_rows(seen: Tensor, along: Tensor, size: float, z: Tensor) -> Tensor:
    """Finds z_i = w r_i from ⟨ΔX_i, c⟩ = α_i ⟨X_i, c⟩ - z_i ‖c‖² / s_i, by Newton's method."""
    for _ in range(12):
        short = (1 - 2 * z * along + z.square() * size).clamp_min(1e-9).rsqrt()
        value = (short - 1) * along - z * size * short - seen
        # d/dz of (X_i - z c)ᵀc / s_i, which falls: no row turns past -c.
        slope = -(size - along.square()) * short**3
        z = z - (value / slope.clamp_max(-0.05 * size)).clamp(-0.5, 0.5)
    return z


def _several(change: WeightChange, marked: Sequence[_Candidate], norms: Tensor) -> float:
    """What all marked directions together leave over of the change."""
    basis = torch.linalg.qr(torch.stack([c.direction for c in marked], dim=1)).Q
    scale = norms[:, None] if marked[0].normalised else torch.ones_like(norms[:, None])
    kept, gone = (x.double().cpu() for x in change.onto(basis / scale))
    coefficients = gone @ kept.T @ torch.linalg.pinv(kept @ kept.T, hermitian=True)
    predicted = coefficients @ kept
    across = basis * scale
    back = change.onto(across)[1].double().cpu()
    squares = (across.T @ across) @ predicted
    energy = change.energy - 2 * float((back * predicted).sum())
    return max(energy + float((squares * predicted).sum()), 0.0)


def strength_along(change: WeightChange, family: Family, r: Tensor) -> Fit:
    """How much of a direction that is known from elsewhere was taken out of a matrix.

    Args:
        change: The matrix before and after.
        family: Whose formula takes it out.
        r: float64 [rows], unit.
    """
    norms = torch.ones_like(r)
    if family in ("row-normalised", "norm-preserving"):
        norms = row_norms(change.row_energy)
    kept, gone = (x[0].double().cpu() for x in change.onto((r / norms)[:, None]))
    w, error, _ = _gone_along(kept, gone)
    return Fit(r, w, error, change.energy)


def _gone_along(kept: Tensor, gone: Tensor) -> tuple[float, float, float]:
    """How much of a direction is gone, its standard error, and ‖rᵀW‖²."""
    there = float(kept @ kept)
    w = -float(gone @ kept) / max(there, 1e-30)
    return w, _error(gone + w * kept, there), there


def _error(left_over: Tensor, there: float) -> float:
    """Standard error of the coefficient that leaves these values over."""
    freedom = max(len(left_over) - 1, 1)
    return math.sqrt(float(left_over @ left_over) / freedom / max(there, 1e-30))


def _least(value: Callable[[float], float], near: float, steps: int = 25) -> float:
    """The strength near a first guess that leaves least over."""
    from scipy.optimize import minimize_scalar

    low, high = _bracket(near)
    if not high > low:
        return near
    found = minimize_scalar(value, bounds=(low, high), method="bounded", options={"maxiter": steps})
    return float(found.x)


def _bracket(near: float) -> tuple[float, float]:
    low, high = sorted((0.7 * near, 1.4 * near))
    return low, high


def _nodes(near: float) -> list[float]:
    """Chebyshev's nodes in the bracket of a strength."""
    low, high = _bracket(near)
    angles = [math.pi * (i + 0.5) / NODES for i in range(NODES)]
    return [(low + high + (high - low) * math.cos(angle)) / 2 for angle in angles]


def _interpolation(nodes: Sequence[float], at: float) -> Tensor:
    """[nodes] Lagrange's weights: what a polynomial through values at the nodes is elsewhere."""
    x = torch.tensor(nodes, dtype=torch.float64)
    return torch.stack(
        [
            torch.cat(
                [(at - x[:k]) / (x[k] - x[:k]), (at - x[k + 1 :]) / (x[k] - x[k + 1 :])]
            ).prod()
            for k in range(len(x))
        ]
    )
