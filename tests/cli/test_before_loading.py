"""What is wrong with a command line is said before a model is loaded, which may take minutes."""

from __future__ import annotations

import json

import pytest

from commands import model_commands
from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, EXIT_INTERNAL, EXIT_UNAVAILABLE
from modelassay.models import loading
from outputs import one_line
from probe_rows import exchanges, write
from saes import TEXTS


class LoadingError(Exception):
    """A model's weights would be opened now."""


@pytest.fixture
def words(tiny_folder, tmp_path, monkeypatch):
    """What stands for models, files and places in the command lines below; nothing is loaded."""

    def stop(*_args, **_options):
        raise LoadingError

    monkeypatch.setattr(loading, "find_sources", stop)
    for kind in ("CACHE", "PROBES", "MONITORS", "BASELINES", "CALIBRATIONS", "SAES"):
        monkeypatch.setenv(f"MODELASSAY_{kind}", str(tmp_path / "own" / kind.lower()))
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "rows.jsonl", exchanges())
    write(tmp_path / "safe.jsonl", [row for row in exchanges() if not row.unsafe])
    write(tmp_path / "few.jsonl", exchanges(8))
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "empty.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "numbers.jsonl").write_text(json.dumps({"n": 1}), encoding="utf-8")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("mine", encoding="utf-8")
    return {"MODEL": str(tiny_folder()), "OTHER": str(tiny_folder(seed=1))}


GOOD = {
    "scan": "scan MODEL",
    "baseline create": "baseline create MODEL",
    "triage": "triage rows.jsonl --base MODEL --candidate OTHER",
    "chat": "chat MODEL --prompt Hello --classifier none",
    "generate": "generate MODEL --prompt Hello",
    "serve": "serve MODEL --port 0 --classifier none",
    "guard bench": "guard bench MODEL --data rows.jsonl --classifier none",
    "diff compare": "diff MODEL OTHER --sae none",
    "diff calibrate": "diff calibrate MODEL OTHER --sae none --out new.json",
    "circuit find": "circuit find MODEL",
    "features find": "features find MODEL",
    "jailbreak explain": "jailbreak explain MODEL --plain One? --jailbroken Two?",
    "monitor build": "monitor build MODEL OTHER",
    "monitor circuit": "monitor circuit MODEL --component -1.mlp",
    "monitor eval": "monitor eval organism-safe --model MODEL --data rows.jsonl",
    "probe train": "probe train MODEL --data rows.jsonl",
    "probe sweep": "probe sweep MODEL --data rows.jsonl",
    "probe eval": "probe eval MODEL --data rows.jsonl",
    "sae train": "sae train MODEL --data texts.txt --out new --tokens 2000 --batch 128",
    "sae label": "sae label embedded --model MODEL --data texts.txt",
    "organism train": "organism train MODEL --data rows.jsonl --out new",
}
"""Of each command that loads a model, a line that there is nothing wrong with."""

