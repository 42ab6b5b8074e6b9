"""Features of a transcoder: read at what an MLP is given, tried out on what it puts out."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from circuits import HARM, concept, make_twins, planted_in_mlp
from modelassay.errors import InputError
from modelassay.mechanism import find_features
from modelassay.mechanism.feature_runs import FeatureRuns
from modelassay.mechanism.pairs import align_twins
from modelassay.mechanism.swapping import Swapper
from modelassay.models.components import Component, find_components
from modelassay.reading.interventions import at_positions
from modelassay.reading.prompts import encode_prompts
from modelassay.sae import find_sae
from modelassay.sae.files import TRANSCODERS, as_sae
from modelassay.sae.firing import read_for
from saes import fitted_transcoder

LAYER = 4
PART = Component(LAYER, "mlp")
TWINS = make_twins(16)


@pytest.fixture(scope="module")
def planted(tiny):
    model = tiny(seed=7)
    with planted_in_mlp(model, LAYER) as first:
        yield model, first


@pytest.fixture(scope="module")
def folder(planted, tmp_path_factory):
    model, first = planted
    where = tmp_path_factory.mktemp("transcoders") / "own"
    fitted_transcoder(model, LAYER, first, kind="jumprelu_skip_transcoder").save_model(where)
    return where


def test_the_planted_feature_comes_first_and_alone(planted, folder):
    types = {"harm": concept(HARM, "?"), "form": concept("!", "?")}
    report = find_features(
        planted[0], sae=str(folder), types=types, twins=TWINS, top=1, n_pairs=10, curve=False
    )
    assert (report.layer, report.part) == (LAYER, "mlp")
    assert report.explained > 0.3
    harm, form = report.types
    assert [each.feature for each in harm.confirmed] == [0]
    assert not form.confirmed
    whole, effect = report.difference.mean, harm.features[0].effect
    assert effect.influence.mean == pytest.approx(whole, rel=0.1)
    assert effect.suppressed.mean == pytest.approx(whole, rel=0.1)
    assert effect.boosted.mean > 0.5 * whole
    assert report.influential[0].feature == 0
    assert "the MLP of layer 4" in str(report.sections())


@pytest.mark.parametrize("kind", TRANSCODERS)
def test_suppression_takes_out_of_the_mlp_what_features_write(planted, kind):
    model, first = planted
    sae = as_sae(fitted_transcoder(model, LAYER, first, kind=kind), kind)
    components, pairs = find_components(model.network), align_twins(model, TWINS, 4)
    swapper = Swapper(model, components, pairs, [PART], given=[PART], batch_tokens=300)
    features = [0, 5, 9]

    def edits(run, _twin):
        written = sae.module.encode(run.given[PART])[..., features] @ sae.module.W_dec[features]
        return {PART: at_positions(lambda made: made - written, run.side.own)}

    found = []
    for resumes in (True, False):
        swapper._resumes = resumes
        runs = FeatureRuns(swapper, sae)
        assert np.allclose(runs.suppressed(features), swapper.run(edits).log_odds, atol=1e-4)
        found.append([runs.influence(), runs.boosted(features)])
    assert np.allclose(found[0][0][0], found[1][0][0], atol=1e-3)
    assert np.allclose(found[0][1], found[1][1], atol=1e-3)
    influence, whole = found[0][0]
    assert influence[:, 0] == pytest.approx(whole, rel=0.3)


def test_it_is_read_where_the_mlp_is(planted, folder):
    model, sae = planted[0], find_sae(str(folder), transcoders=True)
    prompts = encode_prompts(model, ["Is tin as heavy as silk?", "Is it?"])
    last = read_for(model, sae, prompts)
    components, seen = find_components(model.network), {}
    before = components.given[PART].module.register_forward_pre_hook(
        lambda _module, args: seen.update(given=args[0][0])
    )
    after = components.site(PART).module.register_forward_hook(
        lambda _module, _args, output: seen.update(made=output[0])
    )
    with before, after, torch.inference_mode():
        for i, prompt in enumerate(prompts):
            model.network(input_ids=torch.tensor([prompt.ids]))
            assert torch.allclose(last.given[i], seen["given"][-1], atol=1e-5)
            assert torch.allclose(last.made[i], seen["made"][-1], atol=1e-5)


def rewritten(folder, to, **change):
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    config = json.loads((to / "cfg.json").read_text())
    config["metadata"] |= change.pop("metadata", {})
    (to / "cfg.json").write_text(json.dumps(config | change))
    return to


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metadata": {"hook_name": "blocks.4.hook_mlp_in"}}, "reads blocks.4.hook_mlp_in"),
        ({"metadata": {"hook_name": "blocks.4.ln2.hook_normalized"}}, "behind its norm"),
        ({"metadata": {"hook_name": "blocks.4.hook_resid_post"}}, "what an MLP is given"),
        ({"metadata": {"hook_name_out": None}}, "does not say what it writes"),
        ({"metadata": {"hook_name_out": "blocks.5.hook_mlp_out"}}, "more than one layer"),
        ({"metadata": {"hf_hook_name_out": "model.layers.3.mlp"}}, "more than one layer"),
        ({"normalize_activations": "layer_norm"}, "keep the width and the scale"),
    ],
)
def test_transcoders_of_other_places_are_refused(folder, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as error:
        find_sae(str(rewritten(folder, tmp_path / "t", **change)), transcoders=True)
    assert "\n" not in str(error.value)


def test_one_of_another_model_or_layer_is_refused(planted, folder, tmp_path, tiny):
    model, types = planted[0], {"form": concept("!", "?")}
    names = {"hook_name": "blocks.9.mlp.hook_in", "hook_name_out": "blocks.9.mlp.hook_out"}
    ninth = rewritten(folder, tmp_path / "9", metadata=names)
    with pytest.raises(InputError, match="reads layer 9; the last one"):
        find_features(model, sae=str(ninth), types=types)
    gemma = tiny("gemma3")  # which norms what its MLPs put out
    layer = "model.language_model.layers.4"
    for name, fits in (("mlp", False), ("post_feedforward_layernorm.output", True)):
        named = {"metadata": {"hf_hook_name_out": f"{layer}.{name}"}}
        sae = find_sae(str(rewritten(folder, tmp_path / name, **named)), transcoders=True)
        if fits:
            sae.check_belongs_to(gemma, transcoders=True)
            continue
        with pytest.raises(InputError, match="not what the MLP of"):
            sae.check_belongs_to(gemma, transcoders=True)
    others = find_sae(str(folder), transcoders=True)
    with torch.no_grad():
        others.module.b_dec += 5.0
    with pytest.raises(InputError, match="explains nothing of what the MLP of layer 4"):
        find_features(model, sae=others, types=types)


def test_what_compares_layers_refuses_it(planted, folder):
    with pytest.raises(InputError, match="own is a transcoder"):
        find_sae(str(folder))
    with pytest.raises(InputError, match="own is a transcoder"):
        find_sae(str(folder), transcoders=True).check_belongs_to(planted[0])
    with pytest.raises(InputError, match="is a transcoder"):
        find_sae("gemma-scope-2-270m-it-transcoders-all:layer_0_width_16k_l0_big")
