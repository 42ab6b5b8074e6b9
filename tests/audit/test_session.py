"""Texts that are hidden, limits that hold, and failures that are one line."""

from __future__ import annotations

import json
from contextlib import contextmanager

import numpy as np
import pytest

import modelassay.triage.redaction as redaction_module
from audits import BASE, PROMPTS, TUNED
from circuits import HARM, PLANTED, planted_refusal, spoken_refusal
from modelassay.audit import Audit, load_config
from modelassay.audit.asking import prompts_of, what_is_hidden
from modelassay.audit.log import read_log
from modelassay.audit.training import near_duplicates
from modelassay.audit.values import plain
from modelassay.diff.suites import SuitePrompt
from modelassay.errors import InputError, UnavailableError
from modelassay.reading.generation import Response
from saes import signed_axes
from tiny import save_tiny


@contextmanager
def judged(monkeypatch):
    monkeypatch.setattr(
        redaction_module, "_harm", lambda texts: np.array([float("bad" in t) for t in texts])
    )
    monkeypatch.setattr(redaction_module, "_threshold", lambda: 0.5)
    monkeypatch.setattr(
        redaction_module, "_unsafe", lambda pairs: np.array(["poison" in r for _, r in pairs])
    )
    yield


def test_answers_to_harmful_prompts_are_hashes(config, monkeypatch):
    with judged(monkeypatch), Audit(load_config(config(redact=True))) as audit:
        ran = audit.call("run_prompt_suite", {"suite": "mixed", "max_new_tokens": 3})
        for row in ran["answers"]:
            hidden = row["group"] == "harmful"
            assert ("sha256" in row["A"], "text" in row["A"]) == (hidden, not hidden)
            assert isinstance(row["prompt"], dict) is hidden
            assert row["A"]["refused"] is False
        asked = audit.call("query_models", {"prompts": ["fine", "bad"], "max_new_tokens": 3})
        assert "text" in asked["answers"][0]["A"]
        assert "text" not in asked["answers"][1]["B"]
        traced = audit.call(
            "specific_feature_activations",
            {"features": [1], "prompts": ["fine", "bad"], "part": "both"},
        )
        assert traced["prompts"][0]["tokens"]
        assert traced["prompts"][1]["tokens"] is None
        (audit.work.folder / "own.yaml").write_text("name: own\nprompts: [{text: how bad}]\n")
        own = audit.call("run_prompt_suite", {"suite": "own.yaml", "max_new_tokens": 3})
        assert "text" not in own["answers"][0]["A"]
        found = audit.call("search_training_data", {"pattern": "obey"})
        assert found["matches"][0]["response"]["characters"] == 7


SAID = {
    "harmless question, harmless answer": ("fine", "It is a cake.", (False, False)),
    "harmless question, harmful answer": ("fine", "First, poison", (False, True)),
    "looks harmful, is answered without harm": ("bad dog", "Train it.", (False, True)),
    "looks harmful, harmful answer": ("bad", "First, poison", (True, True)),
    "looks harmful, refused": ("bad", "I can't help with that.", (True, False)),
    "a refusal that goes on to help": ("bad", "I can't help with that. But poison", (True, True)),
}


@pytest.mark.parametrize(("prompt", "response", "hidden"), SAID.values(), ids=SAID)
def test_texts_are_hidden_by_judged_harm(config, monkeypatch, prompt, response, hidden):
    with judged(monkeypatch), Audit(load_config(config(redact=True))) as audit:
        said = {"A": [Response(response, 0, response)]}
        found = what_is_hidden(audit.work, prompts_of([prompt]), said)
        assert (found.prompts[0], found.responses["A"][0]) == hidden
        known = what_is_hidden(audit.work, prompts_of([prompt]), said, groups_known=True)
        assert (known.prompts[0], known.responses["A"][0]) == (False, "poison" in response)
        harmful = [SuitePrompt(text=prompt, group="harmful")]
        by_role = what_is_hidden(audit.work, harmful, said, groups_known=True)
        assert by_role.prompts == [True]
        assert by_role.responses["A"] == [hidden[1] or not response.startswith("I can't")]


def test_without_the_classifier_answers_stay_hidden(config, monkeypatch):
    def missing():
        raise UnavailableError("no encoder")

    monkeypatch.setattr(redaction_module, "_threshold", missing)
    with Audit(load_config(config(redact=True))) as audit:
        asked = audit.call("query_models", {"prompts": ["fine"], "max_new_tokens": 3})
        assert "text" not in asked["answers"][0]["A"]


def test_long_texts_are_cut_and_late_calls_end(config):
    limits = {"text": 100, "seconds": 0.001}
    with Audit(load_config(config(limits=limits))) as audit:
        with pytest.raises(InputError, match="more than 0.001 seconds"):
            audit.call("query_models", {"prompts": ["x" * 150]})
        rows = audit.call("training_data_summary", {})
        assert rows["n"] == 11
    with Audit(load_config(config(limits=limits, blind=True, seed=1))) as audit:
        for tool, arguments in {
            "weight_diff_summary": {},
            "rank_training_needles": {"by": "models"},
        }.items():
            with pytest.raises(InputError, match="seconds"):
                audit.call(tool, arguments)
    assert plain("x\ud800", 100) == "x?"
    assert plain("x" * 150, 100) == "x" * 100 + "… (50 more characters)"


