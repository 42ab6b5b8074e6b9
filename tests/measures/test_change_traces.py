"""Exact zeros of sparsified merges are told from those that rounding leaves."""

from __future__ import annotations

import pytest
import torch

from modelassay.measures.change_traces import find_traces


@pytest.fixture
def base():
    return torch.randn(96, 200, generator=torch.Generator().manual_seed(0)) / 14


def change(base, size, seed=1):
    return size * torch.randn(base.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.8])
def test_dropped_changes_are_told(base, dtype, kept):
    base = base.to(dtype)
    mask = torch.rand(base.shape, generator=torch.Generator().manual_seed(2)) < kept
    found = find_traces(base, (base + change(base, 0.02) * mask / kept).to(dtype))
    assert found.sparsified
    assert found.unchanged == pytest.approx(1 - kept, abs=0.05)
    assert found.pruned == 0


@pytest.mark.parametrize("size", [1e-6, 1e-5, 1e-4, 1e-3, 1e-2])
def test_small_steps_that_rounding_swallows_are_not(base, size):
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        before = base.to(dtype)
        assert not find_traces(before, (before + change(base, size)).to(dtype)).sparsified


def test_steps_of_a_coarse_grid_are_not(base):
    def grid(weight):
        step = weight.abs().amax(dim=1, keepdim=True) / 7
        return (weight / step).round() * step

    step = base.abs().amax(dim=1, keepdim=True) / 7
    after = ((base + change(base, 0.003)) / step).round() * step
    assert not find_traces(grid(base), after).sparsified


def test_pruned_weights_are_counted_apart(base):
    after = base * (base.abs() > base.abs().median())
    found = find_traces(base, after)
    assert found.pruned == pytest.approx(0.5, abs=0.02)
    assert not found.sparsified
