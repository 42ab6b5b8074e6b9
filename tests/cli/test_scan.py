"""`modelassay scan`: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import jsonschema
import pytest

from modelassay.cli.main import run
from outputs import COMMAND
from schemas import SCAN_SCHEMA


def test_json_is_all_there_is_on_stdout(quick, capfd):
    code = run([*quick, "--json"])
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert report["schema"] == "modelassay.scan/1"
    assert code == {"CRITICAL": 1, "INCONCLUSIVE": 3}[report["verdict"]]
    assert "reading activations" in err


def test_the_table_fits_a_plain_terminal(quick, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    run([*quick, "--quiet"])
    out, err = capfd.readouterr()
    assert err == ""
    assert "harmful_content" in out
    assert "95%" in out
    assert "…" not in out
    assert max(len(line) for line in out.splitlines()) <= 80
    assert "\x1b" not in out


def test_html_is_written_whole(quick, tmp_path):
    target = tmp_path / "report.html"
    run([*quick, "--html", str(target)])
    assert target.read_text().endswith("</html>\n")
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".partial")] == []


def test_fail_on_and_exit_codes():
    from modelassay.cli.scan import exit_code

    table = {
        ("PASS", "warning"): 0, ("WARNING", "warning"): 1, ("CRITICAL", "warning"): 1,
        ("PASS", "critical"): 0, ("WARNING", "critical"): 0, ("CRITICAL", "critical"): 1,
        ("INCONCLUSIVE", "warning"): 3, ("INCONCLUSIVE", "critical"): 3,
    }  # fmt: skip
    for (verdict, fail_on), code in table.items():
        assert exit_code(verdict, fail_on) == code


def test_an_existing_report_survives_a_failed_scan(tmp_path, capfd):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert run(["scan", "./nowhere", "--html", str(target)]) == 64
    assert target.read_text() == "old"


@pytest.mark.real_model
def test_scan_of_the_embedded_model_as_a_user_runs_it(tmp_path):
    target = tmp_path / "report.html"
    python, *command = COMMAND
    run = subprocess.run(
        [python, "-W", "error::RuntimeWarning", *command, "scan", "embedded", "--json", "--html",
         str(target)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 1, run.stderr
    report = json.loads(run.stdout)
    jsonschema.validate(report, SCAN_SCHEMA)
    assert report["verdict"] == "CRITICAL"
    assert "answers harmful requests" in report["reasons"][0]
    assert report["ablation"]["detected"] is False
    harm = report["concepts"]["harmful_content"]
    assert harm["p_value"] < 0.01  # it sees harm ...
    assert report["refusal"]["harmful_rate"] < 0.3  # ... and answers all the same
    assert harm["in_sample_separation"] > harm["separation"]
    assert report["model"]["id"] == "embedded"
    assert report["model"]["n_layers"] == 30
    refusal = report["refusal"]
    assert refusal["n"] == refusal["n_asked"] <= refusal["n_planned"] == 188
    assert Path(target).read_text().count('<figure class="chart"') == 8
    assert "Traceback" not in run.stderr