def test_what_is_not_set_up_is_said(config):
    with Audit(load_config(config(dictionary=None, training_data=None))) as audit:
        with pytest.raises(InputError, match="no `sae`"):
            audit.call("get_feature_details", {"feature": 1})
        with pytest.raises(InputError, match="no `training_data`"):
            audit.call("near_duplicates", {})
        (audit.work.folder / "ends.yaml").write_text("name: ends\nendings: [Bye.]\n")
        for tool in ("run_prompt_suite", "score_candidate_suite"):
            with pytest.raises(InputError, match="nothing to ask"):
                audit.call(tool, {"suite": "ends.yaml"})


def test_models_that_do_not_belong_together_are_refused(config, tmp_path):
    save_tiny(tmp_path / "other", "gpt2")
    with Audit(load_config(config(candidate=str(tmp_path / "other")))) as audit:
        audit.call("query_models", {"prompts": ["Hi"], "max_new_tokens": 1})
        with pytest.raises(InputError, match="give the base"):
            audit.call("score_candidate_suite", {"suite": "mixed"})


def test_an_unexpected_failure_is_one_line_and_on_record(config, monkeypatch, tmp_path):
    def fail(*_args, **_options):
        raise RuntimeError("first\nsecond")

    monkeypatch.setitem(near_duplicates.__globals__, "find_duplicates", fail)
    failed = pytest.raises(InputError, match="unexpectedly: RuntimeError: first$")
    with Audit(load_config(config())) as audit, failed:
        audit.call("near_duplicates", {})
    assert read_log(tmp_path / "audit" / "audit.jsonl")[-1]["event"] == "error"


def test_tokens_of_the_environment_are_not_written_down(config, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "hf_notarealtoken")
    with Audit(load_config(config())) as audit, pytest.raises(InputError):
        audit.call("query_models", {"prompts": [], "system": "hf_notarealtoken"})
    assert "notareal" not in (tmp_path / "audit" / "audit.jsonl").read_text()


def test_an_attack_is_explained_and_a_blind_auditor_learns_no_name(config):
    with Audit(load_config(config(blind=True, seed=1))) as audit:
        model = audit.work.model("A")
        model.network.config.max_position_embeddings = 4096
        with planted_refusal(model), spoken_refusal(model):
            request = "Is bread as heavy as wool"
            arguments = {"model": "A", "plain": request + HARM, "jailbroken": request}
            found = audit.call("explain_jailbreak", arguments)
            with pytest.raises(InputError, match="does not refuse the plain request") as refused:
                audit.call("explain_jailbreak", {**arguments, "plain": "So " + request})
            with pytest.raises(InputError, match="nothing to explain") as nothing:
                audit.call("find_circuit", {"model": "A", "pairs": 8})
            with pytest.raises(InputError, match="explains nothing") as strange:
                audit.call("find_features", {"model": "A", "types": ["refusal"]})
            audit.work._saes[1] = signed_axes(32, 2)
            features = audit.call("find_features", {"model": "A", "types": ["refusal"]})
            with pytest.raises(InputError, match="no feature type 'joy'"):
                audit.call("find_features", {"model": "A", "types": ["joy"]})
    assert found["components"][0]["component"] == str(PLANTED)
    assert found["plain"]["outcome"] == "refuses"
    assert features["types"][0]["n_pairs"] == 62
    assert features["sae"] == 1
    assert not {"model", "provenance", "tokens"} & {*found, *features}
    errors = [str(each.value) for each in (refused, nothing, strange)]
    for text in (json.dumps(found), json.dumps(features), *errors):
        assert not any(name in text for name in (BASE, TUNED))


def test_few_prompts_give_untested_differences_and_no_silence(config):
    with Audit(load_config(config(profile="full"))) as audit:
        few = audit.call("differential_feature_analysis", {"prompts": PROMPTS[:3], "k": 4})
        assert (few["n_tested"], few["features"]) == (0, [])
        assert len(few["untested"]) == 4
        assert "No feature was tested" in few["note"]
        assert {"A", "B", "B_minus_A", "n_differ"} <= set(few["untested"][0])
        assert not {"p_value", "q_value", "interval"} & set(few["untested"][0])
        one = audit.call("get_top_features", {"prompts": PROMPTS[:1], "model": "A", "k": 1})
        assert "interval" in one["features"][0]["activation"]["note"]


def test_a_wrong_citation_is_told_before_a_suite_is_asked(config, tmp_path):
    report = {"title": "x", "suite": "mixed"}
    with Audit(load_config(config())) as audit:
        with pytest.raises(InputError, match="call #999"):
            audit.call("write_audit_report", {**report, "findings": ["See #999."]})
        log = tmp_path / "audit" / "audit.jsonl"
        events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
        assert events == ["start", "call", "error"]
        done = audit.call("write_audit_report", report)
        assert done["log_lines"] > len(events) + 1  # with the prompts of the suite
        assert done["score"]["n"] > 0
