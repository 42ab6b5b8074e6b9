"""Weight sketches: sizes of changes, the mark of ablation, and what must not look like it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import modelassay
from modelassay.measures.weight_sketch import compare_sketches, layer_of, sketch_weights, weight_key
from modelassay.models.ablation import (
    Ablation,
    ablate,
    plant_outlier_rows,
    round_to_bfloat16,
    round_to_int8,
)
from modelassay.models.writers import find_writers
from tiny import FAMILIES, OFFLOADED, save_tiny, unit

WIDE = {"hidden_size": 64, "num_hidden_layers": 8}


@pytest.fixture
def wide(tmp_path):
    """A loaded llama wide enough for a direction to be a small part of it."""
    return modelassay.load(str(save_tiny(tmp_path / "wide", **WIDE)), device="cpu")


def in_memory(model):
    """The same model, read from memory as one with an adapter is."""
    return replace(model, adapter=model.source)


def change_of(model, edit):
    before = sketch_weights(in_memory(model))
    with torch.no_grad():
        edit(model.network)
    change = compare_sketches(before, sketch_weights(in_memory(model)))
    assert change is not None
    return change


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_sketched(tiny, family):
    model = tiny(family)
    files, memory = sketch_weights(model), sketch_weights(in_memory(model))
    assert files is not None
    assert {layer_of(name) for name in files.names} >= set(range(5))
    change = compare_sketches(files, memory)
    assert max(change.by_layer.values()) == 0


def test_names_without_what_differs_between_copies():
    assert weight_key("model.layers.3.mlp.up_proj.weight") == "3.mlp.up_proj.weight"
    assert weight_key("model.language_model.layers.3.mlp.up_proj.weight") == "3.mlp.up_proj.weight"
    assert weight_key("layers.0.experts.17.w2.weight") == "0.experts.w2.weight"
    assert weight_key("model.embed_tokens.weight") == "embed_tokens.weight"


def test_nothing_changed(wide):
    change = change_of(wide, lambda model: None)
    assert set(change.by_layer.values()) == {0.0}
    assert change.mark is None


def test_the_size_of_a_change_is_told(wide):
    def edit(model):
        for name, weight in model.named_parameters():
            if "layers.2." in name and weight.dim() > 1:
                weight += 0.1 * weight.std() * torch.randn(weight.shape)

    torch.manual_seed(0)
    change = change_of(wide, edit)
    assert change.by_layer[2] == pytest.approx(0.1, rel=0.4)
    assert sum(value > 0 for value in change.by_layer.values()) == 1
    assert change.elsewhere == 0
    assert change.mark is None


@pytest.mark.parametrize(("rounding", "size"), [(round_to_bfloat16, 2e-3), (round_to_int8, 1e-2)])
def test_rounding_is_even_and_bears_no_mark(wide, rounding, size):
    change = change_of(wide, rounding)
    values = sorted(change.by_layer.values())
    assert size / 5 < values[0]
    assert values[-1] < 2 * size
    assert change.mark is None


@pytest.mark.parametrize("rounding", [None, round_to_bfloat16, round_to_int8])
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_ablation_is_told_at_its_strength(wide, strength, rounding):
    def edit(model):
        ablate(model, Ablation(dict.fromkeys(range(8), unit(64)), strength))
        if rounding is not None:
            rounding(model)

    mark = change_of(wide, edit).mark
    assert mark is not None
    assert mark.shared
    assert mark.strength == pytest.approx(strength, abs=0.05)
    assert rounding is not None or mark.layers == tuple(range(8))


def test_directions_of_their_own_and_bands_are_told(wide):
    directions = {layer: unit(64, seed=layer) for layer in range(2, 7)}
    mark = change_of(wide, lambda model: ablate(model, Ablation(directions, 0.7))).mark
    assert mark is not None
    assert not mark.shared
    assert mark.layers == (2, 3, 4, 5, 6)
    assert mark.strength == pytest.approx(0.7, abs=0.01)


@pytest.mark.parametrize("strength", [2.0, 6.0])
def test_reflections_and_more_are_told(wide, strength):
    directions = dict.fromkeys(range(8), unit(64))
    mark = change_of(wide, lambda model: ablate(model, Ablation(directions, strength))).mark
    assert mark.strength == pytest.approx(strength, abs=0.05)


@pytest.mark.parametrize(
    ("family", "off"),
    [
        ("plain", 0.15),
        ("row-normalised", 0.15),
        ("norm-preserving", 0.15),
        ("column-norm-preserving", 0.2),  # long rows grow with their columns
    ],
)
def test_edits_of_rows_of_one_size_are_told_where_rows_differ(wide, family, off):
    """Where a direction leans on long rows, as in Llama and Gemma."""
    r = unit(64)
    plant_outlier_rows(wide.network, r.abs().topk(4).indices.tolist(), 6.0)
    edit = Ablation(dict.fromkeys(range(8), r), 1.0, family)
    mark = change_of(wide, lambda model: ablate(model, edit)).mark
    assert mark is not None
    assert mark.strength == pytest.approx(1.0, abs=off)
    assert mark.family is None  # few sums of columns do not tell


def low_rank(model, rank, scale, everything):
    draw = torch.Generator().manual_seed(1)
    writing = find_writers(model).by_name
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and (everything or name in writing):
            rows, columns = weight.shape
            a = torch.randn(rows, rank, generator=draw) / rows**0.5
            b = torch.randn(rank, columns, generator=draw) / columns**0.5
            weight += scale * weight.norm() * (a @ b) / rank**0.5


def scaled(model):
    for weight in model.parameters():
        weight *= 0.9


@pytest.mark.parametrize(
    "edit",
    [
        lambda model: low_rank(model, 1, 0.1, True),
        lambda model: low_rank(model, 1, 0.1, False),
        lambda model: low_rank(model, 8, 0.1, True),
        scaled,
    ],
    ids=["rank 1", "rank 1 in writers", "rank 8", "scaled"],
)
def test_other_changes_bear_no_mark(wide, edit):
    change = change_of(wide, edit)
    assert min(change.by_layer.values()) > 0.01
    assert change.mark is None


def coarsely(model):
    for weight in model.parameters():
        if weight.dim() > 1:
            groups = weight.view(-1, 32)
            steps = groups.abs().amax(dim=1, keepdim=True) / 7
            weight.copy_(((groups / steps).round() * steps).view_as(weight))


def noisily(model):
    for weight in model.parameters():
        weight += 0.01 * weight.std(correction=0) * torch.randn(weight.shape)


@pytest.mark.parametrize(
    ("edit", "grids"),
    [
        (lambda model: None, ()),
        (noisily, ()),
        (round_to_bfloat16, ("bfloat16",)),
        (round_to_int8, ("8bit",)),
        (coarsely, ("4bit", "8bit")),
    ],
    ids=["plain", "noise", "bfloat16", "8 bits", "4 bits"],
)
def test_rounded_numbers_are_known(wide, edit, grids):
    with torch.no_grad():
        edit(wide.network)
    assert sketch_weights(wide).grids == grids


def test_what_files_hold_beside_the_weights_is_no_matter(wide, tmp_path):
    """A tensor that means nothing to the model must not switch the comparison off."""
    before = sketch_weights(wide)
    file = wide.source.folder / "model.safetensors"
    tensors = load_file(str(file)) | {
        "mtp.layers.0.numbers.weight": torch.zeros(2, 2, dtype=torch.long),
        "mtp.layers.1.up_proj.weight": torch.ones(2, 2),
    }
    save_file(tensors, str(file), metadata={"format": "pt"})
    for quantization in (None, "8bit"):
        folder = str(wide.source.folder)
        again = modelassay.load(folder, device="cpu", quantization=quantization)
        assert compare_sketches(before, sketch_weights(again)).nothing


def test_weights_left_on_the_disk_are_read_there(tiny, tiny_folder):
    offloaded = modelassay.load(str(tiny_folder()), device=OFFLOADED)
    assert compare_sketches(sketch_weights(tiny()), sketch_weights(offloaded)).nothing


def test_an_output_layer_of_its_own_is_seen(wide, tmp_path):
    before = sketch_weights(wide)
    tied = [name for name in before.names if name != "lm_head.weight"]
    rows = [before.names.index(name) for name in tied]
    baseline = replace(before, names=tuple(tied), thumbprints=before.thumbprints[rows])
    embedding = baseline.thumbprints[tied.index("embed_tokens.weight")]
    same = torch.cat([baseline.thumbprints, embedding[None]])
    names = (*tied, "lm_head.weight")
    assert compare_sketches(baseline, replace(baseline, names=names, thumbprints=same)).nothing
    found = compare_sketches(baseline, before)  # the tiny model's own output layer
    assert found.elsewhere > 0.5
    assert compare_sketches(before, baseline).elsewhere > 0.5


def test_other_architectures_do_not_compare(tiny):
    assert compare_sketches(sketch_weights(tiny("llama")), sketch_weights(tiny("gpt2"))) is None


@pytest.mark.parametrize("rounding", [None, round_to_bfloat16, round_to_int8])
@pytest.mark.parametrize("kind", ["attention", "mlp"])
def test_ablation_of_one_kind_of_output_is_told(wide, kind, rounding):
    def edit(model):
        r = unit(64)
        for writer in find_writers(model).found:
            if writer.kind == kind:
                weight = model.get_parameter(writer.name)
                weight -= 0.8 * torch.outer(r, r @ weight)
        if rounding is not None:
            rounding(model)

    mark = change_of(wide, edit).mark
    assert mark is not None
    assert mark.kind == kind
    assert mark.shared
    assert mark.strength == pytest.approx(0.8, abs=0.05)
    assert rounding is not None or mark.taken_from.endswith("outputs of 8 layers")


@pytest.mark.parametrize("scaled", [False, True])
def test_parts_of_one_direction_that_differ_between_matrices_are_told(wide, scaled):
    """As a kernel over the layers takes them, with the norms of rows kept or not."""
    strengths = iter(np.linspace(0.2, 1.4, 16))

    def edit(model):
        for writer in find_writers(model).found:
            weight = model.get_parameter(writer.name)
            norms = weight.norm(dim=1, keepdim=True)
            weight -= next(strengths) * torch.outer(unit(64), unit(64) @ weight)
            if scaled:
                weight *= norms / weight.norm(dim=1, keepdim=True)

    mark = change_of(wide, edit).mark
    assert mark is not None
    assert mark.shared
    assert mark.kind is None
    assert 0.5 < mark.strength < 1.1
    assert len(mark.layers) >= 6
    assert mark.family in (None, "plain")


@pytest.mark.parametrize("seed", range(8))
def test_training_along_one_direction_is_no_mark(wide, seed):
    """What each matrix gets along it has nothing to do with what it wrote along it."""
    draw = torch.Generator().manual_seed(seed)

    def edit(model):
        for writer in find_writers(model).found:
            weight = model.get_parameter(writer.name)
            right = torch.randn(weight.shape[1], generator=draw)
            weight += 0.02 * torch.outer(unit(64), right)

    assert change_of(wide, edit).mark is None


def pruned(weight, share):
    least = weight.abs().flatten().kthvalue(int(share * weight.numel())).values
    return weight * (weight.abs() > least)


def without_small_rows(weight):
    return weight * (weight.norm(dim=1) > weight.norm(dim=1).quantile(0.05))[:, None]


def of_lower_rank(weight, n):
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    values[-n:] = 0
    return left * values @ right


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: pruned(weight, 0.3),
        lambda weight: pruned(weight, 0.7),
        without_small_rows,
        lambda weight: weight * torch.linspace(0.8, 1.2, len(weight))[:, None],
        lambda weight: weight * 0.9,
        lambda weight: of_lower_rank(weight, 1),
        lambda weight: of_lower_rank(weight, 3),
    ],
    ids=["pruned", "pruned hard", "few rows", "rows scaled", "all scaled", "rank", "lower rank"],
)
def test_what_makes_weights_fewer_is_no_mark(wide, change):
    def edit(model):
        for writer in find_writers(model).found:
            weight = model.get_parameter(writer.name)
            weight.copy_(change(weight))

    assert change_of(wide, edit).mark is None


def test_a_direction_of_its_own_for_each_kind_is_told(wide):
    def edit(model):
        for writer in find_writers(model).found:
            weight = model.get_parameter(writer.name)
            r = unit(64, seed=len(writer.kind))
            weight -= torch.outer(r, r @ weight)

    mark = change_of(wide, edit).mark
    assert mark is not None
    assert mark.kind is None
    assert mark.layers == tuple(range(8))
    assert mark.strength == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ["attention", "mlp"])
@pytest.mark.parametrize("rank", [1, 2, 8])
@pytest.mark.parametrize("seed", range(3))
def test_training_of_one_kind_of_output_bears_no_mark(wide, kind, rank, seed):
    def edit(model):
        torch.manual_seed(seed)
        for writer in find_writers(model).found:
            if writer.kind == kind:
                weight = model.get_parameter(writer.name)
                change = torch.randn(64, rank) @ torch.randn(rank, weight.shape[1])
                weight += 0.1 * weight.norm() / change.norm() * change

    change = change_of(wide, edit)
    assert min(change.by_layer.values()) > 1e-3
    assert change.mark is None


def test_a_baseline_that_knew_fewer_writers_still_compares(wide):
    before = sketch_weights(in_memory(wide))
    known = [i for i, name in enumerate(before.writers) if "o_proj" not in name]
    baseline = replace(
        before,
        writers=tuple(before.writers[i] for i in known),
        written=before.written[known],
        kinds=(),
    )
    assert compare_sketches(baseline, before).nothing
    ablate(wide.network, Ablation(dict.fromkeys(range(8), unit(64))))
    mark = compare_sketches(baseline, sketch_weights(in_memory(wide))).mark
    assert mark.strength == pytest.approx(1, abs=0.01)
