"""Directions that are taken out of weights, and weights that are rounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import modelassay
from modelassay.errors import InputError
from modelassay.measures.erased_directions import search_ablation
from modelassay.models.ablation import (
    Ablation,
    ablate,
    add_biases,
    edit_matrix,
    load_ablation,
    plant_outlier_rows,
    ridge_directions,
    round_to_int4,
    round_to_int8,
    save_ablation,
)
from modelassay.models.organisms import ABLATION_FILE
from modelassay.models.writers import find_writers
from tiny import FAMILIES, unit


def found_in(model):
    return find_writers(model.network).found


def writers(model):
    for writer in found_in(model):
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


N_OUT, N_IN = 24, 40


def matrix(seed: int = 0) -> torch.Tensor:
    """A matrix whose rows differ in size tenfold."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.logspace(-0.5, 0.5, N_OUT, dtype=torch.float64)
    return sizes[:, None] * torch.randn(N_OUT, N_IN, generator=draw, dtype=torch.float64)


def several(n: int) -> torch.Tensor:
    rows = torch.stack([unit(N_OUT, seed) for seed in range(n)]).double()
    return rows / rows.norm(dim=1, keepdim=True)


def test_row_normalised_edit_empties_the_direction_scaled_by_the_rows():
    weight, r = matrix(), several(1)[0]
    edited = edit_matrix(weight, r, 1.0, "row-normalised")
    norms = weight.norm(dim=1)
    assert ((r / norms) @ edited).norm() < 1e-12
    assert (r @ edited).norm() > 0.01 * (r @ weight).norm()


def test_norm_preserving_edit_keeps_rows_and_is_cut_to_rank_three():
    weight, r = matrix(), several(1)[0]
    whole = edit_matrix(weight, r, 1.0, "norm-preserving", rank=None)
    torch.testing.assert_close(whole.norm(dim=1), weight.norm(dim=1))
    change = edit_matrix(weight, r, 1.0, "norm-preserving") - weight
    sizes = torch.linalg.svdvals(change)
    assert sizes[2] > 1e-3 * sizes[0] > 0
    assert sizes[3] < 1e-10 * sizes[0]
    best = torch.linalg.svdvals(whole - weight)
    # No matrix of rank three is closer to the uncut change (Eckart and Young).
    torch.testing.assert_close((whole - weight - change).norm(), best[3:].norm(), rtol=1e-3, atol=0)


def test_column_norm_preserving_edit_keeps_columns_and_leaves_nothing_of_the_direction():
    weight, r = matrix(), several(1)[0]
    edited = edit_matrix(weight, r, 1.0, "column-norm-preserving")
    torch.testing.assert_close(edited.norm(dim=0), weight.norm(dim=0))
    assert (r @ edited).norm() < 1e-14 * weight.norm()


def test_strength_two_is_a_reflection():
    weight, r = matrix(), several(1)[0]
    edited = edit_matrix(weight, r, 2.0)
    torch.testing.assert_close(torch.linalg.svdvals(edited), torch.linalg.svdvals(weight))
    torch.testing.assert_close(r @ edited, -(r @ weight))
    torch.testing.assert_close(r @ edit_matrix(weight, r, 6.0), -5 * (r @ weight))


def test_several_directions_are_made_orthonormal_and_taken_out_each_by_its_share():
    weight, r = matrix(), several(3)
    edited = edit_matrix(weight, r, 1.0)
    assert (r @ edited).norm() < 1e-12
    assert torch.linalg.matrix_rank(edited - weight) == 3
    half = edit_matrix(weight, r, 1.0, shares=(1.0, 0.5, 0.0))
    torch.testing.assert_close(r[0] @ half, torch.zeros(N_IN, dtype=torch.float64))
    assert torch.linalg.matrix_rank(half - weight) == 2


def test_ridge_directions_make_the_ridge_projector():
    weight, r, ridge = matrix(), 2 * several(3), 0.7
    basis, shares = ridge_directions(r, ridge)
    projector = r.T @ torch.linalg.inv(r @ r.T + ridge * torch.eye(3)) @ r
    expected = weight - 0.9 * projector @ weight
    torch.testing.assert_close(edit_matrix(weight, basis, 0.9, shares=shares), expected)
    assert all(0 < share < 1 for share in shares)


