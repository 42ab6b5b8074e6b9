"""`modelassay sae train` and `info` as a user runs them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sae_lens")
from modelassay.cli.main import run
from saes import TEXTS


def test_train_and_info_as_a_user_runs_them(tiny_folder, tmp_path, capsys):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "mine"
    command = ["sae", "train", str(tiny_folder()), "--data", str(data), "--out", str(out)]
    command += ["--width", "96", "--k", "8", "--tokens", "2000", "--window", "1000"]
    command += ["--batch", "128", "--context", "32", "--layer", "-4", "--device", "cpu"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "mine: 96 features of layer 1" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "texts.txt"]
    assert run(["sae", "info", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "modelassay.sae/1"
    assert record["data"] == ["texts.txt"]
    assert run(command) != 0
    assert "exists already; pass --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give text to read"),
        (["--data", "nowhere.jsonl"], "No data file at nowhere.jsonl"),
        (["--data", "other"], "is a folder"),
        (["--data", "no such"], "neither a data file nor a Hub data set"),
        (["--data", "TEXTS", "--kind", "deep"], "--kind is"),
        (["--data", "TEXTS", "--storage", "int8"], "--storage is"),
        (["--data", "TEXTS", "--layer", "99"], "layers must lie"),
        (["--data", "TEXTS", "--out", "my words"], "cannot name an SAE"),
        (["--data", "TEXTS", "--out", "OTHER"], "is there and is not an SAE"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine", encoding="utf-8")
    names = {"TEXTS": "texts.txt", "OTHER": "other"}
    arguments = [names.get(argument, argument) for argument in arguments]
    code = run(["sae", "train", str(tiny_folder()), "--device", "cpu", "--quiet", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code not in (0, 1)
    assert message in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "texts.txt"]
