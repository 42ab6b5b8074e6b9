"""`modelassay verify` and `modelassay baseline` as a user runs them."""

from __future__ import annotations

import json

import jsonschema

from modelassay.cli.main import run
from schemas import SCAN_SCHEMA
from tiny import save_tiny


def test_the_commands_make_list_show_verify_and_delete(tmp_path, capsys, store):
    folder = save_tiny(tmp_path / "mine")
    assert run(["baseline", "create", str(folder), "--name", "mine", "--mode", "full", "-q"]) == 0
    assert capsys.readouterr().out.strip() == str(store / "mine")
    assert run(["baseline", "create", str(folder), "--name", "mine", "--quiet"]) == 64
    capsys.readouterr()
    assert run(["baseline", "list", "--json"]) == 0
    assert "mine" in [row["name"] for row in json.loads(capsys.readouterr().out)]
    assert run(["baseline", "show", "mine"]) == 0
    assert "refuses harmful" in capsys.readouterr().out
    assert run(["verify", str(folder), "--against", "mine", "--json", "--quiet"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["schema"] == "modelassay.verify/1"
    assert report["verified"] is True
    assert report["kind"] == "identical"
    assert report["baseline"]["source"] == "local"
    other = save_tiny(tmp_path / "other", seed=3)
    assert run(["verify", str(other), "--against", "mine", "--quiet"]) == 2
    assert "NOT VERIFIED" in capsys.readouterr().out
    assert run(["verify", str(other), "--quiet"]) == 3
    capsys.readouterr()
    scan = ["scan", "--mode", "quick", "--verify", "mine", "--json", "--quiet"]
    assert run([*scan, str(other)]) == 2
    found = json.loads(capsys.readouterr().out)["verification"]
    assert (found["verified"], found["schema"]) == (False, "modelassay.verify/1")
    page = tmp_path / "report.html"
    # Random weights have no separation; that is not identity.
    assert run([*scan, str(folder), "--html", str(page)]) == 1
    assert "VERIFIED: identical" in page.read_text()
    report = json.loads(capsys.readouterr().out)
    assert report["verification"]["verified"] is True
    jsonschema.validate(report, SCAN_SCHEMA)
    assert run(["scan", "--verify", "mine", "--no-chat-template", str(folder)]) == 64
    assert "leave --no-chat-template out" in capsys.readouterr().err
    assert run(["scan", "--verify", "nothing", str(folder)]) == 64
    assert "No baseline 'nothing'" in capsys.readouterr().err
    assert run(["baseline", "delete", "mine"]) == 0
    assert run(["baseline", "delete", "mine"]) == 64
