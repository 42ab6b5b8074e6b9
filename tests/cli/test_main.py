"""The command: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import logging
import os
import runpy
import signal
import subprocess

import pytest

from modelassay.cli.main import run
from modelassay.errors import EXIT_PIPE, AssayError
from outputs import COMMAND, one_line

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


def test_python_runs_the_package(monkeypatch, capfd):
    monkeypatch.setattr("sys.argv", ["modelassay", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("modelassay", run_name="__main__")
    assert capfd.readouterr().out.startswith("modelassay 0.")


def test_messages_are_always_one_line():
    assert str(AssayError("a\n  b\tc")) == "a b c"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--baselines_dir=pyproject.toml", "baseline", "list"], "give --baselines-dir a folder"),
        (["scan", "embedded", "--load_8bit", "--load_4bit"], "one of --load-8bit and --load-4bit"),
        (["mcp", "--check_log", "a_b"], "There is no log a_b."),
        (["mcp", "--check_log=--a_b"], "There is no log --a_b."),
        (["mcp", "--check-log", "--a_b"], "There is no log --a_b."),
        (["concepts", "validate", "--", "--a_b"], "Cannot read --a_b:"),
        (["concepts", "validate", "--", "--answers"], "Cannot read --answers:"),
        (["scan", "embedded", "--fail-on", "very_bad"], "'very_bad' is not one of"),
        (["scan", "embedded", "--no_such"], "No such option: --no-such"),
    ],
)
def test_options_may_be_written_with_underscores_and_values_stay(arguments, said, capsys):
    assert run(arguments) == 64
    assert said in one_line(capsys.readouterr().err)


def test_renamed_options_may_be_written_with_underscores(capsys):
    assert run(["diff", "/no/where", "embedded", "--show_answers", "--sae", "none"]) == 64
    assert capsys.readouterr().err.startswith("`--show_answers` is now `--show-responses`.\n")
