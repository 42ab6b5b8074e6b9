"""Features at tokens, and what becomes of them in the mean."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csc_matrix

from modelassay.sae import firing
from modelassay.sae.firing import fire, mean_by_owner
from saes import signed_axes


def test_features_at_tokens_are_those_of_the_module(monkeypatch):
    monkeypatch.setattr(firing, "TOKENS_AT_ONCE", 3)
    sae = signed_axes(8, 1)
    read = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    found = fire(sae, read)
    assert np.allclose(found.values.toarray(), sae.module.encode(read).detach(), atol=1e-6)
    assert found.explained == pytest.approx(1)
    with torch.no_grad():
        sae.module.b_dec += 9.0
    assert fire(sae, read).explained < 0


def test_means_are_over_the_tokens_that_are_looked_at():
    values = torch.tensor([[1.0, 0], [3, 0], [5, 2], [7, 0]])
    found = mean_by_owner(csc_matrix(values), np.array([0, 1, 3]), np.array([0, 0, 1]), 2)
    assert found.toarray().tolist() == [[2, 0], [7, 0]]