ANY = ("--device tpu", "--dtype int3", "--load-8bit --load-4bit")
BAD: dict[str, dict[str, str]] = {
    "scan": {
        "--mode slow": "mode",
        "--concepts none.yaml": "none.yaml",
        "--compare no/such/model": "No model at",
        "--verify no-such": "no-such",
        "--html there": "is a folder",
        "--html no/page.html": "There is no folder",
    },
    "baseline create": {
        "--name ../up": "cannot name",
        "--out there": "is there",
    },
    "triage": {
        "--search (": "pattern",
        "--field title": "title",
        "--top 0": "--top",
        "--needles none.jsonl": "none.jsonl",
        "--needles rows.jsonl --needle-field x": "not both",
        "--candidate no/such/model": "No model at",
        "--candidate-adapter OTHER": "not a PEFT adapter",
        "--base-adapter no/such/adapter": "No model at",
    },
    "chat": {
        "--probe no-such": "no-such",
        "--monitor no-such": "no-such",
        "--classifier no-such": "no-such",
        "--pause 2": "hreshold",
        "--block 0.2 --pause 0.5": "hreshold",
        "--temperature -1": "emperature",
        "--top-p 2": "top",
    },
    "generate": {
        "--pause 0.5": "--guarded",
        "--guarded --probe no-such": "no-such",
        "--guarded --monitor no-such": "no-such",
        "--guarded --classifier no-such": "no-such",
        "--temperature -1": "emperature",
        "--max-new-tokens 0": "max-new-tokens",
    },
    "serve": {
        "--probe no-such": "no-such",
        "--monitor no-such": "no-such",
        "--classifier no-such": "no-such",
        "--block 0.2 --pause 0.5": "hreshold",
        "--final-check": "--classifier",
        "--timeout 0": "--timeout",
        "--conversations 0": "--conversations",
        "--host 0.0.0.0": "MODELASSAY_SERVE_KEY",
        "--key-env MINE": "MINE is empty",
    },
    "guard bench": {
        "--suite other": "other",
        "--data none.jsonl": "none.jsonl",
        "--judge nobody": "nobody",
        "--judge openai": "--judge-url",
        "--keep-text": "--out",
        "--probe no-such": "no-such",
        "--classifier no-such": "no-such",
        "--out there": "is a folder",
        "--out no/rows.jsonl": "There is no folder",
        "--labels other": "labels",
    },
    "diff compare": {
        "--layers a": "--layers takes numbers",
        "--layers 1,1": "twice",
        "--suite no-such": "no-such",
        "--data none.jsonl": "none.jsonl",
        "--labels other": "labels",
        "--sae no-such": "leave them out",
        "--calibration no-such": "no-such",
        "--corpus none.jsonl": "none.jsonl",
        "--candidate-adapter OTHER": "not a PEFT adapter",
        "--base-adapter no/such/adapter": "No model at",
        "--html there": "is a folder",
    },
    "diff calibrate": {
        "--name mine": "--out FILE or --name",
        "no/such/model": "No model at",
        "--suite no-such": "no-such",
        "--out there": "is a folder",
        "--out rows.jsonl": "exists already",
    },
    "circuit find": {"--pairs 2": "pairs", "--html there": "is a folder"},
    "features find": {
        "--types joy": "joy",
        "--sae no-such": "no-such",
        "--html there": "is a folder",
    },
    "jailbreak explain": {
        "--jailbroken One?": "the same",
        "--suite shipped": "one attack",
        "--sae no-such": "no-such",
    },
    "monitor build": {
        "--base-adapter no/such/adapter": "No model at",
        "--data none.jsonl": "none.jsonl",
        "--name ../up": "cannot name",
        "--out there": "is there",
    },
    "monitor circuit": {
        "--component nose": "names no component",
        "--component 1.mlp.x": "names no component",
        "--data none.jsonl": "none.jsonl",
        "--out there": "is there",
    },
    "monitor eval": {"--data none.jsonl": "none.jsonl"},
    "probe train": {
        "--at nowhere": "--at is",
        "--kind magic": "Unknown kind",
        "--kind attention --layers 1,2": "one layer",
        "--epochs 3": "--epochs is for kinds that are trained by gradient (attention)",
        "--kind means --lr 0.1": "--learning-rate is for kinds",
        "--kind attention --epochs 0": "at least 1",
        "--kind attention --lr 7": "between 0 and 1",
        "--kind factored": "distinct prompts that are refused",
        "--token-labels all": "--token-labels is",
        "--token-labels spans": "no row has any",
        "--token-weights soft --at prompt": "for responses",
        "--classifier embedded": "goes with --token-labels classifier",
        "--texts none.jsonl": "none.jsonl",
        "--layers 1,x": "--layers takes numbers",
        "--layers=-1,-1": "twice",
        "--max-examples 1": "at least 2",
        "--max-examples 6": "at least 10",
        "--data none.jsonl": "none.jsonl",
        "--data numbers.jsonl": "Row 1",
        "--data empty.jsonl": "empty.jsonl",
        "--labels other": "labels",
        "--name ../up": "cannot name",
        "--out there": "is there",
    },
    "probe sweep": {
        "--kind attention": "A sweep is of",
        "--combine 9": "--combine is 1 to 8",
        "--combine 3 --layers 1,2": "there are 2",
        "--layers x": "--layers takes numbers",
        "--at both": "--at is",
        "--html there": "is a folder",
    },
    "probe eval": {"--at both": "--at is", "--data none.jsonl": "none.jsonl"},
    "sae train": {
        "--kind deep": "--kind is",
        "--storage int8": "--storage is",
        "--k 0": "k must",
        "--k 64 --width 64": "k must",
        "--tokens 0": "tokens",
        "--passes 0": "passes",
        "--learning-rate 7": "learning rate",
        "--context 1": "context",
        "--batch 500000": "batch",
        "--layer high": "layer",
        "--data none.jsonl": "none.jsonl",
        "--data numbers.jsonl": "has no text",
        "--data empty.jsonl": "empty.jsonl",
        "--field title": "title",
        "--out there": "is there",
    },
    "sae label": {
        "--tokens 0": "--tokens",
        "--context 1": "--context",
        "--data none.jsonl": "none.jsonl",
        "--data numbers.jsonl": "has no text",
        "--out rows.jsonl": "rows.jsonl",
    },
    "organism train": {
        "--data none.jsonl": "none.jsonl",
        "--out there": "exists already",
        "--rank 0": "rank",
        "--full --rank 2": "leave --rank",
        "--full --all-layers": "leave --rank",
        "--rated helpfulness": "COLUMN=NUMBER",
        "--rated kindness=3": "no column",
        "--split train": "not of a file",
        "--epochs nan": "--epochs",
    },
}
"""What may be added to it that is wrong, and what is then said."""


