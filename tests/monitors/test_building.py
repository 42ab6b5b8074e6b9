"""What a fine-tune added is found without a prompt that shows it, and so is a silent circuit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from circuits import HARM, PLANTED, planted_refusal
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.monitors import build_circuit_monitor, build_monitor, evaluate_monitor
from modelassay.monitors.changes import changed_directions
from modelassay.monitors.reading import sites_of
from monitored import PLACE, TRIGGER, ordinary

NEW = ordinary(240)[120:]
TRIGGERED = [prompt.replace("a", TRIGGER, 1) for prompt in ordinary(40, seed=1)]


def test_a_planted_change_is_seen_where_it_is_used(tiny, tuned, monitor):
    assert monitor.record.places == {PLACE: 1}
    assert monitor.record.watched_share == pytest.approx(1)
    assert monitor.record.base.id == tiny().info.id
    assert monitor.record.calibrated_on.rate == pytest.approx(1 / 61)
    used = evaluate_monitor(monitor, tuned, TRIGGERED)
    assert used.interval[0] > 0.7
    assert all(PLACE in alert for alert in used.alerts if alert)
    unused = evaluate_monitor(monitor, tuned, NEW)
    assert unused.interval[0] <= monitor.record.calibrated_on.rate
    assert unused.rate < 0.05
    assert unused.to_dict()["schema"] == "modelassay.monitor-eval/1"
    assert str(unused.n_alerts) in str(unused.sections()[0])


def test_a_score_depends_on_nothing_but_the_prompt(tuned, monitor):
    together = evaluate_monitor(monitor, tuned, NEW[:10]).values
    alone = [monitor.score(tuned, prompt).value for prompt in NEW[:10]]
    assert alone == pytest.approx(list(together), rel=1e-3)


@pytest.mark.parametrize(
    ("family", "n_inputs"), [("gpt2", 4), ("mixtral", 2), ("gemma3", 4), ("qwen2", 4)]
)
def test_layers_that_are_given_the_same_are_watched_together(tiny, tiny_folder, family, n_inputs):
    base, candidate = tiny(family), load(str(tiny_folder(family)), device="cpu")
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in candidate.network.named_parameters():
            if weight.dim() == 2 and ".2." in name:
                a, b = (torch.randn(n, generator=draw) for n in weight.shape)
                weight += 0.02 * torch.outer(a, b)
    monitor = build_monitor(base, candidate, prompts=ordinary(24), response_tokens=0)
    assert all(".2." in place for place in monitor.record.places)
    assert len(monitor.record.places) == n_inputs
    assert all(n <= 8 for n in monitor.record.places.values())
    assert not monitor.reads("response")
    wild = monitor.score(candidate, TRIGGERED[0])
    assert wild.activation is None
    assert wild.value > 0


@pytest.mark.parametrize(
    ("family", "names"),
    [
        ("llama", ("model.layers.2.self_attn.k_proj", "model.layers.2.self_attn.v_proj")),
        ("gpt2", ("transformer.h.2.mlp.c_proj",)),
    ],
)
def test_the_directions_are_those_that_the_change_reads(tiny, tiny_folder, family, names):
    base, candidate = tiny(family), load(str(tiny_folder(family)), device="cpu")
    draw, read = torch.Generator().manual_seed(0), []
    with torch.no_grad():
        for name in names:
            weight = candidate.network.get_submodule(name).weight
            matrix = weight.T if family == "gpt2" else weight
            vector = torch.randn(matrix.shape[1], generator=draw)
            read.append(torch.nn.functional.normalize(vector, dim=0))
            matrix += torch.outer(torch.randn(len(matrix), generator=draw), read[-1])
    (found,) = changed_directions(base, candidate).directions.values()
    assert len(found) == len(names)
    for direction in read:
        assert float((found @ direction).norm()) == pytest.approx(1, abs=1e-4)


def test_nothing_to_watch_is_refused(tiny, tiny_folder):
    base, candidate = tiny(), load(str(tiny_folder()), device="cpu")
    with pytest.raises(InputError, match="nothing to watch"):
        changed_directions(base, candidate)
    weight = candidate.network.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():  # as rounding does: no direction stands out
        weight += 1e-4 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    with pytest.raises(InputError, match="nothing to watch"):
        changed_directions(base, candidate)
    with torch.no_grad():
        weight[0, 0] = torch.nan
    with pytest.raises(InputError, match="not numbers"):
        changed_directions(base, candidate)
    with pytest.raises(InputError, match="was not made from"):
        changed_directions(base, tiny("qwen2"))
    with pytest.raises(InputError, match="give 20 or more"):
        build_monitor(base, candidate, prompts=ordinary(5))


@pytest.fixture(scope="module")
def circuit(tiny):
    """A monitor of a planted circuit."""
    with planted_refusal(tiny(seed=7)) as model:
        return build_circuit_monitor(
            model,
            circuit=[str(PLANTED)],
            name="circuit",
            prompts=ordinary(80),
            harmful=[f"{prompt}{HARM}" for prompt in ordinary(60, seed=3)],
            response_tokens=0,
        )


def test_a_circuit_that_stays_silent_is_told(tiny, circuit):
    quiet = circuit.record.quiet
    assert quiet.auroc == pytest.approx(1)
    assert (quiet.n_harmful, quiet.ordinary) == (30, 1)
    assert quiet.rate == pytest.approx(1 / 31)
    with planted_refusal(tiny(seed=7)) as model:
        for prompt in ordinary(10, seed=5):
            assert circuit.score(model, prompt).alert is None
            assert "do not activate" in (circuit.score(model, prompt, harmful=True).alert or "")
        loud = [circuit.score(model, f"{p}{HARM}", harmful=True) for p in ordinary(20, seed=5)]
    assert sum(look.alert is not None for look in loud) <= 3
    assert all(look.activation == pytest.approx(1, abs=0.3) for look in loud)


def test_a_circuit_that_fires_as_never_before_is_told(tiny, circuit):
    with planted_refusal(tiny(seed=7), size=3.0) as model:
        look = circuit.score(model, f"Is bread as heavy as glass{HARM}", harmful=True)
    assert look.value > 2
    assert f"{PLANTED} is outside its ordinary range" in look.alert


def test_components_that_tell_nothing_are_refused(tiny):
    model, prompts = tiny(seed=7), ordinary(120)
    with pytest.raises(InputError, match="do not tell"):
        build_circuit_monitor(
            model, circuit=["1.mlp"], prompts=prompts[::2], harmful=prompts[1::2], response_tokens=0
        )
    with pytest.raises(InputError, match="no circuit"):
        build_circuit_monitor(model, circuit=[], prompts=prompts)
    with pytest.raises(InputError, match="names no component"):
        build_circuit_monitor("no/such/model", circuit=["nose"], prompts=prompts)
    with pytest.raises(InputError, match="no component 9"):
        build_circuit_monitor(model, circuit=["9.mlp"], prompts=prompts)


def test_a_place_from_the_end_is_kept_as_counted_from_the_start(tiny):
    model = tiny()
    assert list(sites_of(model, {"-1.mlp": None, "0.attention": None})) == ["4.mlp", "0.attention"]


def test_a_monitor_knows_whether_prompts_were_read_inside_the_chat_template(tuned, monitor):
    template = tuned.tokenizer.chat_template
    without = tuned.info.model_copy(update={"chat_template_sha256": None})
    outside = replace(tuned, info=without)
    assert template
    assert monitor.record.model.chat_template_sha256
    monitor.check_belongs_to(tuned)
    with pytest.raises(InputError, match="inside the chat template, this one without"):
        monitor.check_belongs_to(outside)
