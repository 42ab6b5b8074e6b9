"""Several candidates, several SAEs, drawn responses, and the score of `modelassay diff`."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from audits import BASE, LAYER, PROMPTS, TUNED, WIDTH
from diffs import SUITE
from modelassay.audit import Audit, load_config
from modelassay.audit.blinding import blinding_for
from modelassay.diff import Depth, diff, load_suite
from modelassay.diff.calibration import save_calibration
from modelassay.diff.comparing import calibrate
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.sae import find_sae, load_weights_file


def nudged(things, name, seed):
    """Another version of the base."""
    folder = things / name
    if not folder.exists():
        shutil.copytree(things / BASE, folder)
        model = load(str(folder), device="cpu")
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for weight in model.network.parameters():
                weight += 0.02 * torch.randn(weight.shape, generator=draw)
        model.network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def third(things):
    return nudged(things, "calm-badger", 9)


@pytest.fixture
def several(config, things, third):
    """Writes a config with a benign reference beside the suspect."""

    def write(**changed):
        models = {"suspect": str(things / TUNED), "tame": {"id": str(third)}}
        return config(candidate=None, candidates=models, **changed)

    return write


def test_candidates_have_a_letter_each_and_any_two_are_compared(several, tmp_path):
    with Audit(load_config(several())) as audit:
        call = audit.call
        asked = call("query_models", {"prompts": PROMPTS[:2], "max_new_tokens": 6})
        assert asked["models"] == {"A": "base", "B": "suspect", "C": "tame"}
        assert {"A", "B", "C"} <= set(asked["answers"][0])
        some = call("query_models", {"prompts": ["Hi"], "which": ["tame", "A"]})
        assert {"A", "C"} <= set(some["answers"][0])
        assert "B" not in some["answers"][0]

        whole = {"suite": "mixed", "answers": False}
        of_c = call("score_candidate_suite", {**whole, "candidate": "tame"})
        assert of_c["kl"]["direction"].startswith("D(A || C)")
        between = call("score_candidate_suite", {**whole, "reference": "B", "candidate": "C"})
        assert "C_minus_B" in between["contrasts"]
        assert between["kl"]["mean"] != of_c["kl"]["mean"]
        assert "Neither of the two" in between["suspicion"]["why"]
        ranks = {
            letter: call("weight_diff_summary", {"candidate": letter})["adapter_rank"]
            for letter in ("B", "C")
        }
        assert ranks["B"] == 1
        assert ranks["C"] is None
        one, other = (
            call("weight_diff_summary", {"reference": a, "candidate": b})["relative_change"]
            for a, b in (("B", "C"), ("C", "B"))
        )
        assert one == other
        for wrong, said in (("B", "itself"), ("Z", "A (base), B (suspect)")):
            with pytest.raises(InputError) as refused:
                call("weight_diff_summary", {"reference": "B", "candidate": wrong})
            assert said in str(refused.value)
        done = call("write_audit_report", {"title": "x", "conclusion": "y"})
    report = json.loads((tmp_path / "audit" / done["json"]).read_text())
    assert {m["role"] for m in report["models"].values()} == {"base", "suspect", "tame"}


def test_each_of_several_is_drawn_blind(several, things, third):
    orders = {blinding_for(load_config(several(blind=True, seed=s))).order for s in range(40)}
    assert len(orders) == 6
    with Audit(load_config(several(blind=True, seed=4))) as audit:
        said = [
            audit.call("query_models", {"prompts": ["Hi"], "max_new_tokens": 3}),
            audit.call("score_candidate_suite", {"suite": "mixed"}),
            audit.call("weight_diff_summary", {"reference": "C", "candidate": "A"}),
        ]
        with pytest.raises(InputError) as refused:
            audit.call("query_models", {"prompts": ["Hi"], "which": "suspect"})
    assert said[0]["models"] == {"A": "withheld", "B": "withheld", "C": "withheld"}
    assert "would tell which model is the base" in said[1]["suspicion"]["why"]
    assert str(refused.value).endswith("there are A, B, C.")
    text = json.dumps(said)
    for name in (BASE, TUNED, third.name, str(things), '"suspect"', '"base"'):
        assert name not in text


def test_the_score_is_that_of_diff(config, things, third, tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SUITE)
    suite = load_suite(path)
    kept = tmp_path / "benign.json"
    benign = [str(third), str(nudged(things, "mild-marten", 10))]
    found = calibrate(str(things / BASE), benign, suite, depth=Depth(triggers=False), device="cpu")
    save_calibration(found, kept)
    report = diff(
        str(things / BASE),
        str(things / TUNED),
        suite,
        depth=Depth(triggers=False, causal=False),
        calibration=found,
        device="cpu",
    )
    settings = {"suites": {"tiny": str(path)}, "calibration": str(kept)}
    # The whole suite is read, though a call may ask less.
    with Audit(load_config(config(**settings, limits={"prompts": 2}))) as audit:
        scored = audit.call("score_candidate_suite", {"suite": "tiny"})
        other = audit.call("score_candidate_suite", {"suite": "smalltalk", "answers": False})
        silent = audit.call("score_candidate_suite", {"suite": "tiny", "answers": False})
        without = audit.call("score_candidate_suite", {"suite": "tiny", "calibrated": False})
        turned = {"suite": "tiny", "reference": "B", "candidate": "A"}
        again = audit.call("score_candidate_suite", turned)["suspicion"]
    told = scored["suspicion"]
    assert scored["n"] == 7
    assert told["score"] == pytest.approx(report.suspicion.score, rel=1e-4)
    assert told["n_benign"] == report.suspicion.n_benign == 2
    assert told["verdict"] == report.verdict.value
    measured = {level.name: level.value for level in report.suspicion.levels}
    for stream in told["streams"]:
        value = measured[stream["name"]]
        assert stream["value"] == (value and pytest.approx(value, rel=1e-3, abs=1e-6))
    assert again["score"] == pytest.approx(told["score"], rel=1e-4)
    assert "another suite" in other["suspicion"]["why"]
    assert "responses of 100 tokens, and here they have 0" in silent["suspicion"]["why"]
    assert silent["kl"]["n"] == 2
    assert without["suspicion"]["score"] is None
    assert without["n"] == 2
    for seed in (1, 2):
        with Audit(load_config(config(**settings, blind=True, seed=seed, folder=f"s{seed}"))) as a:
            blind = a.call("score_candidate_suite", {"suite": "tiny"})["suspicion"]
        assert blind["score"] == pytest.approx(told["score"], rel=1e-4)
        assert set(blind) == {"score", "above_all_benign", "note"}
        assert blind["above_all_benign"] is (told["false_positive_rate"] == pytest.approx(1 / 3))
    # A benign fine-tune that the score is held against is left out of it, which nothing may tell.
    with Audit(
        load_config(config(**settings, blind=True, seed=3, candidate=benign[1], folder="m"))
    ) as a:
        member = a.call("score_candidate_suite", {"suite": "tiny"})
    assert set(member["suspicion"]) == set(blind)
    assert "benign_fine_tunes" not in json.dumps(member)
    with (
        Audit(load_config(config(**settings, folder="short", limits={"suite": 3}))) as audit,
    ):
        short = audit.call("score_candidate_suite", {"suite": "tiny", "answers": False})
    assert "`limits.suite` allows 3" in short["suspicion"]["why"]


def test_drawn_responses_depend_on_seed_and_prompt_alone(config):
    drawing = {"temperature": 1.5, "n": 4, "max_new_tokens": 6, "which": "A"}

    def said(result, row):
        return [each["text"] for each in result["answers"][row]["A"]["responses"]]

    with Audit(load_config(config())) as audit:
        both = audit.call("query_models", {"prompts": PROMPTS[:2], **drawing, "seed": 7})
        alone = audit.call("query_models", {"prompts": PROMPTS[1:2], **drawing, "seed": 7})
        other = audit.call("query_models", {"prompts": PROMPTS[1:2], **drawing, "seed": 8})
        assert said(both, 1) == said(alone, 0)
        assert said(alone, 0) != said(other, 0)
        assert len(set(said(alone, 0))) > 1
        assert both["answers"][0]["A"]["refusals"]["n"] == 4
        assert both["refusals"]["A"]["n"] == 8
        turns = [
            {"role": "user", "content": "Is bread heavy?"},
            {"role": "assistant", "content": "No."},
            {"role": "user", "content": "Is glass heavy?"},
        ]
        talk = audit.call("query_models", {"prompts": [turns, "Is glass heavy?"]})
        assert talk["answers"][0]["before"] == ["user: Is bread heavy?", "assistant: No."]
        assert talk["answers"][0]["A"]["text"] != talk["answers"][1]["A"]["text"]
        for wrong, why in {
            "n without temperature": ({"n": 2}, "temperature"),
            "too many": ({"n": 40, "temperature": 1, "prompts": PROMPTS[:2]}, "each draw counts"),
            "hot": ({"temperature": 9}, "`temperature`"),
            "no user": ({"prompts": [turns[:2]]}, "ends with no words of a user"),
            "two systems": (
                {"prompts": [[{"role": "system", "content": "x"}, *turns]], "system": "y"},
                "two system prompts",
            ),
            "role": ({"prompts": [[{"role": "tool", "content": "x"}]]}, "`prompts"),
        }.values():
            with pytest.raises(InputError, match=why):
                audit.call("query_models", {"prompts": ["Hi"], **wrong})


def test_several_saes_one_of_them_a_file(config, things, tmp_path):
    weights = load_file(things / "features" / "sae_weights.safetensors")
    raw = {name.lower(): value for name, value in weights.items()}
    raw["threshold"] = torch.full((WIDTH,), 0.01)
    save_file(raw, tmp_path / "params.safetensors")
    given = [str(things / "features"), {"path": "params.safetensors", "layer": LAYER + 1}]
    with Audit(load_config(config(dictionary=None, sae=given))) as audit:
        asked = {"prompts": PROMPTS[:3], "model": "A", "k": 3}
        first, second = (audit.call("get_top_features", {**asked, "sae": n}) for n in (1, 2))
        assert (first["layer"], second["layer"]) == (LAYER, LAYER + 1)
        assert first["features"][0]["label_source"] == "own"
        assert second["features"][0]["label_source"] != "own"
        with pytest.raises(InputError, match="no SAE 3; there are 2"):
            audit.call("get_top_features", {**asked, "sae": 3})
    plain = find_sae(str(things / "features"))
    jump = load_weights_file(tmp_path / "params.safetensors", LAYER)
    states = torch.randn(20, 32, generator=torch.Generator().manual_seed(1))
    fired = plain.module.encode(states)
    assert torch.allclose(jump.module.encode(states), torch.where(fired > 0.01, fired, 0.0))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda raw: raw.pop("w_dec"), "w_dec is missing"),
        (lambda raw: raw.update(b_enc=torch.zeros(3)), "b_enc is of shape"),
        (lambda raw: raw.update(w_enc=torch.zeros(3)), "holds no SAE"),
        (lambda raw: raw.update(more=torch.zeros(3)), "holds no SAE"),
        (lambda raw: raw.update(threshold=torch.zeros(3)), "threshold is of shape"),
        (lambda raw: raw["b_enc"].fill_(float("nan")), "not numbers"),
    ],
)
def test_a_file_that_is_no_sae_is_refused(things, tmp_path, change, said):
    weights = load_file(things / "features" / "sae_weights.safetensors")
    raw = {name.lower(): value.clone() for name, value in weights.items()}
    change(raw)
    save_file(raw, tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=said):
        load_weights_file(tmp_path / "w.safetensors", 1)


def test_what_is_no_safetensors_file_is_refused(config, tmp_path):
    with pytest.raises(InputError, match="no SAE file"):
        load_weights_file(tmp_path / "none.safetensors", 1)
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(InputError, match="no safetensors file"):
        load_weights_file(tmp_path / "bad.safetensors", 1)
    with (
        Audit(load_config(config(dictionary="./bad.safetensors"))) as audit,
        pytest.raises(InputError, match="layer: N"),
    ):
        audit.call("get_feature_details", {"feature": 1})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"candidates": {"base": "x/y"}}, "cannot be called base"),
        ({"candidates": {"A": "x/y"}}, "`candidates.A"),
        ({"candidates": {"one": {}}}, "needs an `id`"),
        ({"candidates": {"one": {"ide": "x/y"}}}, "unknown key"),
        ({"candidates": {f"c{i}": "x/y" for i in range(13)}}, "`candidates`"),
        ({"notes": ["x"]}, "unknown key `notes`"),
        ({"sae": {"path": "x"}, "dictionary": None}, "layer"),
    ],
)
def test_bad_candidates_are_one_line(config, changed, said):
    with pytest.raises(InputError) as refused:
        load_config(config(**changed))
    assert said in str(refused.value)
