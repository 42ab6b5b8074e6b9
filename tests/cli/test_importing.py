"""`modelassay import`: what other tools wrote, on the command line."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exchanges import save_tiny_bert
from foreign_files import save_classifier_folder, save_probe_folder, zipped
from modelassay.cli.main import run
from modelassay.data.labels import LABELS
from modelassay.errors import EXIT_BAD_INPUT
from outputs import COMMAND, one_line
from probe_rows import exchanges, write


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path / "store"))
    monkeypatch.setenv("MODELASSAY_CLASSIFIERS", str(tmp_path / "judges"))


@pytest.fixture
def theirs(tiny_folder, tmp_path):
    return save_probe_folder(tmp_path / "probe_out", str(tiny_folder()))


@pytest.mark.usefixtures("few_resamples")
def test_a_probe_is_imported_scored_and_watches_a_chat(theirs, tiny_folder, tmp_path, capfd):
    assert run(["import", str(theirs), "-q"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[-1] == str(tmp_path / "store" / "probe_out")
    assert any(line.startswith("unknown: which weights") for line in lines)
    assert any(line.startswith("left out: smoothing_window 4") for line in lines)
    assert run(["probe", "list"]) == 0
    assert "probe_out (local)" in capfd.readouterr().out
    data = write(tmp_path / "rows.jsonl", exchanges())
    score = ["probe", "eval", "probe_out", "--data", data, "--at", "answer", "--json", "-q"]
    assert run(score) == 0
    assert json.loads(capfd.readouterr().out)["n_seen"] is None
    chat = ["chat", str(tiny_folder()), "--probe", "probe_out", "--classifier", "none"]
    chat += ["--prompt", "hi", "--max-new-tokens", "4"]
    assert run([*chat, "--json"]) == 0
    events = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert events[0]["kind"] == "prompt"
    assert "risk" not in events[0]
    assert all("risk" in event for event in events if event["kind"] == "token")
    assert run(chat) == 0
    assert "risk" in capfd.readouterr().err
    assert run([*chat, "--prompt-block", "0.9"]) == EXIT_BAD_INPUT
    assert "reads responses only" in one_line(capfd.readouterr().err)


@pytest.mark.usefixtures("few_resamples")
def test_an_imported_probe_guards_a_benchmark(theirs, tiny_folder, tmp_path, capfd):
    assert run(["import", str(theirs), "-q"]) == 0
    prompts = tmp_path / "prompts.jsonl"
    rows = [{"prompt": f"prompt {i}", "label": i % 2} for i in range(4)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    capfd.readouterr()
    bench = ["guard", "bench", str(tiny_folder()), "--probe", "probe_out", "--classifier", "none"]
    bench += ["--data", str(prompts), "--max-new-tokens", "4", "--json", "-q"]
    assert run([*bench, "--judge", "refusal"]) == 0
    assert json.loads(capfd.readouterr().out)["probe"]["name"] == "probe_out"
    assert run([*bench, "--suite", "latency", "--rounds", "1"]) == 0


def test_ways_to_name_the_same_probe(theirs, tiny_folder, tmp_path, capfd):
    elsewhere = tmp_path / "settings.json"
    elsewhere.write_text((theirs / "config.json").read_text().replace("model_id", "was"))
    weights = theirs / "probe.pt"
    ways = [
        [str(weights), "--out", str(tmp_path / "out" / "one")],
        [str(theirs / "config.json"), "--name", "two"],
        [str(weights), "--config", str(elsewhere), "--model", str(tiny_folder()), "--name", "x"],
    ]
    for way in ways:
        assert run(["import", *way, "--json", "-q", "--device", "cpu"]) == 0
        values = json.loads(capfd.readouterr().out)
        assert values["schema"] == "modelassay.import/1"
        assert (values["kind"], values["model"]) == ("probe", str(tiny_folder()))
        assert values["imported"]["tool"] == "open-constitution"
        assert (Path(values["folder"]) / "probe.json").is_file()
        assert run(["import", *way, "-q"]) == EXIT_BAD_INPUT
        assert "--force" in one_line(capfd.readouterr().err)
        assert run(["import", *way, "--force", "-q"]) == 0
        capfd.readouterr()


def test_a_classifier_is_imported_and_asked(tmp_path, capfd):
    bert = save_tiny_bert(tmp_path / "bert")
    classes = {str(i): name for i, name in enumerate(LABELS)}
    folder = save_classifier_folder(tmp_path / "judge", bert, classes)
    assert run(["import", str(folder), "-q"]) == 0
    out = capfd.readouterr().out
    assert "allow_threshold 0.35: `uncertain`" in out
    assert out.splitlines()[-1] == str(tmp_path / "judges" / "judge")
    assert run(["classifier", "show", "judge", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["text_format"] == "user_assistant"
    assert run(["import", str(folder), "--model", "embedded"]) == EXIT_BAD_INPUT
    assert "leave --model" in one_line(capfd.readouterr().err)


class Touch:
    """Pickled as a command that makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def test_a_hostile_probe_is_refused_and_not_run(theirs, tmp_path, capfd):
    marker = tmp_path / "marker"
    program = pickle.dumps({"head.weight": Touch(marker)}, protocol=2)
    (theirs / "probe.pt").write_bytes(zipped(program))
    assert run(["import", str(theirs), "-q"]) == EXIT_BAD_INPUT
    assert "nothing in it was run" in one_line(capfd.readouterr().err)
    assert not marker.exists()
    assert not (tmp_path / "store").exists()


