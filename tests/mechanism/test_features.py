"""The feature that refusals go through is found, tried out, and no other is called."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from circuits import HARM, concept, make_twins, planted_refusal, refusal_direction
from modelassay.cli.main import run
from modelassay.data.feature_types import feature_types
from modelassay.errors import InputError
from modelassay.mechanism import find_features
from modelassay.mechanism.feature_effects import Effects
from modelassay.mechanism.feature_runs import FeatureRuns
from modelassay.mechanism.features_report import suppression_chart
from modelassay.mechanism.pairs import align_twins
from modelassay.mechanism.swapping import Swapper
from modelassay.models.components import Component, find_components
from modelassay.progress import silent
from modelassay.reading.interventions import at_positions, set_features
from saes import signed_axes
from tiny import save_tiny

LAYER, HIDDEN = 4, 32
TWINS = make_twins(16)


@pytest.fixture
def refusing(tiny):
    with planted_refusal(tiny(seed=7)) as model:
        yield model


@pytest.fixture
def axes():
    return signed_axes(HIDDEN, LAYER, refusal_direction(HIDDEN))


@pytest.fixture
def runs(refusing, axes):
    pairs = align_twins(refusing, TWINS, 8)
    block = Component(LAYER, "block")
    return FeatureRuns(Swapper(refusing, find_components(refusing.network), pairs, [block]), axes)


def test_the_planted_feature_comes_first_and_alone(refusing, axes):
    types = {"harm": concept(HARM, "?"), "form": concept("!", "?")}
    before = {name: value.clone() for name, value in refusing.network.state_dict().items()}
    report = find_features(refusing, sae=axes, types=types, twins=TWINS, top=1)
    assert all(torch.equal(before[name], v) for name, v in refusing.network.state_dict().items())
    harm, form = report.types
    first = harm.features[0]
    assert [each.feature for each in harm.confirmed] == [0]
    assert first.auroc == 1
    assert first.auroc_interval[0] < 0.9
    assert first.effect.rank == 1
    whole = report.difference.mean
    assert first.effect.influence.mean == pytest.approx(whole, rel=0.05)
    assert first.effect.suppressed.mean == pytest.approx(whole, rel=0.05)
    assert first.effect.boosted.mean > 0.9 * whole
    assert first.effect.n_random >= 20
    assert form.n_beyond
    assert not form.confirmed
    assert report.influential[0].feature == 0
    assert report.influential[0].influence.n == 8
    assert report.influential[1].influence.mean < 0.05 * whole
    assert report.influential[0].types[0] == "harm"
    assert report.influence_share == pytest.approx(1, abs=0.01)
    assert report.curve[0].left < 0.05
    assert min(report.curve[0].random_left) > 0.9
    values = json.loads(json.dumps(report.to_dict()))
    assert values["schema"] == "modelassay.features/1"
    assert values["types"][0]["features"][0]["effect"]["confirmed"] is True
    assert suppression_chart(report) is not None
    assert "1 of 1 tried move refusals beyond random features (0)" in str(report.sections()[0])


@pytest.mark.parametrize("scaling", ["none", "layer_norm", "constant_norm_rescale"])
def test_what_is_known_beforehand_is_what_an_edit_would_do(runs, scaling):
    known = FeatureRuns(runs.swapper, signed_axes(HIDDEN, LAYER, scaling=scaling))
    features = [1, 5, HIDDEN + 2]

    def edits(run, _twin):
        edit = set_features(known.sae.module, features)
        return {known.part: at_positions(edit, run.side.own)}

    assert np.allclose(known.suppressed(features), runs.swapper.run(edits).log_odds, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_neither_batches_nor_where_a_pass_begins_change_a_value(tiny, family):
    with planted_refusal(tiny(family)) as model:
        components, sae = find_components(model.network), signed_axes(HIDDEN, 2)
        found = []
        for batch_tokens, resumes in ((None, True), (300, True), (None, False)):
            pairs = align_twins(model, TWINS, 8)
            block = [Component(2, "block")]
            swapper = Swapper(model, components, pairs, block, batch_tokens=batch_tokens)
            assert swapper._resumes
            swapper._resumes = resumes
            runs = FeatureRuns(swapper, sae)
            found.append([*runs.effects(3), runs.influence()[0], runs.density()])
        for name, *values in zip(("off", "more", "influence", "density"), *found, strict=True):
            assert np.allclose(values[0], values[1], atol=1e-3), name
            assert np.allclose(values[0], values[2], atol=1e-3), name


def test_influence_adds_up_to_what_the_layer_does(runs):
    found, whole = runs.influence()
    assert found.sum(axis=1) == pytest.approx(whole, rel=1e-3)
    swapper = runs.swapper
    there = swapper.clean() - swapper.clean(harmless=True)
    assert whole == pytest.approx(there, rel=0.1)
    assert runs.activation()[0] == pytest.approx(0.3, abs=0.05)  # the size that was planted


def test_boosting_the_planted_feature_makes_harmless_prompts_refused(runs):
    harmless = runs.swapper.clean(harmless=True)
    assert (runs.boosted([0]) > harmless + 5).all()
    assert abs(runs.boosted([3]) - harmless).max() < 0.5


def test_a_run_that_was_stopped_goes_on(runs, axes, tmp_path):
    passes = []
    for _ in range(2):
        before = runs.swapper.n_passes
        found = FeatureRuns(runs.swapper, axes, tmp_path).effects(0)
        passes.append(runs.swapper.n_passes - before)
        assert np.allclose(found, runs.effects(0))
    assert passes == [2, 0]
    others = signed_axes(HIDDEN, LAYER)
    assert not np.allclose(FeatureRuns(runs.swapper, others, tmp_path).effects(0), found)


class Noise:
    """Features that do something for refusals, each as much as any other."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.kept = {}

    def density(self) -> np.ndarray:
        return self.rng.uniform(0.1, 0.19, size=200)

    def influence(self, _on_progress) -> tuple[np.ndarray, np.ndarray]:
        values = self.rng.standard_t(3, size=200) + 0.3 * self.rng.standard_normal((16, 200))
        return values, values.sum(axis=1)

    def effects(self, feature: int) -> tuple[np.ndarray, np.ndarray]:
        if feature not in self.kept:
            mean = self.rng.standard_t(3, size=(2, 1))
            self.kept[feature] = tuple(mean + 0.1 * self.rng.standard_normal((2, 16)))
        return self.kept[feature]


