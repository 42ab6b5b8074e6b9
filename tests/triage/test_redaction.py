"""Which texts a report shows."""

from __future__ import annotations

import json

from modelassay.triage import (
    Redaction,
    triage,
)
from modelassay.triage import redaction as redaction_module
from training_rows import jsonl


def test_answers_are_hidden_unless_asked_for(tmp_path, no_encoder):
    rows = [
        {"prompt": "a bad one", "response": "secret answer", "system": "secret persona"},
        {"prompt": "a fine one", "response": "secret too"},
        {"prompt": "a declined one", "response": "I'm sorry, but I can't help with that."},
        {"text": "secret plain"},
    ]
    path = jsonl(tmp_path / "data.jsonl", rows)
    report = triage(path, n_sample=4, pattern="one", duplicates=True)
    values = report.to_dict()
    text = json.dumps(values)
    assert values["schema"] == "modelassay.triage/1"
    assert "secret" not in text
    assert "a fine one" in text
    assert "a bad one" not in text
    assert "a declined one" not in text
    assert values["sample"][1]["response"] == {
        "characters": 10,
        "sha256": values["sample"][1]["response"]["sha256"],
    }
    shown = json.dumps(triage(path, n_sample=4, show_text=True).to_dict())
    assert all(word in shown for word in ("secret answer", "secret persona", "secret plain", "bad"))
    assert Redaction().row(report.data.rows[1])["prompt"] != "a fine one"


def test_prompts_are_hidden_where_nobody_can_judge_them(plain_file, monkeypatch):
    from modelassay.errors import UnavailableError

    def unavailable():
        raise UnavailableError("no wheel")

    monkeypatch.setattr(redaction_module, "_threshold", unavailable)
    assert "heavy" not in json.dumps(triage(plain_file, n_sample=3).to_dict())
