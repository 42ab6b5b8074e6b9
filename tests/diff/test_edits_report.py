"""What the report says of directions that were taken out, in every form that it has."""

from __future__ import annotations

import json

import torch
from torch.nn.functional import normalize

from modelassay.diff.edits_report import edit_section, strength_by_layer
from modelassay.diff.weights import diff_weights
from modelassay.measures.directional_edits import NULL_SCORES
from modelassay.models.ablation import edit_matrix
from modelassay.models.kernels import Kernel
from modelassay.models.writers import Writer

HIDDEN, LAYERS = 64, 6
R = normalize(torch.randn(HIDDEN, generator=torch.Generator().manual_seed(5)), dim=0)
KERNEL = Kernel(peak=3.0, distance=2.5, strength=1.0, least=0.4)


def weights():
    draw = torch.Generator().manual_seed(0)
    shapes = {
        "self_attn.o_proj": (HIDDEN, 80),
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "mlp.down_proj": (HIDDEN, 160),
    }
    found = {
        f"model.layers.{layer}.{name}.weight": torch.randn(shape, generator=draw) / 8
        for layer in range(LAYERS)
        for name, shape in shapes.items()
    }
    return {**found, "model.embed_tokens.weight": torch.randn(300, HIDDEN, generator=draw)}


def writer_of(name):
    for part, kind in (("o_proj", "attention"), ("down_proj", "mlp")):
        if part in name:
            return Writer(name, int(name.split(".")[2]), 0, kind)
    return None


def compare(before, after):
    def tensors(weights):
        return [(name, lambda w=w: w) for name, w in weights.items()]

    return diff_weights(tensors(before), tensors(after), writer_of, hidden=HIDDEN)


def edited(before, family="norm-preserving"):
    after = dict(before)
    for name, weight in before.items():
        if (writer := writer_of(name)) is not None and (w := KERNEL.at(writer.layer)):
            after[name] = edit_matrix(weight, R, w, family)
    return after


def test_an_edit_is_told_drawn_and_written():
    before = weights()
    found = compare(before, edited(before))
    assert found.mark.family == "norm-preserving"
    section = edit_section(found)
    text = " ".join(section.lines)
    assert "heretic's default" in text
    assert "Left alone: layer 0." in text
    assert f"None of {len(NULL_SCORES)} benign changes" in text
    assert len(section.table.rows) == 2
    assert [len(trace.x) for trace in strength_by_layer(found.edits).data] == [5] * 4
    values = json.loads(json.dumps(found.to_dict()))
    assert set(values["mark"]) >= {"strength", "blocks", "shared", "kind", "family"}
    assert values["edits"]["components"][0]["strengths"][0]["block"] == 1
    assert values["edits"]["blocks_left_out"] == [0]


def test_no_edit_is_said_with_its_chance():
    before = weights()
    after = {name: w + 1e-3 * torch.randn(w.shape) for name, w in before.items()}
    found = compare(before, after)
    assert "No directional edit" in edit_section(found).lines[0]
    assert strength_by_layer(found.edits) is None


def test_embeddings_and_what_reads_the_stream_are_searched_too():
    before = weights()
    after = edited(before, "plain")
    for name in before:
        if "q_proj" in name:  # reads along its columns
            after[name] = before[name] - torch.outer(before[name] @ R, R)
    table = before["model.embed_tokens.weight"]
    after["model.embed_tokens.weight"] = table - torch.outer(table @ R, R)
    found = {part.component for part in compare(before, after).edits.components}
    assert found == {"attention", "mlp", "readers", "embeddings"}


def test_experts_in_one_tensor_are_read_one_by_one():
    draw = torch.Generator().manual_seed(1)
    before = {
        f"model.layers.{layer}.experts.down_proj": torch.randn(3, HIDDEN, 48, generator=draw)
        for layer in range(4)
    }
    after = {
        name: torch.stack([edit_matrix(expert, R, 1.0, "row-normalised") for expert in w])
        for name, w in before.items()
    }

    def expert(name):
        return Writer(name, int(name.split(".")[2]), 1, "mlp", dims=3)

    def tensors(weights):
        return [(name, lambda w=w: w) for name, w in weights.items()]

    found = diff_weights(tensors(before), tensors(after), expert)
    assert found.mark.family == "row-normalised"
    assert found.mark.layers == (0, 1, 2, 3)


def test_what_else_the_weights_show_is_named():
    before = weights()
    merged = {
        name: w + 0.01 * torch.randn(w.shape) * (torch.rand(w.shape) < 0.4)
        for name, w in before.items()
    }
    assert "sparsified merge" in compare(before, merged).observations[0]
    pruned = {name: w * (w.abs() > w.abs().median()) for name, w in before.items()}
    assert any("pruned" in line for line in compare(before, pruned).observations)
    biased = {**before, "model.layers.2.mlp.down_proj.bias": torch.randn(HIDDEN)}
    assert "activation addition" in compare(before, biased).observations[0]
    optimised = {
        name: w + 0.01 * torch.randn(HIDDEN, 2) @ torch.randn(2, w.shape[1])
        if writer_of(name)
        else w
        for name, w in before.items()
    }
    found = compare(before, optimised)
    assert found.mark is None
    assert "rank 2 and no direction" in found.observations[-1]


def test_a_swapped_pair_says_so():
    before = weights()
    found = compare(edited(before, "plain"), before)
    assert found.mark is None
    assert "swapped" in edit_section(found).lines[0]
