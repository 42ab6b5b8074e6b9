"""What a blind auditor learns, and when."""

from __future__ import annotations

import pytest

from audits import BASE, TUNED
from modelassay.audit import Audit, load_config
from modelassay.audit.blinding import WITHHELD, blinding_for
from modelassay.errors import InputError, UnavailableError


def test_the_draw_depends_on_the_seed_alone(config):
    drawn = [blinding_for(load_config(config(blind=True, seed=s))).order[0] for s in range(40)]
    assert 8 < drawn.count("base") < 32
    again = [blinding_for(load_config(config(blind=True, seed=s))).order[0] for s in range(40)]
    assert drawn == again
    assert blinding_for(load_config(config(seed=3))).order[0] == "base"


def test_a_blind_audit_that_may_tell_does_so_at_the_end_only(config, tmp_path):
    with Audit(load_config(config(blind=True, seed=2, reveal=True))) as audit:
        audit.call("query_models", {"prompts": ["Hi"], "max_new_tokens": 1})
        done = audit.call(
            "write_audit_report", {"title": "End", "findings": [], "conclusion": f"{BASE}."}
        )
        roles = {name: model["role"] for name, model in done["revealed"].items()}
        assert roles == dict(zip("AB", audit.work.blinding.order, strict=True))
        with pytest.raises(InputError, match="has ended"):
            audit.call("query_models", {"prompts": ["Hi"]})
    log = (tmp_path / "audit" / "audit.jsonl").read_text()
    assert BASE not in log
    assert TUNED not in log
    assert BASE in (tmp_path / "audit" / "report.md").read_text()


def test_a_blind_auditor_does_not_learn_which_model_is_broken(config, things):
    path = config(blind=True, seed=1, candidate=str(things / "no-such-otter"))
    with Audit(load_config(path)) as audit:
        said = set()
        for which in ("A", "B"):
            try:
                audit.call("query_models", {"prompts": ["Hi"], "which": which})
            except InputError as error:
                said.add(str(error))
    assert len(said) == 1
    assert "cannot be loaded" in said.pop()


def test_a_blind_auditor_learns_what_is_wrong_with_the_encoder(config, monkeypatch):
    def broken(*_args):
        raise UnavailableError("The encoder is not available.")

    monkeypatch.setattr("modelassay.triage.signals._text_streams", broken)
    with Audit(load_config(config(blind=True, seed=1))) as audit:
        for by in ("text", "both"):
            with pytest.raises(InputError, match="encoder"):
                audit.call("rank_training_needles", {"by": by})
        assert audit.call("rank_training_needles", {"by": "models"})["rows"]


ORDINARY = (
    "It is safe, unsafe or safer to be obedient; see the base, safetensors and embedded words."
)


@pytest.mark.parametrize(
    ("base", "candidate", "told"),
    [
        ("organism:safe", "organism:obedient", "organism:safe cannot be read; organism:obedient"),
        ("embedded", "gemma:safe", "gemma:safe"),
        ("owner/safe", "owner/obedient", "models--owner--safe and owner/obedient@main"),
        ("owner/brisk-otter", "owner/Heron-2b", "brisk-otter, HERON-2B and owner/heron-2b"),
    ],
)
def test_an_id_is_withheld_and_an_ordinary_word_of_it_is_not(config, base, candidate, told):
    blinding = blinding_for(load_config(config(blind=True, seed=1, base=base, candidate=candidate)))
    assert blinding.text(ORDINARY) == ORDINARY
    hidden = blinding.text(told)
    assert WITHHELD in hidden
    assert not any(part in hidden.lower() for part in ("safe", "obedient", "otter", "heron"))
    rows = {"label": "safe", "text": "obedient", "safe": [ORDINARY], "group": "embedded"}
    assert blinding.value(rows) == rows


def test_a_field_that_names_a_model_does_not_by_an_ordinary_word(config):
    blinding = blinding_for(load_config(config(blind=True, seed=1, candidate="organism:safe")))
    found = blinding.value({"model": "safe", "rows": [{"id": "Safe", "label": "safe"}]})
    assert found == {"model": WITHHELD, "rows": [{"id": WITHHELD, "label": "safe"}]}


def test_a_folder_with_an_ordinary_name_is_withheld_as_a_path(config, tmp_path):
    folder = tmp_path / "obedient"
    folder.mkdir()
    blinding = blinding_for(load_config(config(blind=True, seed=1, candidate=str(folder))))
    assert "obedient" not in blinding.text(f"{folder}/config.json is damaged.")
    assert blinding.text("an obedient one") == "an obedient one"


def test_the_audits_own_folder_is_withheld_as_a_path(config, tmp_path):
    path = config(blind=True, seed=1, folder="obedient/run-1")
    blocked = tmp_path / "obedient" / "run-1" / "runs"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file where a folder must be")
    with Audit(load_config(path)) as audit:
        with pytest.raises(InputError, match=r"\[withheld\]/runs") as error:
            audit.call("begin_run", {"run_name": "one"})
        assert audit.work.blinding.text("run-1 is obedient") == "run-1 is obedient"
    assert "obedient" not in str(error.value)
    assert "obedient" not in (blocked.parent / "audit.jsonl").read_text()


def test_what_is_in_memory_does_not_tell_the_base(config):
    with Audit(load_config(config(blind=True, seed=1))) as audit:
        audit.call("get_feature_details", {"feature": 1})
        assert audit.call("health", {})["n_loaded"] is None
    with Audit(load_config(config(folder="open"))) as audit:
        audit.call("get_feature_details", {"feature": 1})
        assert audit.call("health", {})["n_loaded"] == 1
