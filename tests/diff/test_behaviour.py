"""Divergence and lost refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelassay.diff.behaviour import refusal_change, token_kl
from modelassay.statistics import mean_change


def test_divergence_over_all_tokens_is_exact_and_over_some_a_lower_bound():
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(7, 50, generator=draw).log_softmax(-1)
    q = torch.randn(7, 50, generator=draw).log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(token_kl(p, q), whole, atol=1e-5)
    order = p.argsort(dim=-1, descending=True)[:, :10]
    some = token_kl(p.gather(1, order), q.gather(1, order))
    assert (some <= whole + 1e-6).all()
    assert (some > 0).all()


def test_lost_refusals_are_counted_in_pairs():
    found = refusal_change(["refuses"] * 10, ["complies"] * 4 + ["evades"] * 5 + ["refuses"])
    assert found is not None
    assert (found.lost, found.gained) == (9, 0)
    assert (found.base_evades, found.candidate_evades) == (0, 0.5)
    assert found.p_value == pytest.approx(2 / 2**9)
    assert mean_change(np.array([1.0, 1.0])).interval == (1.0, 1.0)


def test_unfinished_thoughts_are_compared_with_nothing():
    found = refusal_change(["refuses"] * 20, [None, *["complies"] * 19])
    assert found is not None
    assert (found.n, found.lost, found.base_rate) == (19, 19, 1)
    assert refusal_change(["refuses"] * 20, [None] * 3 + ["complies"] * 17) is None
    assert refusal_change([None], [None]) is None
