"""Every family of edits is told by its formula, at every strength, under every kind of rounding."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from modelassay.measures.matrix_edits import MatrixEdit, measure_edit, strength_along
from modelassay.measures.weight_changes import WeightChange
from modelassay.models.ablation import edit_matrix, ridge_directions

FAMILIES = ("plain", "row-normalised", "norm-preserving", "column-norm-preserving")
HIDDEN, COLUMNS = 96, 256


def direction(seed: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(HIDDEN, generator=draw), dim=0)


def weight(*, outliers: bool = False, seed: int = 0) -> torch.Tensor:
    """A matrix with some columns larger than others, and maybe long rows where r is large."""
    draw = torch.Generator().manual_seed(100 + seed)
    matrix = torch.randn(HIDDEN, COLUMNS, generator=draw) * torch.linspace(0.3, 2, COLUMNS)
    if outliers:
        matrix[direction(seed).abs().topk(6).indices] *= 6
    return matrix / COLUMNS**0.5


def rounded(matrix: torch.Tensor, how: str) -> torch.Tensor:
    if how in ("bfloat16", "float16"):
        return matrix.to(getattr(torch, how))
    if how == "int8":
        step = matrix.abs().amax(dim=1, keepdim=True) / 127
        return (matrix / step).round() * step
    return matrix


def measure(before: torch.Tensor, after: torch.Tensor) -> MatrixEdit:
    change = WeightChange(before, after)
    return measure_edit(change, change.spectrum(24))


def best(found: MatrixEdit) -> str:
    return min(found.fits, key=lambda family: found.fits[family].residual)


@pytest.mark.parametrize("outliers", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("strength", [0.05, 0.5, 1.0, 1.3, 6.0])
def test_family_direction_and_strength_are_told(family, strength, outliers):
    before = weight(outliers=outliers)
    found = measure(before, edit_matrix(before, direction(0), strength, family))
    assert found.marked
    assert found.n_directions == 1
    assert best(found) == family
    fit = found.fits[family]
    assert fit.strength == pytest.approx(strength, rel=0.03)
    assert abs(float(fit.direction @ direction(0).double())) > 0.995
    assert fit.residual < 0.01 * found.energy


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("how", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("outliers", [False, True])
def test_rounding_hides_no_edit(family, how, outliers):
    before = weight(outliers=outliers)
    for strength in (0.2, 1.0):
        after = rounded(edit_matrix(before, direction(0), strength, family), how)
        found = measure(before, after)
        assert best(found) == family
        fit = found.fits[family]
        assert fit.strength == pytest.approx(strength, abs=4 * fit.error + 0.01)


def test_a_norm_preserving_edit_that_was_not_cut_is_told_too():
    before = weight(outliers=True)
    after = edit_matrix(before, direction(0), 1.1, "norm-preserving", rank=None)
    found = measure(before, after)
    assert best(found) == "norm-preserving"
    assert found.fits["norm-preserving"].residual < 1e-3 * found.energy


@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_a_reflection_keeps_all_norms_and_is_plain(strength):
    before = weight()
    found = measure(before, edit_matrix(before, direction(0), strength))
    plain = found.fits["plain"]
    assert plain.strength == pytest.approx(strength, abs=1e-3)
    # Turned round, columns keep their norms, and the formula that keeps them says the same.
    same = found.fits["column-norm-preserving"].residual < 1e-3 * found.energy
    assert same == (strength == 2.0)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_directions_are_counted(count):
    before = weight()
    several = torch.stack([direction(seed) for seed in range(count)])
    found = measure(before, edit_matrix(before, several, 0.9))
    assert found.n_directions == count
    assert found.several["plain"] < 1e-3 * found.energy


def test_a_ridge_projector_takes_each_direction_out_in_part():
    drawn = torch.stack([direction(seed) for seed in range(3)])
    basis, shares = ridge_directions(drawn, 0.3)
    before = weight()
    found = measure(before, edit_matrix(before, basis, 1.0, shares=shares))
    assert found.n_directions == 3
    assert found.several["plain"] < 1e-3 * found.energy


@pytest.mark.parametrize("strength", [1.0, 1.1])
def test_a_swapped_pair_is_turned(strength):
    """Taken for the base, the edited matrix lacks what the other has."""
    whole = weight()
    edited = edit_matrix(whole, direction(0), strength)
    assert measure(whole, edited).marked
    found = measure(edited.bfloat16(), whole)
    assert found.turned
    assert not found.marked


def test_half_an_ablation_backwards_is_no_ablation():
    whole = weight()
    found = measure(edit_matrix(whole, direction(0), 0.5), whole)
    assert found.turned
    assert not found.marked


def test_an_edit_shows_under_a_fine_tune():
    before, draw = weight(), torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, 8, generator=draw) for n in (HIDDEN, COLUMNS))
    tuned = before + 0.01 * a @ b.T / COLUMNS**0.5
    found = measure(before, edit_matrix(tuned, direction(0), 1.0))
    assert found.marked
    assert found.fits["plain"].strength == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    "benign",
    [
        lambda w, draw: 0.9 * w,
        lambda w, draw: w + 0.01 * torch.randn(w.shape, generator=draw),
        lambda w, draw: w * (torch.rand(w.shape, generator=draw) > 0.3),
        lambda w, draw: w * (w.abs() > w.abs().median()),
        lambda w, draw: w * (1 + 0.3 * torch.rand(len(w), 1, generator=draw)),
        lambda w, draw: w * (1 + 0.3 * torch.rand(w.shape[1], generator=draw)),
        lambda w, draw: w * (torch.arange(COLUMNS) > 3),
        lambda w, draw: w.bfloat16().float(),
        lambda w, draw: rounded(w, "int8"),
    ],
    ids=[
        "smaller",
        "noise",
        "pruned",
        "pruned by size",
        "rows",
        "columns",
        "neurons",
        "bfloat16",
        "int8",
    ],
)
@pytest.mark.parametrize("outliers", [False, True])
def test_other_changes_bear_no_mark(benign, outliers):
    before = weight(outliers=outliers)
    found = measure(before, benign(before, torch.Generator().manual_seed(2)))
    assert not found.marked
    assert not found.turned


@pytest.mark.parametrize("rank", [1, 2, 8, 32])
def test_a_low_rank_change_bears_no_mark(rank):
    before, draw = weight(), torch.Generator().manual_seed(3)
    a, b = torch.randn(HIDDEN, rank, generator=draw), torch.randn(rank, COLUMNS, generator=draw)
    found = measure(before, before + 0.01 * a @ b)
    assert not found.marked
    assert found.cosine < 0.8


def test_rows_that_were_emptied_are_no_direction():
    before = weight()
    after = before.clone()
    after[[3, 50]] = 0
    found = measure(before, after)
    assert not found.marked
    assert found.rows_scaled == 2


@pytest.mark.parametrize("cut", [2, 4, 6])
def test_cutting_off_where_next_to_nothing_was_written_is_no_edit(cut):
    """As a low-rank copy does; it is exactly the form of an edit, and takes nothing away."""
    before = torch.randn(96, 96, generator=torch.Generator().manual_seed(1))
    left, values, right = torch.linalg.svd(before)
    found = measure(before, (left[:, :-cut] * values[:-cut]) @ right[:-cut])
    assert not found.marked
    assert not found.turned
    usual = left[:, 40]
    assert measure(before, before - torch.outer(usual, usual @ before)).marked


def test_nothing_is_said_of_nothing():
    zero = torch.zeros(HIDDEN, COLUMNS)
    assert not measure(zero, weight()).marked
    assert not measure(weight(), zero).marked
    flat = torch.outer(direction(0), torch.ones(COLUMNS))  # of rank one
    assert measure(flat, edit_matrix(flat, direction(1), 1.0)).n_directions <= 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_known_direction_is_followed_where_it_hardly_shows(family):
    before = weight()
    after = rounded(edit_matrix(before, direction(0), 0.03, family), "int8")
    fit = strength_along(WeightChange(before, after), family, direction(0).double())
    assert fit.strength == pytest.approx(0.03, abs=4 * fit.error + 0.003)
    assert fit.error < 0.005
