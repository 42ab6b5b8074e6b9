"""What a band of layers shows that no single layer does, on planted edits and on intact weights."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from modelassay.measures import erased_directions
from modelassay.measures.erased_directions import search_writers
from modelassay.measures.suspicion import (
    ALPHA,
    Band,
    judge_band,
    neighbours,
    plan_bands,
    rows_scaled,
    suspect,
)
from modelassay.models.ablation import edit_matrix
from modelassay.models.kernels import Kernel
from modelassay.models.writers import Writer

HIDDEN, LAYERS = 160, 16
KERNEL = Kernel(peak=10, distance=5, strength=1.1, least=0.5)


def weights(seed=0, outliers=1.0):
    """Square attention outputs and wide MLP outputs, some of whose rows may be large."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.ones(HIDDEN, 1)
    sizes[::20] = outliers
    return {
        (kind, layer): sizes * torch.randn(HIDDEN, columns, generator=generator)
        for layer in range(LAYERS)
        for kind, columns in (("attention", HIDDEN), ("mlp", 400))
    }


def search(matrices, **options):
    readers = {
        Writer(f"{kind}{layer}", layer, 0, kind): [lambda w=w: w]
        for (kind, layer), w in matrices.items()
    }
    return search_writers(readers, HIDDEN, **options)


def edited(matrices, kinds, family, kernel=KERNEL):
    r = normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(9)), dim=0)
    return {
        (kind, layer): edit_matrix(w, r, kernel.at(layer), family)
        if kind in kinds and kernel.at(layer)
        else w
        for (kind, layer), w in matrices.items()
    }


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("outliers", [1.0, 6.0])
def test_intact_weights_are_not_suspected(seed, outliers):
    evidence = search(weights(seed, outliers))
    assert (evidence.detected, evidence.suspected) == (False, None)


@pytest.mark.parametrize("family", ["row-normalised", "norm-preserving"])
@pytest.mark.parametrize("kinds", [("attention",), ("mlp",)])
@pytest.mark.parametrize("outliers", [1.0, 6.0])
def test_edits_by_a_kernel_are_suspected_or_certain(family, kinds, outliers):
    evidence = search(edited(weights(0, outliers), kinds, family))
    if not evidence.detected:
        found = evidence.suspected
        assert found is not None
        assert found.p_value < ALPHA
        assert found.kind == kinds[0]
        assert set(found.layers) <= set(range(4, 17))
        assert evidence.suspicion_text == found.text
        assert "modelassay diff BASE MODEL" in found.text
    else:
        assert evidence.suspected is None


def test_very_large_models_are_searched_in_a_sample_of_runs(monkeypatch):
    monkeypatch.setattr(erased_directions, "LARGE", HIDDEN)
    monkeypatch.setattr(erased_directions, "VAST", HIDDEN)
    seen = []
    intact = search(weights(), on_progress=lambda done, total: seen.append((done, total)))
    assert (intact.detected, intact.suspected) == (False, None)
    assert intact.eigenvalue_ratio is not None
    assert intact.eigenvalue_ratio > 0.3
    assert "12 of 16 layers were searched; --mode full searches all" in intact.limits
    assert seen == [(done, 24) for done in range(25)]
    whole = search(weights(), all_layers=True)
    assert sorted(whole.ratio_by_layer) == list(range(LAYERS))
    assert not any("searches all" in limit for limit in whole.limits)
    erased = search(edited(weights(), ("mlp",), "plain", Kernel(10, 20, 1.0, 1.0)))
    assert erased.detected
    assert list(erased.by_kind) == ["mlp"]
    assert erased.shared


def test_a_weak_edit_and_a_reflection_are_not_seen():
    for strength in (0.3, 2.0):
        kernel = Kernel(10, 5, strength, strength)
        evidence = search(edited(weights(), ("attention", "mlp"), "plain", kernel))
        assert (evidence.detected, evidence.suspected) == (False, None)


def test_scaled_rows_have_the_direction_itself_as_null_vector():
    weight = weights(outliers=6.0)["mlp", 0]
    r = normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(1)), dim=0)
    edit = edit_matrix(weight, r, 1.0, "norm-preserving", rank=None)
    gram = rows_scaled(edit @ edit.T)
    norms = normalize(edit.norm(dim=1), dim=0)
    left = r @ gram @ r - (r @ norms) ** 2  # the direction along the norms is filled
    assert left < 0.02 * gram.diagonal().mean()


def test_a_coordinate_of_its_own_counts_little():
    total = torch.eye(HIDDEN) + 0.05 * torch.randn(
        HIDDEN, HIDDEN, generator=torch.Generator().manual_seed(0)
    )
    total = total @ total.T
    axis, spread = torch.zeros(HIDDEN), torch.full((HIDDEN,), HIDDEN**-0.5)
    axis[3] = 1

    def score(r):
        keep = torch.eye(HIDDEN) - 0.9 * torch.outer(r, r)
        return judge_band("mlp", (0,), keep @ total @ keep).score

    assert score(axis) < 0.2 * score(spread)


def test_rough_models_are_held_against_themselves():
    def bands(usual):
        quiet = [Band("mlp", (i,), 0.1, usual, 0.9, 1) for i in range(40)]
        return [*quiet, Band("mlp", (40, 41), 40.0, 9.0, 0.1, 1)]

    smooth, rough = suspect(bands(0.2)), suspect(bands(3.0))
    assert smooth is not None
    assert smooth.layers == (40, 41)
    assert rough is None


def test_bands_cover_all_layers_in_every_width():
    bands = plan_bands(range(11))
    for width in (1, 2, 4, 8, 11):
        assert {x for band in bands if len(band) == width for x in band} == set(range(11))
    assert plan_bands([3]) == [(3,)]


@pytest.mark.parametrize("n", [1, 2, 3, 7, 80])
def test_neighbours_reach_the_last_layer(n):
    every = neighbours(range(n), None)
    assert {x for run in every for x in run} == set(range(n))
    sample = neighbours(range(n), 4)
    assert set(sample) <= set(every)
    assert len(sample) == min(4, len(every))
    assert sample[-1][-1] == n - 1
