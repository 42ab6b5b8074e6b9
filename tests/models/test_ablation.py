"""Directions that are taken out of weights, and weights that are rounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import modelassay
from modelassay.errors import InputError
from modelassay.measures.erased_directions import search_ablation
from modelassay.models.ablation import (
    ABLATION_FILE,
    Ablation,
    ablate,
    load_ablation,
    round_to_int8,
    save_ablation,
)
from modelassay.models.writers import find_writers
from tiny import FAMILIES, unit


def writers(model):
    for writer in find_writers(model.network).found:
        weight = model.network.get_parameter(writer.name).detach()
        yield writer.layer, writer.rows(weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_ablated_blocks_cannot_write_the_direction(family, tiny_folder):
    model = modelassay.load(str(tiny_folder(family)), device="cpu")
    r = unit(32)
    before = [(layer, (r @ w).norm()) for layer, w in writers(model)]
    ablate(model.network, Ablation({1: r, 3: r}))
    after = [(layer, (r @ w).norm()) for layer, w in writers(model)]
    assert {layer for layer, _ in after} == set(range(5))
    for (layer, norm_before), (_, norm_after) in zip(before, after, strict=True):
        if layer in (1, 3):
            assert norm_after < 1e-5 * norm_before
        else:
            assert norm_after == norm_before


def test_strength_takes_its_share(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    r = unit(32)
    before = [r @ w for _, w in writers(model)]
    ablate(model.network, Ablation(dict.fromkeys(range(5), r), strength=0.75))
    for was, (_, weight) in zip(before, writers(model), strict=True):
        torch.testing.assert_close(r @ weight, 0.25 * was, rtol=1e-4, atol=1e-6)


def test_ablation_survives_the_disk(tmp_path):
    ablation = Ablation({2: unit(8, 1), 0: unit(8, 2)}, 0.5)
    save_ablation(ablation, tmp_path)
    read = load_ablation(tmp_path)
    assert read.strength == 0.5
    assert set(read.directions) == {0, 2}
    for layer, r in ablation.directions.items():
        torch.testing.assert_close(read.directions[layer], r)


@pytest.mark.parametrize(
    "directions", [{9: unit(32)}, {0: unit(16)}], ids=["no such layer", "other width"]
)
def test_directions_of_another_model_are_refused(directions, tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    with pytest.raises(InputError, match="another model"):
        ablate(model.network, Ablation(directions))


def test_damaged_directions_are_refused(tmp_path):
    with pytest.raises(InputError, match="build the organism again"):
        load_ablation(tmp_path)
    (tmp_path / ABLATION_FILE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="build the organism again"):
        load_ablation(tmp_path)


def test_int8_rounding_keeps_few_levels_and_stays_close(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    before = model.network.model.layers[0].mlp.down_proj.weight.clone()
    round_to_int8(model.network)
    after = model.network.model.layers[0].mlp.down_proj.weight
    for row, old in zip(after, before, strict=True):
        assert len(row.unique()) <= 255
        step = old.abs().max() / 127
        assert (row - old).abs().max() <= step / 2 * 1.001
    assert not torch.equal(before, after)


def test_the_fingerprint_sees_what_ablate_does(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    # A tiny network's spectrum is rough, so the test looks at the hole and not at the verdict.
    before = search_ablation(replace(model, adapter=model.source)).ratio_by_layer
    ablate(model.network, Ablation(dict.fromkeys(range(5), unit(32))))
    after = search_ablation(replace(model, adapter=model.source))
    assert after.detected
    assert max(after.ratio_by_layer.values()) < 0.01 < min(before.values())