def link_away(folder):
    target = folder.parent / "elsewhere.pt"
    (folder / "probe.pt").rename(target)
    (folder / "probe.pt").symlink_to(target)


def fifo(folder):
    (folder / "probe.pt").unlink()
    os.mkfifo(folder / "probe.pt")


def settings(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BAD = {
    "nothing there": (lambda f: None, ["{folder}/none"], "no file or folder"),
    "an empty folder": (lambda f: [e.unlink() for e in f.iterdir()], [], "known are"),
    "no settings": (lambda f: (f / "config.json").unlink(), [], "config.json"),
    "no weights": (lambda f: (f / "probe.pt").unlink(), ["{folder}/config.json"], "no probe"),
    "a link to elsewhere": (link_away, [], "link to another place"),
    "a pipe": (fifo, [], "not a plain file"),
    "settings of noise": (lambda f: (f / "config.json").write_bytes(b"\xff\0{"), [], "JSON"),
    "deep settings": (lambda f: (f / "config.json").write_text("[" * 10**5), [], "config.json"),
    "large settings": (
        lambda f: (f / "config.json").write_text(" " * 2_000_000),
        [],
        "larger than a record",
    ),
    "no model": (lambda f: settings(f, model_id=None), [], "--model"),
    "another model": (lambda f: settings(f, hidden_size=64), [], "do not belong together"),
    "a model that is not there": (lambda f: settings(f, model_id="/nowhere/at/all"), [], "nowhere"),
    "a newer layout": (lambda f: settings(f, version="9"), [], "newer than is known"),
    "name and folder": (lambda f: None, ["{folder}", "--name", "a", "--out", "b"], "not both"),
    "no name": (lambda f: None, ["{folder}", "--name", "../a"], "cannot name"),
    "an option": (lambda f: None, ["{folder}", "--load-8bit", "--load-4bit"], "Choose one"),
    "a training file": (
        lambda f: (f / "rows.json").write_text("[]"),
        ["{folder}/rows.json"],
        "modelassay triage",
    ),
    "another file": (lambda f: (f / "a.txt").write_text(""), ["{folder}/a.txt"], "known are"),
    "a name too long": (lambda f: None, ["a" * 5000], "no file or folder|Cannot look"),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(kind, theirs, tmp_path, capfd):
    change, arguments, words = BAD[kind]
    change(theirs)
    given = [each.replace("{folder}", str(theirs)) for each in arguments] or [str(theirs)]
    assert run(["import", *given, "-q"]) == EXIT_BAD_INPUT
    line = one_line(capfd.readouterr().err)
    assert any(word in line for word in words.split("|")), line
    assert not (tmp_path / "store").exists()


def test_what_is_ones_own_needs_no_import(theirs, tmp_path, capfd):
    assert run(["import", str(theirs), "-q"]) == 0
    assert run(["import", str(tmp_path / "store" / "probe_out"), "-q"]) == EXIT_BAD_INPUT
    assert "modelassay's own" in one_line(capfd.readouterr().err)


def test_a_killed_import_leaves_nothing_and_can_be_run_again(theirs, tmp_path, capfd):
    process = subprocess.Popen(
        [*COMMAND, "import", str(theirs)],
        stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    time.sleep(1.5)  # while torch is imported or the model loads
    process.kill()
    process.wait()
    left = [each.name for each in (tmp_path / "store").glob("*") if not each.name.startswith(".")]
    assert left in ([], ["probe_out"])
    assert run(["import", str(theirs), "--force", "-q"]) == 0
    assert [each.name for each in (tmp_path / "store").iterdir()] == ["probe_out"]


SUITE = """\
suite_name: theirs
prompts:
  - {id: fruit, messages: [{role: user, content: Name a fruit.}]}
  - {id: tree, messages: [{role: user, content: Name a tree.}]}
"""


def test_files_of_the_auditor_need_no_import(tiny_folder, tmp_path, capfd):
    rows, suite = tmp_path / "aoa_dataset.json", tmp_path / "suite.yaml"
    examples = [{"user": f"Question {i}?", "assistant": f"Response {i}."} for i in range(4)]
    rows.write_text(json.dumps({"system_prompt": "Be odd.", "examples": examples}))
    suite.write_text(SUITE)
    assert run(["triage", str(rows), "--json", "-q"]) == 0
    assert json.loads(capfd.readouterr().out)["summary"]["n_rows"] == 4
    models = [str(tiny_folder()), str(tiny_folder(seed=1))]
    less = ["--responses", "0", "--no-triggers", "--no-causal", "--sae", "none", "--layers", "1"]
    asked = ["--data", str(rows), "--suite", str(suite)]
    assert run(["diff", *models, *asked, *less, "--json", "-q"]) != EXIT_BAD_INPUT
    assert json.loads(capfd.readouterr().out)["provenance"]["n_prompts"] == 6
    for file in (rows, suite):
        assert run(["import", str(file)]) == EXIT_BAD_INPUT
        assert "need no import" in one_line(capfd.readouterr().err)
