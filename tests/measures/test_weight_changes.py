"""Products and singular values of a difference that is never whole in memory."""

from __future__ import annotations

import pytest
import torch

from modelassay.measures import weight_changes
from modelassay.measures.weight_changes import WeightChange, energy_of


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True])
def test_blocks_come_to_what_the_whole_is(dtype, turned, monkeypatch):
    """However the matrix lies in memory, and where the last block is a smaller one."""
    monkeypatch.setattr(weight_changes, "BLOCK", 7 * 40)
    before, after = (drawn(40, 60, seed=i).to(dtype) for i in range(2))
    if turned:
        before, after = before.T, after.T
    change = WeightChange(before, after)
    w, d = before.double(), after.double() - before.double()
    left, right = drawn(w.shape[0], 3), drawn(w.shape[1], 2)
    for found, expected in zip(
        (*change.times(right), *change.onto(left)),
        (w @ right.double(), d @ right.double(), left.double().T @ w, left.double().T @ d),
        strict=True,
    ):
        assert torch.allclose(found.double(), expected, atol=1e-4)
    for found, expected in (
        (change.row_energy, w.square().sum(1)),
        (change.row_overlap, (w * d).sum(1)),
        (change.change_energy, d.square().sum(1)),
        (change.column_energy, w.square().sum(0)),
        (change.column_overlap, (w * d).sum(0)),
    ):
        assert torch.allclose(found, expected, atol=1e-4)
    assert energy_of(before) == pytest.approx(change.scale, rel=1e-6)
    values = torch.linalg.svdvals(d)[:5]
    spectrum = change.spectrum(40)
    assert torch.allclose(spectrum.values[:5].double(), values, rtol=1e-4)
    rebuilt = spectrum.left @ torch.diag(spectrum.values) @ spectrum.right
    assert torch.allclose(rebuilt.double(), d, atol=1e-3)


@pytest.mark.parametrize("rank", [32, 64])
def test_a_decomposition_is_gone_on_with(rank):
    before = drawn(200, 300) / 10
    sizes = torch.exp(-2 * torch.arange(rank) / rank)
    low = (drawn(200, rank, seed=1) * sizes) @ drawn(rank, 300, seed=2) / 100
    change = WeightChange(before, before + low)
    first = change.spectrum(24)
    assert first.rank == 24
    assert change.spectrum(80, first).rank == rank
