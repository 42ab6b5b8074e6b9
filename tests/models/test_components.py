"""Models are taken apart by running them, whatever their modules are called."""

from __future__ import annotations

import pytest
import torch
import transformers

from modelassay.errors import InputError
from modelassay.models.components import Component, find_components, parse_component
from tiny import FAMILIES

HEADS = {"1.head.0", "1.head.1", "1.head.2", "1.head.3"}


def build(config):
    torch.manual_seed(0)
    if isinstance(config, transformers.Gemma3Config):
        return transformers.Gemma3ForConditionalGeneration(config).eval()
    return transformers.AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "opt"])
def test_every_family_is_taken_apart(family):
    found = find_components(build(FAMILIES[family]()))
    assert found.unsure is None
    assert found.adds_up
    names = {str(component) for component in found.sites if component.layer == 1}
    experts = {f"1.expert.{k}" for k in range(4)} if family == "mixtral" else set()
    assert names == {"1.block", "1.attention", "1.mlp"} | HEADS | experts
    assert [c.layer for c in found.of("attention", "mlp")] == [i // 2 for i in range(10)]
    # BLOOM's MLPs add the stream themselves: what one is given is no function of its output alone.
    assert found.given.keys() == (set() if family == "bloom" else set(found.of("mlp")))


def test_what_writes_without_shape_is_no_component():
    """OPT's MLP writes tokens of all prompts in one long row."""
    found = find_components(build(FAMILIES["opt"]()))
    assert not found.adds_up
    assert {c.part for c in found.sites} == {"block", "attention", "head"}
    with pytest.raises(InputError, match=r"no component 1\.mlp: layer 1 has attention, block"):
        found.site(Component(1, "mlp"))


def test_a_state_space_layer_has_no_heads():
    config = transformers.GraniteMoeHybridConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        intermediate_size=32,
        pad_token_id=0,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=32,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_state=8,
        mamba_chunk_size=8,
    )
    found = find_components(build(config))
    assert {c.layer for c in found.of("head")} == {1}
    assert {str(c) for c in found.of("mlp")} == {"0.mlp.0", "0.mlp.1", "1.mlp.0", "1.mlp.1"}


@pytest.mark.parametrize("name", ["3.block", "12.attention", "0.mlp", "4.head.11", "2.expert.0"])
def test_names_are_read_as_they_are_written(name):
    assert str(parse_component(name)) == name


def test_layers_of_components_are_counted_from_the_end(tiny):
    found = find_components(tiny().network)
    assert str(found.resolve(parse_component("-1.mlp"))) == "4.mlp"
    assert found.site(parse_component("-5.head.3")) == found.site(Component(0, "head", 3))
    with pytest.raises(InputError, match=r"no component -6\.mlp.*no layer -6.*-5…-1"):
        found.site(parse_component("-6.mlp"))


@pytest.mark.parametrize(
    "name", ["", "mlp", "3", "3.mlps", "--1.mlp", "3.head", "x.mlp", "3.mlp.x"]
)
def test_other_names_are_refused(name):
    with pytest.raises(InputError, match=r"names no component; write 12\.block"):
        parse_component(name)


def test_what_is_not_there_is_named(tiny):
    found = find_components(tiny().network)
    with pytest.raises(InputError, match=r"layers must lie in 0…4"):
        found.site(Component(5, "mlp"))
    with pytest.raises(InputError, match=r"no component 1\.head\.9: .*4 of that kind"):
        found.site(Component(1, "head", 9))
