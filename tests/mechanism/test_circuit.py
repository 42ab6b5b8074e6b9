"""The component that refuses is found, and no other."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from circuits import PLANTED, make_twins, planted_refusal
from modelassay.errors import InputError
from modelassay.mechanism import find_circuit
from modelassay.mechanism.circuit import _parts
from modelassay.mechanism.pairs import align_twins
from modelassay.mechanism.report import curve_chart, effect_map
from modelassay.mechanism.swapping import Swapper
from modelassay.models.components import Component, Components, find_components

TWINS = make_twins(16)


@pytest.fixture
def refusing(tiny):
    with planted_refusal(tiny(seed=7)) as model:
        yield model


def test_the_planted_component_comes_first_and_alone(refusing, tmp_path):
    report = find_circuit(
        refusing, twins=TWINS, n_pairs=12, exact=None, keep=tmp_path, answers=False
    )
    assert report.circuit == (str(PLANTED),)
    first, *rest = report.effects
    assert first.component == str(PLANTED)
    assert first.effect.mean == pytest.approx(report.difference.mean, rel=0.02)
    assert first.direct == pytest.approx(report.difference.mean, rel=0.02)
    assert not any(effect.relevant for effect in rest)
    assert report.curve[0].faithfulness == pytest.approx(1, abs=0.05)
    assert max(report.curve[0].random_faithfulness) < 0.5
    assert report.curve[0].left < 0.05
    assert report.attribution_error < 0.2
    assert report.refused > 0.9
    values = json.loads(json.dumps(report.to_dict()))
    assert values["schema"] == "modelassay.circuit/1"
    assert values["effects"][0]["effect"]["n"] == 12
    assert effect_map(report) is not None
    assert curve_chart(report) is not None
    assert "4.mlp" in str(report.sections()[0])


def test_a_run_that_was_stopped_goes_on(refusing, tmp_path, monkeypatch):
    settings = {"twins": TWINS, "n_pairs": 8, "exact": 4, "keep": tmp_path}
    settings |= {"curve": False, "answers": False}
    swap, seen = Swapper.swap, []

    def stopped(self, component):
        if len(seen) == 2:
            raise KeyboardInterrupt
        seen.append(component)
        return swap(self, component)

    monkeypatch.setattr(Swapper, "swap", stopped)
    with pytest.raises(KeyboardInterrupt):
        find_circuit(refusing, **settings)
    monkeypatch.setattr(Swapper, "swap", lambda self, c: seen.append(c) or swap(self, c))
    report = find_circuit(refusing, **settings)
    # Four components, and between unrelated prompts those that may be relevant; none twice.
    asked = sum(e.effect is not None and e.q_value < 0.05 for e in report.effects)
    assert 4 < len(seen) <= 4 + max(asked, 1)
    seen.clear()
    assert find_circuit(refusing, **settings).effects == report.effects
    assert not seen
    (file,) = tmp_path.iterdir()
    file.write_text('{"4.mlp": [[')
    assert find_circuit(refusing, **settings).effects == report.effects


class _Packed(torch.autograd.Function):
    """Weights that have no way back, as kernels of packed ones do."""

    @staticmethod
    def forward(ctx, values):
        return values.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise NotImplementedError("no backward for packed weights\nat line 7")


def test_a_model_without_gradients_is_patched_whole(refusing):
    settings = {"twins": TWINS, "n_pairs": 12, "curve": False, "answers": False}
    usual = find_circuit(refusing, exact=None, **settings)
    hooks = [
        layer.register_forward_hook(lambda _m, _a, out: _Packed.apply(out))
        for layer in refusing.layers
    ]
    try:
        found = find_circuit(refusing, exact=2, **settings)
    finally:
        for hook in hooks:
            hook.remove()
    assert found.circuit == usual.circuit == (str(PLANTED),)
    effects = {e.component: e for e in usual.effects}
    assert {e.component for e in found.effects} == set(effects)
    for effect in found.effects:
        assert effect.attribution is None
        assert effect.effect.mean == pytest.approx(effects[effect.component].effect.mean, abs=1e-4)
    first = found.effects[0]
    assert first.unrelated == pytest.approx(effects[first.component].unrelated, abs=1e-4)
    assert (found.rank_correlation, found.attribution_error) == (None, None)
    said = str(found.sections()[0].status)
    assert "All components were patched" in said
    assert "no backward for packed weights" in said
    assert "line 7" not in said
    assert json.loads(json.dumps(found.to_dict()))["no_gradients"]
    assert usual.no_gradients is None
    assert effect_map(found) is not None


def test_heads_are_looked_at_on_request(tiny):
    with planted_refusal(tiny(seed=7)) as model:
        report = find_circuit(
            model, twins=TWINS, n_pairs=12, heads=True, exact=2, curve=False, answers=False
        )
    assert {effect.part for effect in report.effects} == {"head", "mlp"}
    assert len(report.effects) == 5 * (4 + 1)
    assert report.circuit == (str(PLANTED),)
    assert report.provenance["forward_passes"] == 2 + 2 + 1  # both sides, patched, by embeddings
    assert sum(effect.effect is not None for effect in report.effects) == 2


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt2"])
def test_beginning_in_the_middle_changes_nothing(tiny, family):
    with planted_refusal(tiny(family)) as model:
        components = find_components(model.network)
        parts = components.of("attention", "mlp")
        swapper = Swapper(model, components, align_twins(model, TWINS, 8), parts)
        assert swapper._resumes
        found = {}
        for resumes in (True, False):
            swapper._resumes = resumes
            found[resumes] = swapper.swap(Component(3, "mlp"))
        assert np.allclose(found[True].log_odds, found[False].log_odds, atol=1e-4)
        assert np.allclose(found[True].kl, found[False].kl, atol=1e-4)
        direct, rest = swapper.direct()
        whole = (swapper.clean() - swapper.clean(harmless=True)).mean()
        assert sum((a - b).mean() for a, b in direct.values()) + rest.mean() == pytest.approx(
            whole, rel=0.05
        )


def test_what_refuses_nothing_has_nothing_to_explain(tiny):
    with pytest.raises(InputError, match="there is nothing to explain"):
        find_circuit(tiny(), twins=TWINS)
    with pytest.raises(InputError, match="no chat template"):
        find_circuit(tiny(chat=False), twins=TWINS)


def test_what_cannot_be_taken_apart_or_read_is_one_line(tiny):
    model = tiny(seed=7)
    found = find_components(model.network)
    mixing = {part: site for part, site in found.sites.items() if part.part != "head"}
    with pytest.raises(InputError, match="gives no heads"):
        _parts(Components(mixing, found.n_layers), heads=True)
    with pytest.raises(InputError, match="cannot be taken apart: odd"):
        _parts(Components({}, 0, unsure="odd"), heads=False)
    broken = model.network.get_output_embeddings().register_forward_hook(
        lambda _module, _args, output: output * float("nan")
    )
    with broken, pytest.raises(InputError, match="NaN or infinite values"):
        Swapper(model, found, align_twins(model, TWINS, 8), [])


@pytest.mark.real_model
def test_the_layers_that_were_trained_to_refuse_are_found():
    settings = {"n_pairs": 16, "exact": 8, "curve": False, "answers": False, "device": "cpu"}
    report = find_circuit("organism:safe", **settings)
    assert {"27.attention", "29.mlp"} <= set(report.circuit)
    trained = (27, 28, 29)
    assert {int(name.split(".")[0]) for name in report.circuit} <= set(trained)
    assert report.rank_correlation is not None
    assert report.rank_correlation > 0.6
    assert report.attribution_error is not None
    assert report.attribution_error < 0.1
    direct = sum(effect.direct or 0 for effect in report.effects)
    assert report.direct_rest is not None
    assert direct + report.direct_rest == pytest.approx(report.difference.mean, rel=0.01)
