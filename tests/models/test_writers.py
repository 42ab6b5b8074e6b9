"""The matrices that write to the residual stream are found by running the model."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

import modelassay
from modelassay.errors import InputError
from modelassay.models.ablation import Ablation, ablate
from modelassay.models.writers import find_writers
from tiny import FAMILIES, OFFLOADED, save_tiny, unit

SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 32,  # as wide as the stream, so that no shape tells what writes
    "pad_token_id": 0,
}


def build(config):
    torch.manual_seed(0)
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def found(network):
    """Of one layer: names inside it, axis and kind."""
    writers = find_writers(network)
    assert writers.unsure is None
    return {
        writer.name.split(".1.", 1)[1]: (writer.axis, writer.kind)
        for writer in writers.found
        if writer.layer == 1
    }


ATTENTION, MLP = "attention", "mlp"


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        (
            lambda: transformers.LlamaConfig(**SIZES, head_dim=8),
            {"self_attn.o_proj.weight": (0, ATTENTION), "mlp.down_proj.weight": (0, MLP)},
        ),
        (
            lambda: transformers.GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=4),
            {"attn.c_proj.weight": (1, ATTENTION), "mlp.c_proj.weight": (1, MLP)},
        ),
        (
            lambda: transformers.GraniteMoeConfig(**SIZES, num_local_experts=4),
            {
                "self_attn.o_proj.weight": (0, ATTENTION),
                "block_sparse_moe.experts.down_proj": (1, MLP),
            },
        ),
        (
            lambda: transformers.GraniteMoeHybridConfig(
                **SIZES,
                layer_types=["mamba"] * 3,
                num_local_experts=4,
                num_experts_per_tok=2,
                shared_intermediate_size=32,
                mamba_n_heads=8,
                mamba_d_head=8,
                mamba_d_state=8,
                mamba_chunk_size=8,
            ),
            {
                "mamba.out_proj.weight": (0, ATTENTION),
                "block_sparse_moe.experts.down_proj": (1, MLP),
                "shared_mlp.output_linear.weight": (0, MLP),
            },
        ),
        (
            lambda: transformers.GptOssConfig(**SIZES, head_dim=8, num_local_experts=4),
            {"self_attn.o_proj.weight": (0, ATTENTION), "mlp.experts.down_proj": (2, MLP)},
        ),
        (
            lambda: transformers.JetMoeConfig(
                **{k: v for k, v in SIZES.items() if k != "num_attention_heads"},
                kv_channels=8,
                num_local_experts=4,
            ),
            {
                "self_attention.experts.output_linear.weight": (1, ATTENTION),
                "mlp.output_linear.weight": (1, MLP),
            },
        ),
        (
            lambda: transformers.Olmo2Config(**SIZES),
            {"self_attn.o_proj.weight": (0, ATTENTION), "mlp.down_proj.weight": (0, MLP)},
        ),
        (
            lambda: transformers.ModernBertDecoderConfig(
                vocab_size=300,
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=3,
                num_attention_heads=4,
                pad_token_id=0,
                eos_token_id=1,
                bos_token_id=2,
                cls_token_id=3,
                sep_token_id=4,
            ),
            {"attn.Wo.weight": (0, ATTENTION), "mlp.Wo.weight": (0, MLP)},
        ),
        (
            lambda: transformers.OpenAIGPTConfig(vocab_size=300, n_embd=32, n_layer=3, n_head=4),
            {"attn.c_proj.weight": (1, ATTENTION), "mlp.c_proj.weight": (1, MLP)},
        ),
    ],
    ids=lambda value: value().model_type if callable(value) else "",
)
def test_writers_are_those_that_reach_the_stream(config, expected):
    assert found(build(config())) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_has_both_kinds(tiny, family):
    model = tiny(family)

    def hooks() -> list[int]:  # transformers has some of its own
        modules = model.network.modules()
        return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules]

    before, hooks_before = [weight.clone() for weight in model.network.parameters()], hooks()
    writers = find_writers(model.network)
    for layer in range(5):
        assert {w.kind for w in writers.found if w.layer == layer} == {ATTENTION, MLP}
    assert all(map(torch.equal, before, model.network.parameters()))
    assert hooks() == hooks_before


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_packed_weights_are_found_where_plain_ones_are(tiny, tiny_folder, family, quantization):
    plain = find_writers(tiny(family).network)
    packed = modelassay.load(str(tiny_folder(family)), device="cpu", quantization=quantization)
    assert find_writers(packed.network) == plain


def test_weights_left_on_the_disk_are_found(tiny, tiny_folder):
    offloaded = modelassay.load(str(tiny_folder()), device=OFFLOADED)
    assert find_writers(offloaded.network) == find_writers(tiny().network)


class Experts(nn.Module):
    """Experts as remote code and older checkpoints hold them: a list, one used for each token."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(32, 4, bias=False)
        self.experts = nn.ModuleList(
            nn.ModuleDict({"w1": nn.Linear(32, 32), "w2": nn.Linear(32, 32)}) for _ in range(4)
        )

    def forward(self, hidden):
        flat = hidden.flatten(0, -2)
        chosen = self.gate(flat).argmax(dim=-1)
        out = torch.zeros_like(flat)
        for i, expert in enumerate(self.experts):
            rows = chosen == i
            if rows.any():
                out[rows] = expert["w2"](torch.relu(expert["w1"](flat[rows])))
        return out.view_as(hidden)


def test_experts_that_were_not_chosen_write_too():
    network = build(transformers.LlamaConfig(**SIZES))
    for layer in network.model.layers:
        layer.mlp = Experts()
        with torch.no_grad():
            layer.mlp.gate.weight[0] = 0  # never the largest of four random ones
            layer.mlp.gate.weight[1] = -layer.mlp.gate.weight[2]
    assert found(network) == {
        "self_attn.o_proj.weight": (0, ATTENTION),
        **{f"mlp.experts.{i}.w2.weight": (0, MLP) for i in range(4)},
    }


class Rolled(nn.Module):
    """Writes to other coordinates what the stream holds, without any matrix."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden):
        return self.inner(hidden) + 2 * hidden.roll(1, dims=-1)


def test_what_is_not_certain_is_said_by_name():
    network = build(transformers.LlamaConfig(**SIZES))
    for layer in network.model.layers:
        layer.mlp = Rolled(layer.mlp)
    writers = find_writers(network)
    assert writers.found == ()
    assert "LlamaForCausalLM is not certain: something writes" in writers.unsure
    with pytest.raises(InputError, match="cannot be ablated: .* is not certain"):
        ablate(network, Ablation({0: unit(32)}))


def test_a_layer_that_does_not_run_is_said(tmp_path):
    model = modelassay.load(str(save_tiny(tmp_path / "m")), device="cpu")
    layer = model.network.model.layers[3]
    layer.other = nn.Linear(2, 2)
    layer.forward = lambda *args, **kwargs: 1 / 0
    writers = find_writers(model.network)
    assert "division by zero" in writers.unsure
    assert modelassay.search_ablation(model).reason == writers.unsure