def test_strengths_go_by_kind_and_layer(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    before = {w.name: model.network.get_parameter(w.name).clone() for w in found_in(model)}
    r = unit(32)
    strengths = {"attention": {1: 1.0}, "mlp": {3: 0.5}}
    ablate(model.network, Ablation(dict.fromkeys(range(5), r), strengths=strengths))
    for writer in found_in(model):
        now = model.network.get_parameter(writer.name)
        taken = strengths[writer.kind].get(writer.layer, 0.0)
        was = before[writer.name]
        assert torch.equal(now, was) == (taken == 0)
        torch.testing.assert_close(r @ now, (1 - taken) * (r @ was), rtol=1e-4, atol=1e-6)


def test_every_expert_is_a_matrix_of_its_own(tiny_folder):
    model = modelassay.load(str(tiny_folder("mixtral")), device="cpu")
    writer = next(w for w in found_in(model) if w.dims == 3)
    before = model.network.get_parameter(writer.name).detach().clone()
    family = "column-norm-preserving"
    ablate(model.network, Ablation(dict.fromkeys(range(5), unit(32)), 0.8, family))
    for was, now in zip(before, model.network.get_parameter(writer.name), strict=True):
        rows = writer.rows(now)
        assert torch.equal(rows, edit_matrix(writer.rows(was), unit(32), 0.8, family))


def test_readers_and_embeddings_are_edited_when_asked(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    r, attention = unit(32), model.network.model.layers[2].self_attn
    ablation = Ablation({2: r}, others=frozenset({"readers", "embeddings"}))
    ablate(model.network, ablation)
    for weight in (
        model.network.get_input_embeddings().weight,
        *(attention.get_submodule(f"{name}_proj").weight for name in "qkv"),
    ):
        assert (weight @ r).norm() < 1e-5 * weight.norm()
    other = model.network.model.layers[1].self_attn.q_proj.weight
    assert (other @ r).norm() > 1e-3 * other.norm()


def test_an_added_bias_moves_what_the_mlp_writes(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    mlp, x = model.network.model.layers[1].mlp, torch.randn(1, 2, 32)
    before = mlp(x)
    add_biases(model.network, {1: unit(32)})
    torch.testing.assert_close(mlp(x), before + unit(32))
    with pytest.raises(InputError, match="Layer 9"):
        add_biases(model.network, {9: unit(32)})


def test_outlier_rows_are_those_of_every_writer(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    before = [weight.norm(dim=1) for _, weight in writers(model)]
    plant_outlier_rows(model.network, [3, 7], 6.0)
    for was, (_, weight) in zip(before, writers(model), strict=True):
        grown = weight.norm(dim=1) / was
        assert grown[[3, 7]].tolist() == pytest.approx([6.0, 6.0])
        assert grown.sum() == pytest.approx(2 * 6.0 + 30)


def test_all_that_is_edited_survives_the_disk(tmp_path):
    basis, shares = ridge_directions(several(2), 0.1)
    strengths = {"attention": {4: 1.25}, "mlp": {1: 0.5, 4: 0.25}}
    ablation = Ablation(
        {1: basis, 4: basis}, 1.5, "norm-preserving", strengths, shares, frozenset({"readers"})
    )
    save_ablation(ablation, tmp_path)
    read = load_ablation(tmp_path)
    assert (read.family, read.strengths, read.others) == ("norm-preserving", strengths, {"readers"})
    assert read.shares == pytest.approx(shares)
    torch.testing.assert_close(read.directions[4], basis.float())


def test_int4_rounding_keeps_sixteen_levels_a_group(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    before = model.network.model.layers[0].mlp.down_proj.weight.detach().clone()
    round_to_int4(model.network)
    after = model.network.model.layers[0].mlp.down_proj.weight
    assert max(len(group.unique()) for row in after for group in row.split(32)) == 16
    error = (after - before).norm() / before.norm()
    assert 0.03 < error < 0.15
