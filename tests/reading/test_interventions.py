"""Edits stand in for what parts of a model make, and are gone afterwards."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from modelassay.errors import InputError
from modelassay.models.components import Component, find_components
from modelassay.reading import interventions as i
from planted import sae

IDS = torch.tensor([[5, 9, 70, 31, 8, 112]])
MLP, ATTENTION = Component(2, "mlp"), Component(2, "attention")


@torch.inference_mode()
def logits(network, ids=IDS):
    return network(input_ids=ids, use_cache=False).logits


def test_an_edit_lasts_as_long_as_its_context_and_is_seen_by_its_thread_alone(tiny):
    network = tiny().network
    components = find_components(network)
    before, elsewhere = logits(network), []

    def fail():
        with i.intervene(components, {MLP: i.zero()}):
            assert not torch.equal(logits(network), before)
            thread = threading.Thread(target=lambda: elsewhere.append(logits(network)))
            thread.start()
            thread.join()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert torch.equal(logits(network), before)
    assert torch.equal(elsewhere[0], before)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "mixtral", "gpt2"])
def test_zero_is_what_silent_weights_are(tiny, family):
    network = copy.deepcopy(tiny(family).network)
    components = find_components(network)
    for part in ("attention", "mlp"):
        silent = copy.deepcopy(network)
        names = {id(m): name for name, m in network.named_modules()}
        module = silent.get_submodule(names[id(components.site(Component(2, part)).module)])
        module.register_forward_hook(
            lambda _m, _a, out: (out[0] * 0, *out[1:]) if isinstance(out, tuple) else out * 0
        )
        with i.intervene(components, {Component(2, part): i.zero()}):
            assert torch.allclose(logits(network), logits(silent), atol=1e-6)


def test_a_head_is_its_columns_of_the_writer(tiny):
    network = tiny().network
    components = find_components(network)
    silent = copy.deepcopy(network)
    with torch.no_grad():
        silent.model.layers[2].self_attn.o_proj.weight[:, 8:16] = 0
    with i.intervene(components, {Component(2, "head", 1): i.zero()}):
        assert torch.allclose(logits(network), logits(silent), atol=1e-6)


def test_an_expert_can_be_silenced_and_not_patched(tiny):
    network = tiny("mixtral").network
    components = find_components(network)
    silent = copy.deepcopy(network)
    with torch.no_grad():
        silent.model.layers[2].mlp.experts.down_proj[3] = 0
    expert = Component(2, "expert", 3)
    assert not torch.allclose(logits(network), logits(silent), atol=1e-6)
    with i.intervene(components, {expert: i.zero()}):
        assert torch.allclose(logits(network), logits(silent), atol=1e-6)
    with (
        pytest.raises(InputError, match=r"2\.expert\.3 can only be scaled"),
        i.intervene(components, {expert: i.add(torch.ones(32))}),
    ):
        pass
    with pytest.raises(InputError, match="no values"), i.observe(components, [expert], print):
        pass


def test_patching_a_run_into_itself_changes_nothing_and_into_another_carries_it(tiny):
    network = tiny().network
    components = find_components(network)
    other = IDS.flip(1)
    blocks = [Component(2, "block"), Component(2, "head", 0)]
    kept = {}
    with i.observe(components, blocks, lambda c, values: kept.update({c: values.clone()})):
        goal = logits(network, other)
    with i.intervene(components, {c: i.replace_by(v) for c, v in kept.items()}):
        assert torch.allclose(logits(network, other), goal, atol=1e-6)
    with i.intervene(components, {blocks[0]: i.replace_by(kept[blocks[0]])}):
        assert torch.allclose(logits(network), goal, atol=1e-5)  # all that goes on is the other's
    mean = kept[blocks[0]].mean(dim=(0, 1))
    with i.intervene(components, {blocks[0]: i.replace_by(mean)}):
        assert torch.allclose(logits(network)[0, 0], logits(network)[0, 5], atol=1e-4)


def test_a_direction_is_taken_out_and_chosen_tokens_are_left(tiny):
    network = tiny().network
    components = find_components(network)
    block, seen = Component(2, "block"), {}
    direction = torch.randn(32, generator=torch.Generator().manual_seed(0))
    here = torch.tensor([False, True, False, False, True, False])
    edit = i.at_positions(i.remove_direction(direction), here)
    above = Component(3, "attention")

    def see(component, values):
        seen[component] = values.clone()

    with i.observe(components, [block], see):
        logits(network)
    along = seen[block][0] @ direction / direction.norm()
    with i.intervene(components, {block: edit}):
        changed = i.remove_direction(direction)(seen[block])
        assert torch.allclose(changed[0] @ direction, torch.zeros(6), atol=1e-5)
        assert not torch.allclose(along, torch.zeros(6), atol=1e-2)
        first = logits(network)
    with i.intervene(components, {block: i.remove_direction(direction)}):
        whole = logits(network)
    assert torch.equal(first[0, 0], logits(network)[0, 0])
    assert not torch.allclose(first, whole)
    centre = torch.randn(32, generator=torch.Generator().manual_seed(1))
    moved = i.remove_direction(direction, centre)(seen[block])[0] @ direction
    assert torch.allclose(moved, (centre @ direction).expand(6), atol=1e-4)
    assert components.site(above).width == 32


def test_scaling_and_adding(tiny):
    values = torch.randn(2, 3, 8)
    assert torch.equal(i.Scale(2.0)(values), 2 * values)
    assert torch.equal(i.add(torch.ones(8))(values), values + 1)


def test_features_are_suppressed_and_the_rest_stays():
    module = sae(32).module
    values = torch.randn(1, 4, 32)
    active = module.encode(values)
    feature = int(active.sum(dim=(0, 1)).argmax())
    changed = i.set_features(module, [feature])(values)
    gone = active[..., feature, None] * module.W_dec[feature]
    assert torch.allclose(values - changed, gone, atol=1e-5)
    assert torch.allclose(i.set_features(module, [feature], 1.0)(values), values, atol=1e-6)
    assert (i.set_features(module, [feature], 2.0)(values) - values - gone).abs().max() < 1e-5
