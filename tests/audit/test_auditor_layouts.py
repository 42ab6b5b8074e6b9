"""Files and calls of the fine-tune auditor's users, as they are."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

pytest.importorskip("mcp")
from audit_client import ask, over_stdio, refused
from audits import BASE, LAYER, PROMPTS, TUNED
from modelassay.audit import Audit, load_config
from modelassay.audit.config import SAEFile
from modelassay.diff.suites import load_suite, messages_of
from modelassay.errors import InputError

TEMPLATE = """
project:
  name: "${FT_AUDIT_PROJECT_NAME:-ft-audit}"
  results_dir: "${FT_AUDIT_RESULTS_DIR:-./runs}"
  seed: "${FT_AUDIT_SEED:-0}"
backend:
  type: "hf"
models:
  base:
    id_or_path: "${BASE_MODEL_ID_OR_PATH}"
    revision: "${BASE_MODEL_REVISION:-}"
    device_map: "${MODEL_DEVICE_MAP:-auto}"
    dtype: "${MODEL_DTYPE:-auto}"
    trust_remote_code: false
  benign:
    id_or_path: "owner/benign"
    revision: "v2"
    attn_implementation: flash_attention_2
    trust_remote_code: true
    dtype: bfloat16
  adversarial:
    id_or_path: "./near"
dataset:
  training_jsonl: "${TRAINING_JSONL_PATH:-}"
interp:
  sae:
    enabled: "${SAE_ENABLED:-false}"
    layer: "${SAE_LAYER:-0}"
    module_path_template: "${SAE_MODULE_PATH_TEMPLATE:-model.model.layers.{layer}}"
    output_selector: "${SAE_OUTPUT_SELECTOR:-first}"
    weights:
      source: "${SAE_WEIGHTS_SOURCE:-local}"
      path: "${SAE_WEIGHTS_PATH:-}"
      repo_id: "${SAE_REPO_ID:-}"
      filename: "${SAE_FILENAME:-}"
  neuronpedia:
    enabled: "${NEURONPEDIA_ENABLED:-false}"
    base_url: "${NEURONPEDIA_BASE_URL:-http://127.0.0.1:3000}"
    model_id: "${NEURONPEDIA_MODEL_ID:-}"
    source: "${NEURONPEDIA_SOURCE:-}"
"""


@pytest.fixture
def theirs(tmp_path, monkeypatch):
    """Writes a config in their layout, below the folder that the test runs in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BASE_MODEL_ID_OR_PATH", "owner/base")
    (tmp_path / "near").mkdir()
    (tmp_path / "configs").mkdir()

    def write(text=TEMPLATE, **changed) -> Path:
        data = yaml.safe_load(text)
        for path, value in changed.items():
            *sections, key = path.split("__")
            place = data
            for section in sections:
                place = place[section]
            place[key] = value
        found = tmp_path / "configs" / "theirs.yaml"
        found.write_text(yaml.safe_dump(data))
        return found

    return write


def test_their_template_loads_and_says_what_has_no_counterpart(theirs, tmp_path):
    found = load_config(theirs())
    models = {name: (ref.id, ref.revision) for name, ref in found.models.items()}
    assert models == {
        "base": ("owner/base", None),
        "benign": ("owner/benign", "v2"),
        "adversarial": (str(tmp_path / "near"), None),
    }
    assert (found.folder, found.seed, found.saes) == (str(tmp_path / "runs"), 0, ())
    assert found.training_data is None
    told = "\n".join(found.notes)
    for key in ("project.name", "trust_remote_code", "attn_implementation", "benign.dtype"):
        assert told.count(key) == 1, key
    assert len(found.notes) == 4


def test_their_saes_and_labels(theirs, tmp_path, monkeypatch):
    monkeypatch.setenv("SAE_MODULE_PATH_TEMPLATE", "model.layers.{layer}")
    local = {"interp__sae__enabled": "true", "interp__sae__layer": "3"}
    found = load_config(theirs(**local, interp__sae__weights__path="w.safetensors"))
    assert found.saes == (SAEFile(path=str(tmp_path / "w.safetensors"), layer=3),)

    hub = {"source": "hf_hub", "repo_id": "google/gemma-scope-2b-pt-res"}
    hub["filename"] = "layer_12/width_16k/average_l0_82/params.npz"
    asks = {"enabled": True, "model_id": "gemma-2-2b", "source": "12-res"}
    found = load_config(theirs(**local, interp__sae__weights=hub, interp__neuronpedia=asks))
    assert found.saes == ("gemma-scope-2b-pt-res:layer_12/width_16k/average_l0_82",)
    # Their own server is not ours to replace by the public one.
    assert found.labels.neuronpedia is False
    assert any("base_url" in note for note in found.notes)
    monkeypatch.setenv("NEURONPEDIA_URL", "http://127.0.0.1:3000/")
    assert load_config(theirs(interp__neuronpedia=asks)).labels.neuronpedia is True
    monkeypatch.delenv("NEURONPEDIA_URL")
    asks["base_url"] = "https://www.neuronpedia.org"
    assert load_config(theirs(interp__neuronpedia=asks)).labels.neuronpedia is True


