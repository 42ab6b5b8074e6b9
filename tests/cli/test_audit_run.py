"""`modelassay audit run` on the command line: options, exit codes, one line for every error."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest
import yaml

from agents import BASE, TUNED, asks_then_reports, audit_config, tiny_pair
from chat_endpoint import SECRET
from modelassay.cli.main import run
from schemas import AGENT_AUDIT_SCHEMA


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def command(models, tmp_path, endpoint):
    """The command with all that it needs."""
    path = audit_config(models, tmp_path)()
    agent = ["--endpoint", endpoint.url, "--model", "a-model"]
    return ["audit", "run", "--config", str(path), *agent, "-q"]


@pytest.mark.parametrize(("risk", "code"), [(2, 0), (7, 1), (9, 1), (5, 3)])
def test_exit_codes_are_those_of_diff(command, endpoint, risk, code, capsys):
    endpoint.script.append(asks_then_reports(risk))
    assert run(command) == code
    out = capsys.readouterr().out
    assert f"{risk} of 10" in out
    assert TUNED in out


def test_json_html_and_several_runs(command, endpoint, capsys, tmp_path):
    endpoint.script.append(asks_then_reports(3))
    page = tmp_path / "audit.html"
    assert run([*command, "--runs", "2", "--json", "--html", str(page)]) == 0
    values = json.loads(capsys.readouterr().out)
    jsonschema.validate(values, AGENT_AUDIT_SCHEMA)
    assert values["used"]["n_runs"] == 2
    assert "BENIGN-LIKE" in page.read_text()
    assert BASE in page.read_text()
    for path in [page, *(p for p in (tmp_path / "audit").rglob("*") if p.is_file())]:
        assert SECRET not in path.read_text()


def test_a_config_of_the_auditors_is_taken_and_what_is_not_followed_is_told(
    models, endpoint, capsys, monkeypatch, tmp_path
):
    theirs = {
        "project": {"name": "mine", "results_dir": str(tmp_path / "audit")},
        "backend": {"type": "hf"},
        "models": {
            "base": {"id_or_path": str(models / BASE), "device_map": "cpu"},
            "adversarial": {"id_or_path": str(models / TUNED)},
        },
    }
    path = tmp_path / "theirs.yaml"
    path.write_text(yaml.safe_dump(theirs))
    monkeypatch.setenv("FT_AUDIT_CONFIG", str(path))
    monkeypatch.setenv("FT_AUDIT_BASE_DIR", str(tmp_path))
    endpoint.script.append(asks_then_reports(2))
    agent = ["--endpoint", endpoint.url, "--model", "a-model", "-q"]
    assert run(["audit", "run", "--profile", "behavior_only", *agent]) == 0
    assert "theirs.yaml: `project.name` is not used" in capsys.readouterr().err
    offered = {tool["function"]["name"] for tool in endpoint.asked[0][2]["tools"]}
    assert "query_models" in offered
    assert "weight_diff_summary" not in offered


def test_a_model_may_be_given_with_its_address(command, endpoint, tmp_path):
    endpoint.script.append(asks_then_reports(2))
    config = command[command.index("--config") + 1]
    short = ["audit", "run", "--config", config, "--model", f"{endpoint.url}#a/b-model", "-q"]
    assert run(short) == 0
    assert endpoint.asked[0][2]["model"] == "a/b-model"


def test_the_same_command_goes_on_and_resume_begins_nothing(command, endpoint, capsys):
    endpoint.script.append(asks_then_reports(2))
    assert run([*command, "--resume"]) == 64
    assert "no runs to go on with" in capsys.readouterr().err
    assert run(command) == 0
    asked = len(endpoint.asked)
    assert run([*command, "--resume"]) == 0
    assert len(endpoint.asked) == asked


def test_an_endpoint_that_is_down_is_one_line(command, endpoint, capsys):
    endpoint.script.append((503, {"Retry-After": "0"}, {}))
    assert run([*command, "--attempts", "2"]) == 69
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "gave no response in 2 attempts (HTTP 503)" in err
    assert "0 of 1 runs are finished and kept in" in err
    assert SECRET not in err


def test_the_settings_in_the_guide_start_our_server(models, tmp_path):
    """What clients are told to start: it parses, and it is a command that there is."""
    tomllib = pytest.importorskip("tomllib")
    page = Path(__file__).parents[2].joinpath("docs/how-to/agents.md").read_text()
    found = [
        json.loads(block)["mcpServers"] for block in re.findall(r"```json\n(.*?)```", page, re.S)
    ]
    found += [
        tomllib.loads(block)["mcp_servers"]
        for block in re.findall(r"```toml\n(.*?)```", page, re.S)
    ]
    servers = [server for each in found for server in each.values()]
    assert len(servers) == 3
    for server in servers:
        assert (server["command"], server["args"]) == (
            "modelassay",
            ["mcp", "--config", "/abs/my-audit.yaml"],
        )
    for line in re.findall(r"^(?:claude|codex|gemini) mcp add .*$", page, re.M):
        assert line.replace(" -- ", " ").endswith("modelassay mcp --config /abs/my-audit.yaml")
    assert run(["mcp", "--config", str(tmp_path / "my-audit.yaml")]) == 64


BAD = {
    "no config": (["--config"], [], "--config FILE"),
    "no model": (["--model"], [], "--endpoint URL and --model NAME"),
    "no endpoint": (["--endpoint"], [], "--endpoint URL and --model NAME"),
    "address": (["--endpoint"], ["--endpoint", "host/v1"], "--endpoint must begin with http"),
    "key": ([], ["--key-env", SECRET], "not the key"),
    "cost": ([], ["--max-cost", "1"], "--max-cost needs prices"),
    "one price": ([], ["--price-in", "1"], "both prices"),
    "turns": ([], ["--max-turns", "1"], "--max-turns must be 2"),
    "seconds": ([], ["--max-seconds", "0"], "--max-seconds"),
    "organism": ([], ["--organisms", "nobody"], "needs `seed`"),
    "no organisms": ([], ["--organisms", ","], "names with commas"),
    "profile": ([], ["--profile", "all"], "--profile is full"),
    "runs": ([], ["--runs", "0"], "--runs"),
    "page": ([], ["--html", "/nowhere/at/all.html"], "no folder"),
}


@pytest.mark.parametrize(("without", "added", "why"), BAD.values(), ids=BAD)
def test_what_cannot_be_used_is_refused_before_anything_is_asked(
    command, endpoint, capsys, tmp_path, without, added, why
):
    kept = list(command)
    for option in without:
        at = kept.index(option)
        del kept[at : at + 2]
    assert run([*kept, *added]) == 64
    err = capsys.readouterr().err
    assert why in err
    assert err.count("\n") == 1
    assert SECRET not in err
    assert endpoint.asked == []
    assert not (tmp_path / "audit").exists()
