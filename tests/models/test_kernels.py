"""heretic's strengths by layer, and the edits drawn from its ranges."""

from __future__ import annotations

import pytest
import torch

from modelassay.models.kernels import Kernel, draw_ablation, draw_kernels

N_LAYERS = 30
DIRECTIONS = dict(enumerate(torch.eye(N_LAYERS)))


def test_a_kernel_is_a_tent_with_an_edge():
    kernel = Kernel(peak=20.5, distance=4.0, strength=1.2, least=0.4)
    assert [kernel.at(layer) for layer in (16, 17, 20, 21, 24, 25)] == pytest.approx(
        [0.0, 0.5, 1.1, 1.1, 0.5, 0.0]
    )
    assert Kernel(peak=3.0, distance=0.0, strength=1.0, least=0.0).at(3) == 1.0


def test_kernels_keep_to_the_ranges_that_heretic_searches():
    drawn = [draw_kernels(N_LAYERS, seed) for seed in range(300)]
    last = N_LAYERS - 1
    for kernels in drawn:
        assert 0.8 <= kernels["attention"].strength <= 1.5
        for kernel in kernels.values():
            assert 0 <= kernel.least <= kernel.strength <= 1.5
            assert 0.6 * last <= kernel.peak <= last
            assert 1.0 <= kernel.distance <= 0.6 * last
    without_mlp = sum(kernels["mlp"].strength == 0 for kernels in drawn)
    assert 0.08 < without_mlp / len(drawn) < 0.22  # one in seven
    assert draw_kernels(N_LAYERS, 5) == drawn[5]


def test_drawn_ablations_have_one_direction_or_each_layer_its_own():
    shared = 0
    for seed in range(40):
        ablation = draw_ablation(DIRECTIONS, N_LAYERS, seed)
        first, *rest = ablation.directions.values()
        kernels = draw_kernels(N_LAYERS, seed)
        for kind, kernel in kernels.items():
            for layer in range(N_LAYERS):
                assert ablation.strength_at(kind, layer) == kernel.at(layer)
        if all(torch.equal(first, r) for r in rest):
            shared += 1
            assert first.norm() == pytest.approx(1.0)
            low, high = first.nonzero().flatten().tolist()
            assert high == low + 1
            assert 0.4 * 29 - 1 < low < high < 0.9 * 29 + 1
        else:
            assert all(torch.equal(r, DIRECTIONS[i]) for i, r in ablation.directions.items())
    assert 10 < shared < 30
