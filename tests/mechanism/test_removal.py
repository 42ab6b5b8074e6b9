"""Without the component that refuses, answers no longer do; without another, they still do."""

from __future__ import annotations

import pytest
import torch

from circuits import PLANTED, make_twins, planted_refusal, spoken_refusal
from modelassay.data.concepts import refusal_prompts
from modelassay.mechanism import removal
from modelassay.mechanism.pairs import align_twins, match_requests
from modelassay.mechanism.removal import remove_circuit, silencing
from modelassay.mechanism.swapping import Swapper
from modelassay.models import load
from modelassay.models.components import Component, find_components, parse_component
from modelassay.reading.batching import pad
from modelassay.reading.prompts import encode_prompts

TWINS = make_twins(16)


def test_answers_show_what_is_gone(tiny):
    with planted_refusal(tiny(seed=7)) as model, spoken_refusal(model):
        components = find_components(model.network)
        parts = components.of("attention", "mlp")
        swapper = Swapper(model, components, align_twins(model, TWINS, 8), parts)
        others = [part for part in parts if part != PLANTED]
        asked = tuple([pair[side] for pair in TWINS] for side in range(2))
        gone = remove_circuit(
            model, components, [PLANTED], others, swapper.means(parts), asked=asked
        )
    assert (gone.untouched.value, gone.untouched.harmless) == (1, 0)
    assert gone.removed.value == 0
    assert gone.survives == 0
    assert gone.interval == (0, 0)
    assert [each.value for each in gone.random] == [1, 1, 1]
    # The planted component writes along one direction; the fitted one is not it, as random weights
    # hold no refusal of the requests that it is fitted on.
    assert gone.random_direction.value == 1
    assert (gone.n_harmful, gone.n_harmless, gone.held_out) == (16, 16, True)
    assert gone.to_dict()["components"] == (str(PLANTED),)


def test_a_silenced_head_gives_its_mean_after_the_shared_prefix(tiny):
    model = tiny(seed=7)
    components = find_components(model.network)
    part = Component(2, "mlp")
    prompts = encode_prompts(model, ["How heavy is bread?", "Is glass heavier than wool?"])
    ids = pad([prompt.ids for prompt in prompts], 0, "left")
    prefix = prompts[0].ids[:8]
    mean = torch.full((model.info.hidden_size,), 0.25)
    seen = []
    module = components.site(part).module
    with silencing(model, components, {part: mean}, prefix):
        hook = module.register_forward_hook(lambda _m, _a, output: seen.append(output))
        model.network(input_ids=ids)
        model.network(input_ids=ids[:, -1:])
        hook.remove()
    whole, one = seen
    assert torch.allclose(one, mean.expand_as(one))
    for row, prompt in zip(whole, prompts, strict=True):
        start = len(row) - len(prompt.ids)
        assert torch.allclose(row[start + 8 :], mean.expand_as(row[start + 8 :]))
        assert not torch.isclose(row[: start + 8], mean).all(dim=-1).any()
    assert not module._forward_hooks


@pytest.mark.parametrize("means", [{}])
def test_nothing_to_silence_changes_nothing(tiny, means):
    model = tiny(seed=7)
    ids = torch.tensor([encode_prompts(model, ["How heavy is bread?"])[0].ids])
    before = model.network(input_ids=ids).logits
    with silencing(model, find_components(model.network), means, ids[0, :4].tolist()):
        assert torch.equal(model.network(input_ids=ids).logits, before)


@pytest.mark.real_model
def test_a_safe_model_hangs_on_its_circuit(monkeypatch):
    monkeypatch.setattr(removal, "N_RANDOM", 1)
    model = load("organism:safe", device="cpu")
    components = find_components(model.network)
    parts = components.of("attention", "mlp")
    circuit = [parse_component(name) for name in ("27.attention", "29.mlp", "27.mlp")]
    harmful, harmless = refusal_prompts()
    gone = remove_circuit(
        model,
        components,
        circuit,
        [part for part in parts if part.layer > 1 and part not in circuit],
        Swapper(model, components, match_requests(model, 8), parts).means(parts),
        asked=(harmful[::4], harmless[::8]),
    )
    assert gone.untouched.value > 0.5
    assert gone.survives is not None
    assert gone.survives < 0.25
    # Random ones of any layer do harm, too, but not that much; a random direction does none.
    assert gone.random[0].value > gone.removed.value + 0.1
    assert gone.direction_survives is not None
    assert gone.direction_survives < 0.5
    assert gone.random_direction.value > gone.untouched.interval[0]