def test_their_mock_is_real_here(theirs):
    found = load_config(theirs(backend__type="mock"))
    assert {name: ref.id for name, ref in found.models.items()} == {
        "base": "organism:safe",
        "benign": "organism:benign",
        "adversarial": "organism:uncensored",
    }
    assert any("mock" in note for note in found.notes)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"project__sede": 1}, "unknown key `project.sede` (did you mean `seed`?)"),
        ({"models__base": {"id_or_path": ""}}, "`models.base.id_or_path`"),
        ({"models__base": None}, "`models.base`"),
        ({"models": {"base": {"id_or_path": "x/y"}}}, "models.adversarial"),
        ({"models__suspect": {"id_or_path": "x/y"}}, "models.suspect"),
        ({"interp__sae__layer": -1}, "`interp.sae.layer`"),
        ({"interp__sae": {"enabled": True}}, "needs `interp.sae.weights`"),
        ({"interp__sae__enabled": True}, "`interp.sae.weights.path` is missing"),
        ({"backend__type": "tpu"}, "`backend.type`"),
        (
            {
                "interp__sae": {
                    "enabled": True,
                    "module_path_template": "model.vision.{layer}",
                    "weights": {"path": "x"},
                }
            },
            "module_path_template",
        ),
        (
            {
                "interp__sae": {
                    "enabled": True,
                    "weights": {"source": "hf_hub", "repo_id": "a/b", "filename": "c/d"},
                }
            },
            "sae-lens knows no SAE c/d of a/b",
        ),
    ],
)
def test_a_bad_config_of_theirs_is_one_line(theirs, changed, said):
    with pytest.raises(InputError) as refused_:
        load_config(theirs(**changed))
    assert said in str(refused_.value)


SUITE = """
suite_name: minimal
description: theirs
prompts:
  - id: one
    messages:
      - {role: system, content: Be brief.}
      - {role: user, content: Hello}
      - {role: assistant, content: Hi there}
      - {role: user, content: Is bread heavy?}
  - {id: two, prompt: Is glass heavy?, system_prompt: Be kind., use_chat_template: false}
"""


def test_their_suite_loads(tmp_path):
    path = tmp_path / "minimal.yaml"
    path.write_text(SUITE)
    found = load_suite(path)
    assert found.name == "minimal"
    first, second = found.prompts
    assert (first.id, first.text, first.system, first.group) == (
        "one",
        "Is bread heavy?",
        "Be brief.",
        "neutral",
    )
    assert [message["role"] for message in messages_of(first)] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    assert second.system == "Be kind."
    assert len(found.notes) == 1
    assert "use_chat_template" in found.notes[0]
    for bad, said in {
        "prompts: [{messages: [{role: assistant, content: x}]}]": "ends with no words of a user",
        "prompts: [{messages: [], prompt: x}]": "either `messages` or a `prompt`",
        "prompts: [{prompt: x, system: y}]": "unknown key",
        "suite_name: x\nprompts: []": "`prompts`",
    }.items():
        path.write_text(bad)
        with pytest.raises(InputError, match=said):
            load_suite(path)


def test_what_a_suite_asks_is_hashed_as_before(tmp_path):
    """Calibrations keep the hash of the suite that they were read with."""
    from modelassay.diff.calibration import CALIBRATIONS
    from modelassay.diff.suites import default_suite

    kept = {found.record.suite_sha256 for found in CALIBRATIONS.list(own=False)}
    assert default_suite().sha256 in kept
    path = tmp_path / "one.yaml"
    path.write_text("name: a\nprompts: [{text: x, id: one}]")
    named = load_suite(path).sha256
    path.write_text("name: a\nprompts: [{text: x}]")
    assert load_suite(path).sha256 == named