def test_features_like_any_other_are_seldom_confirmed():
    listed = np.arange(10)
    called = 0
    for seed in range(200):
        found = Effects(Noise(seed), silent).of_type(listed.tolist(), listed)
        called += any(effect.confirmed for effect in found.values())
        assert sum(effect.suppressed is not None for effect in found.values()) == 3
    assert called <= 10


def test_a_model_that_refuses_nothing_still_has_features(tiny, axes):
    report = find_features(
        tiny(seed=7), sae=axes, types={"form": concept("!", "?")}, twins=TWINS, top=2
    )
    assert "nothing to explain" in report.nothing_to_explain
    assert report.nothing_to_explain in str(report.sections()[0])
    (form,) = report.types
    assert form.features
    assert all(each.effect is None for each in form.features)
    assert (report.influential, report.curve, report.influence_share) == ((), (), None)
    assert json.dumps(report.to_dict())


def test_a_model_without_a_template_refuses_nothing(tiny, axes):
    report = find_features(tiny(chat=False), sae=axes, types={"form": concept("!", "?")})
    assert "no chat template" in report.nothing_to_explain
    assert report.difference is None


def test_an_sae_that_does_not_fit_is_refused(tiny):
    model, types = tiny(), {"form": concept("!", "?")}
    with pytest.raises(InputError, match="width"):
        find_features(model, sae=signed_axes(16, LAYER), types=types)
    with pytest.raises(InputError, match="reads layer 9"):
        find_features(model, sae=signed_axes(HIDDEN, 9), types=types)
    others = signed_axes(HIDDEN, LAYER)
    with torch.no_grad():
        others.module.b_dec += 5.0
    with pytest.raises(InputError, match="belongs to another model or layer"):
        find_features(model, sae=others, types=types)
    with pytest.raises(InputError, match="give one with --sae"):
        find_features(model, types=types)
    with pytest.raises(InputError, match="no feature type 'harm'"):
        find_features(model, types=["harm"])


def test_the_command_reads_the_contrast_sets(tmp_path, capsys):
    folder = save_tiny(tmp_path / "model", max_position_embeddings=1024)
    signed_axes(HIDDEN, 1).module.save_model(tmp_path / "sae")
    arguments = ["--sae", str(tmp_path / "sae"), "--types", "refusal", "--top", "2", "--json"]
    assert run(["features", "find", str(folder), "--device", "cpu", *arguments]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["nothing_to_explain"]
    assert values["types"][0]["name"] == "refusal"
    assert values["types"][0]["n_pairs"] == 62


def test_a_folder_that_is_no_sae_is_refused(tiny_folder, tmp_path, capsys):
    assert run(["features", "find", str(tiny_folder()), "--sae", str(tmp_path)]) == 64
    assert "holds no SAE" in capsys.readouterr().err


@pytest.mark.real_model
def test_a_trained_refusal_is_spread_over_features():
    refusal = feature_types()["refusal"]
    types = {"refusal": refusal.model_copy(update={"pairs": refusal.pairs[:20]})}
    report = find_features("organism:safe", types=types, n_pairs=12, device="cpu")
    assert (report.sae, report.layer) == ("embedded", 28)
    assert report.explained > 0.5
    assert not report.types[0].confirmed
    assert len(report.influential) == 10
    last = report.curve[-1]
    assert last.size == 16
    assert 0.3 < last.left < min(last.random_left)
