"""Depths and distances of activation signatures."""

from __future__ import annotations

import pytest
import torch

from modelassay.measures.activation_signature import (
    N_DEPTHS,
    make_signature,
    signature_distances,
)
from modelassay.models.layers import spread_layers


def test_depths_end_with_the_last_block():
    assert spread_layers(30, N_DEPTHS) == (4, 9, 14, 19, 24, 29)
    assert spread_layers(1, N_DEPTHS) == (0,)
    for n in range(1, 100):
        depths = spread_layers(n, N_DEPTHS)
        assert depths[-1] == n - 1
        assert list(depths) == sorted(set(depths))


def test_distances_survive_the_projection():
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(64, 1, 2000, generator=draw)
    offset = 100 * torch.randn(2000, generator=draw)  # what all prompts share drops out
    near, other = a + 0.1 * torch.randn(a.shape, generator=draw), torch.randn(a.shape)
    zeros = torch.zeros(64)
    base, close, far = (make_signature(x, [0], zeros, []) for x in (a, near + offset, other))
    assert signature_distances(base, base)[0] == 0
    assert signature_distances(base, close)[0] == pytest.approx(0.1, abs=0.01)
    assert signature_distances(base, far)[0] == pytest.approx(2**0.5, abs=0.1)