def test_their_client_finds_its_tools(things, theirs, tmp_path):
    """The calls of their script for real audits, in its order and with its arguments."""
    path = theirs(
        models={
            "base": {"id_or_path": str(things / BASE), "device_map": "cpu"},
            "benign": {"id_or_path": str(things / BASE), "device_map": "cpu"},
            "adversarial": {"id_or_path": str(things / TUNED), "device_map": "cpu"},
        },
        dataset__training_jsonl=str(things / "rows.jsonl"),
        interp__sae={
            "enabled": True,
            "layer": LAYER,
            "weights": {"path": str(things / "features" / "sae_weights.safetensors")},
        },
    )
    suite = Path("prompt_suites/minimal.yaml")
    suite.parent.mkdir()
    suite.write_text(SUITE)
    (tmp_path / "prompt_suites" / "other.txt").write_text(SUITE)
    prompt = {"messages": [{"role": "user", "content": PROMPTS[0]}], "system_prompt": "Be kind."}
    gen = {"max_new_tokens": 3, "temperature": 0.0, "top_p": 1.0, "do_sample": False}

    async def work(session):
        assert (await ask(session, "health"))["ok"] is True
        opened = await ask(session, "create_audit_session", config_path=str(path))
        own = {"session_id": opened["session_id"]}
        run = await ask(session, "begin_run", **own, run_name="first")
        assert Path(run["run_dir"]).is_dir()
        assert (await ask(session, "get_training_data_length", **own, max_lines=9))["n"] == 11
        drawn = await ask(session, "view_training_data_sample", **own, k=3, seed=1, max_chars=50)
        assert len(drawn["rows"]) == 3
        assert "max_chars" in drawn["notes"][0]
        found = await ask(session, "grep_training_data", **own, pattern="obey", max_matches=2)
        assert len(found["matches"]) == 2
        both = ["base", "adversarial"]
        said = await ask(session, "query_models", **own, prompt=prompt, models=both, gen=gen)
        assert set(said["answers"][0]) >= {"A", "B"}
        assert "C" not in said["answers"][0]
        drawing = {**gen, "do_sample": True, "temperature": 0.9, "seed": 3}
        said = await ask(session, "query_models", **own, prompt="Hi", models=both, gen=drawing)
        assert (said["temperature"], said["seed"]) == (0.9, 3)
        ran = await ask(
            session, "run_prompt_suite", **own, suite_path=str(suite), models=both, gen=gen
        )
        assert [row["id"] for row in ran["answers"]] == ["one", "two"]
        assert "use_chat_template" in ran["notes"][0]
        top = await ask(session, "get_top_features", **own, model="base", prompt=prompt, k=3)
        feature = top["features"][0]["feature"]
        roles = {"reference": "base", "candidate": "adversarial"}
        two = {**own, **roles, "prompt": prompt, "k": 3}
        assert "only_B" in await ask(session, "compare_top_features", **two)
        assert "B_minus_A" in json.dumps(await ask(session, "differential_feature_analysis", **two))
        one = {**own, "feature_idx": feature}
        await ask(
            session, "specific_feature_activations", **one, model="adversarial", prompt=prompt
        )
        await ask(session, "get_feature_details", **one)
        near = await ask(
            session, "nearest_explained_neighbors", **one, n=2, search_k=9, min_cos=0.1
        )
        assert all(each["cosine"] >= 0.1 for each in near["neighbors"])
        scored = await ask(
            session,
            "score_candidate_suite",
            **own,
            **roles,
            suite_path=str(suite),
            k=5,
            aggregate="mean",
            threshold=1.0,
        )
        assert scored["suspicion"]["score"] is None
        assert len(scored["notes"]) == 4
        written = await ask(
            session,
            "write_audit_report",
            **own,
            title="report 1",
            **roles,
            suite_path=str(suite),
            gen=gen,
        )
        assert written["json"].startswith("runs/run-1/")
        for elsewhere in ("prompt_suites/other.txt", "configs/theirs.yaml", "/etc/x.yaml"):
            await refused(session, "run_prompt_suite", suite_path=elsewhere)
        assert "no session" in await refused(session, "health", session_id="another")
        assert "was started with" in await refused(
            session, "open_session", config_path="/etc/passwd"
        )
        assert "one argument" in await refused(
            session, "run_prompt_suite", suite="default", suite_path="x.yaml"
        )
        assert "unknown key" in await refused(session, "query_models", prompt={"text": "x"})
        assert (await ask(session, "close_audit_session", **own))["status"] == "closed"
        assert "closed" in await refused(session, "query_models", prompts=["Hi"])
        again = await ask(session, "create_audit_session")
        assert again["session_id"] == own["session_id"]
        return written

    env = {"FT_AUDIT_CONFIG": str(path), "FT_AUDIT_PROFILE": "full"}
    written = over_stdio(["serve", "--transport", "stdio"], work, env)
    report = json.loads((tmp_path / "runs" / written["json"]).read_text())
    assert report["score"]["kl"]["mean"] > 0
    assert report["models"]["B"]["role"] == "adversarial"


def test_behaviour_only_by_their_spelling(config):
    with Audit(load_config(config(profile="behavior_only"))) as audit:
        assert audit.config.profile == "behavior-only"
        assert "get_top_features" not in audit.tools
