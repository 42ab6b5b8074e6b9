"""The command: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from modelassay.cli.main import run
from modelassay.errors import EXIT_PIPE, AssayError
from outputs import one_line
from schemas import SCAN_SCHEMA

COMMAND = [sys.executable, "-c", "from modelassay.cli import main; main()"]


@pytest.fixture
def few(tmp_path):
    """A concept file in place of the large shipped ones that quick mode reads."""
    nouns = ["bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork"]
    concepts = {
        name: {
            "description": "test",
            "pairs": [
                {"positive": f"{name}: {n}?", "negative": f"{n}, not {name}?"} for n in nouns
            ],
        }
        for name in ("harmful_content", "refusal_capability", "injection_resistance")
    }
    path = tmp_path / "few.json"
    path.write_text(json.dumps(concepts))
    return str(path)


@pytest.fixture
def quick(tiny_folder, few):
    return ["scan", str(tiny_folder()), "--mode", "quick", "--concepts", few]


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


BAD = {
    "no such model": (["scan", "./nowhere"], 64, "No model at './nowhere'"),
    "nothing to verify": (["verify", "/no/where"], 64, "No model at '/no/where'"),
    "no organism to verify": (["verify", "organism:none"], 64, "organism"),
    "nothing to chat with": (["chat", "/no/where", "--prompt", "x"], 64, "No model at"),
    "nothing to answer": (["generate", "/no/where", "--prompt", "x"], 64, "No model at"),
    "not an id": (["scan", "a b c"], 64, "No model at 'a b c'"),
    "no network": (["scan", "someone/something"], 69, "cannot be reached"),
    "unknown mode": (["scan", "embedded", "--mode", "deep"], 64, "Unknown mode 'deep'"),
    "unknown device": (["scan", "MODEL", "--device", "abacus"], 64, "Unknown device 'abacus'"),
    "no CUDA": (["scan", "MODEL", "--device", "cuda"], 69, "CUDA was asked for"),
    "unknown dtype": (["scan", "MODEL", "--dtype", "int1"], 64, "Unknown dtype"),
    "two quantisations": (["scan", "MODEL", "--load-8bit", "--load-4bit"], 64, "Choose one"),
    "missing concepts": (["scan", "MODEL", "--concepts", "no.json"], 64, "Cannot read no.json"),
    "html nowhere": (["scan", "MODEL", "--html", "/no/where/r.html"], 64, "no folder"),
    "unknown option": (["scan", "MODEL", "--frobnicate"], 64, "No such option"),
    "bad fail-on": (["scan", "MODEL", "--fail-on", "never"], 64, "never"),
    "bad batch": (["scan", "MODEL", "--batch-tokens", "0"], 64, "batch-tokens"),
    "no model": (["scan"], 64, "Missing argument"),
    "unknown command": (["scam"], 64, "No such command"),
    "unknown concept": (["concepts", "show", "nothing"], 64, "No concept 'nothing'"),
    "unknown format": (["concepts", "export", "--format", "xml"], 64, "Unknown format 'xml'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_its_code(case, tiny_folder, capfd):
    arguments, code, message = BAD[case]
    arguments = [str(tiny_folder()) if a == "MODEL" else a for a in arguments]
    assert run(arguments) == code
    out, err = capfd.readouterr()
    assert out == ""
    assert message in one_line(err)


def test_internal_errors_are_one_line_too(quick, capfd, monkeypatch):
    import modelassay.measures.examination as examination

    def broken(*_args, **_kwargs):
        raise ZeroDivisionError("first line\nsecond line")

    monkeypatch.setattr(examination, "search_ablation", broken)
    assert run(quick) == 70
    line = one_line(capfd.readouterr().err)
    assert "ZeroDivisionError: first line" in line
    assert "second line" not in line


def test_interrupted_scans_write_nothing(quick, tmp_path, capfd, monkeypatch):
    import modelassay.measures.examination as examination

    def interrupt(*_args, **_kwargs):
        signal.raise_signal(signal.SIGINT)

    # A shell that starts the tests in the background has them ignore Ctrl-C.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    monkeypatch.setattr(examination, "search_ablation", interrupt)
    target = tmp_path / "report.html"
    try:
        assert run([*quick, "--html", str(target)]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    assert "Interrupted" in one_line(capfd.readouterr().err)
    assert not target.exists()


def test_an_existing_report_survives_a_failed_scan(tmp_path, capfd):
    target = tmp_path / "report.html"
    target.write_text("old")
    assert run(["scan", "./nowhere", "--html", str(target)]) == 64
    assert target.read_text() == "old"


@pytest.mark.parametrize("command", [["concepts", "export"], ["organism", "list", "--json"]])
def test_a_reader_that_has_gone_gives_no_verdict(command):
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, *command], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (EXIT_PIPE, "")


def test_concepts_list_show_export_validate(tmp_path, capfd):
    assert run(["concepts", "list", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert {"harmful_content", "control_topic"} <= {row["name"] for row in rows}
    assert run(["concepts", "list"]) == 0
    assert "truthfulness" in capfd.readouterr().out
    assert run(["concepts", "show", "truthfulness"]) == 0
    assert capfd.readouterr().out.startswith("schema: modelassay.concept/1")
    for format in ("yaml", "json", "ams"):
        target = tmp_path / f"out.{'yaml' if format == 'yaml' else 'json'}"
        assert (
            run(["concepts", "export", "truthfulness", "--format", format, "-o", str(target)]) == 0
        )
        assert run(["concepts", "validate", str(target)]) == 0
        assert re.search(r"truthfulness: valid, 70 pairs; .* p 0\.\d+", capfd.readouterr().out)
    assert run(["concepts", "validate", str(target), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["uneven_lengths"] == 0


def test_validate_warns_when_words_give_the_classes_away(tmp_path, capfd):
    pairs = [{"positive": f"please {i} cook", "negative": f"now {i} go"} for i in range(12)]
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"x": {"description": "", "pairs": pairs}}))
    assert run(["concepts", "validate", str(path)]) == 0
    assert "differ in their words" in capfd.readouterr().out


def test_libraries_say_nothing_that_is_for_developers(capfd, monkeypatch):
    monkeypatch.delenv("MODELASSAY_DEBUG", raising=False)
    assert run(["concepts", "show", "truthfulness"]) == 0
    logging.getLogger("bitsandbytes.backends.cpu.ops").warning("Failed to load a kernel")
    assert capfd.readouterr().err == ""


def test_version_and_help(capfd):
    assert run(["--version"]) == 0
    assert capfd.readouterr().out.startswith("modelassay 0.")
    assert run(["scan", "--help"]) == 0
    assert "--no-chat-template" in capfd.readouterr().out


def test_messages_are_always_one_line():
    assert str(AssayError("a\n  b\tc")) == "a b c"


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
    assert report["refusal"]["n"] == 188
    assert Path(target).read_text().count("Plotly.newPlot") == 8
    assert "Traceback" not in run.stderr
