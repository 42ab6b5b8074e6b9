"""A kernel is found again in the strengths that it gives."""

from __future__ import annotations

import pytest

from modelassay.measures.edit_kernels import fit_kernel
from modelassay.models.kernels import draw_kernels


@pytest.mark.parametrize("seed", range(12))
def test_kernels_drawn_as_heretic_draws_them(seed):
    for kernel in draw_kernels(28, seed).values():
        strengths = {layer: kernel.at(layer) for layer in range(28)}
        found = fit_kernel(strengths)
        if sum(s > 0 for s in strengths.values()) < 4:
            assert found is None
            continue
        assert found.explained > 0.95
        near = [abs(found.kernel.at(layer) - strength) for layer, strength in strengths.items()]
        assert max(near) < 0.1 * kernel.strength
        assert found.to_dict()["strength"] == found.kernel.strength


def test_one_strength_for_all_layers_is_flat():
    found = fit_kernel(dict.fromkeys(range(10), 1.0))
    assert found.kernel.strength == pytest.approx(1)
    assert found.kernel.least == pytest.approx(1)


def test_strengths_without_order_fit_no_kernel():
    assert fit_kernel({layer: 1.0 * (layer % 2) for layer in range(12)}) is None
