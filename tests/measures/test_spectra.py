"""Gram matrices by blocks and eigenpairs by inverse iteration, against plain decompositions."""

from __future__ import annotations

import pytest
import torch

from modelassay.measures import spectra
from modelassay.measures.spectra import gram_of, smallest_pairs


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_blocks_make_the_whole_matrix(monkeypatch):
    monkeypatch.setattr(spectra, "ROWS", 7)
    monkeypatch.setattr(spectra, "COLUMNS", 11)
    first, second = random(40, 50), random(40, 9, seed=1).bfloat16()
    first[:, :3] = 0
    gram, columns = gram_of([first, second])
    whole = torch.cat([first, second.float()], dim=1)
    torch.testing.assert_close(gram, whole @ whole.T)
    assert columns == 56


def test_a_part_of_the_columns_lacks_what_all_lack(monkeypatch):
    monkeypatch.setattr(spectra, "LARGE", 64)
    weight = random(64, 512)
    r = torch.nn.functional.normalize(random(64, seed=1), dim=0)
    weight -= torch.outer(r, r @ weight)
    gram, columns = gram_of([weight])
    assert columns == 128
    assert r @ gram @ r < 1e-4


@pytest.mark.parametrize("seed", range(3))
def test_smallest_pairs_are_those_of_a_full_decomposition(seed):
    weight = random(300, 700, seed=seed) * torch.linspace(0.2, 3, 300)[:, None]
    gram = weight @ weight.T / 700
    before = gram.clone()
    values, vectors = smallest_pairs(gram, 6)
    assert torch.equal(gram, before)
    exact, directions = torch.linalg.eigh(gram.double())
    torch.testing.assert_close(values[:3], exact[:3], rtol=1e-2, atol=1e-6)
    assert (vectors[:, 0].double() @ directions[:, 0]).abs() > 0.99
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(6), atol=1e-4, rtol=0)


def test_null_directions_come_out_as_nothing():
    weight = random(300, 700)
    q = torch.linalg.qr(random(300, 3, seed=1))[0]
    weight -= q @ (q.T @ weight)
    values, vectors = smallest_pairs(weight @ weight.T / 700, 5)
    assert values[:3].abs().max() < 1e-5
    assert values[3] > 0.01
    assert (q.T @ vectors[:, :3]).square().sum() == pytest.approx(3, abs=1e-3)


def test_a_matrix_of_zeros_has_eigenvalues():
    values, _ = smallest_pairs(torch.zeros(200, 200), 3)
    assert values.abs().max() == 0