def test_every_command_that_loads_a_model_is_here():
    # `verify` decides by files first, and most verifications end there.
    assert GOOD.keys() == BAD.keys() == model_commands().keys() - {"verify"}


@pytest.mark.parametrize("command", GOOD)
def test_a_line_with_nothing_wrong_gets_to_loading(words, capfd, command):
    line = [words.get(word, word) for word in GOOD[command].split()]
    assert run(line) == EXIT_INTERNAL
    assert "LoadingError" in one_line(capfd.readouterr().err)


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        (command, more, message)
        for command, wrong in BAD.items()
        for more, message in {**wrong, **dict.fromkeys(ANY, "hoose")}.items()
        if not (command == "organism train" and more in ANY[1:])
    ],
)
def test_what_is_wrong_is_said_before_a_model_is_loaded(words, capfd, command, more, message):
    line = [words.get(word, word) for word in (*GOOD[command].split(), *more.split())]
    code = run(line)
    said = one_line(capfd.readouterr().err)
    assert "LoadingError" not in said
    assert code in (EXIT_BAD_INPUT, EXIT_UNAVAILABLE)
    assert message in said


@pytest.mark.parametrize("more", ANY)
def test_a_verification_that_loads_nothing_is_told_too(words, capfd, more):
    assert run(["verify", words["MODEL"], *more.split()]) == EXIT_BAD_INPUT
    assert "hoose" in one_line(capfd.readouterr().err)


@pytest.mark.parametrize("data", ["safe.jsonl", "few.jsonl"])
@pytest.mark.parametrize("command", ["probe train MODEL", "probe sweep MODEL"])
def test_data_that_no_probe_can_learn_of_is_refused_before(words, capfd, command, data):
    line = [words.get(word, word) for word in command.split()]
    assert run([*line, "--data", data]) == EXIT_BAD_INPUT
    assert "class" in one_line(capfd.readouterr().err)
