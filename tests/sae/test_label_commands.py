"""`modelassay sae label`, `list` and `push` as a user runs them."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("sae_lens")
from labelled import LAYER, ON_X, TEXTS, TWIN, WIDTH, make_texts
from modelassay.cli.main import run
from modelassay.sae import find_labels, save_labels
from modelassay.sae.labels import kept_folder


def test_label_and_info_as_a_user_runs_them(planted, tiny_folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    data, folder = tmp_path / "texts.txt", tmp_path / "d"
    data.write_text("\n".join(make_texts(400, 5)), encoding="utf-8")
    planted.module.save_model(folder)
    command = ["sae", "label", str(folder), "--model", str(tiny_folder()), "--data", str(data)]
    command += ["--tokens", "3000", "--no-contexts", "--device", "cpu"]
    assert run([*command, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "modelassay.sae-labels/1"
    assert record["data"] == ["texts.txt"]
    assert record["contexts"] is False
    assert sorted(path.name for path in folder.iterdir()) == [
        "cfg.json",
        "labels.json",
        "labels.parquet",
        "sae_weights.safetensors",
    ]
    assert run(["sae", "info", str(folder), "--feature", str(ON_X)]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(f"{ON_X}: on “x”; promotes ")
    assert "(automatic)" in printed
    assert "reliability 1.00" in printed
    assert f"near #{TWIN} (cosine 1.00)" in printed
    assert run(["sae", "info", str(folder), "--feature", str(ON_X), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["source"] == "own"
    assert values["neighbours"][0]["feature"] == TWIN
    assert run(["sae", "info", str(folder)]) == 0
    assert "automatic labels from" in capsys.readouterr().out
    assert run(["sae", "info", str(folder), "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["layer"], values["labels"]["width"]) == (LAYER, WIDTH)
    assert run([*command, "--quiet", "--out", str(tmp_path / "x")]) == 0
    assert sorted(path.name for path in (tmp_path / "x").iterdir())[0] == "labels.json"


def test_labels_of_what_has_no_folder_are_kept_in_the_cache(planted, labels, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    assert planted.folder is None
    assert find_labels(planted) is None
    save_labels(labels, kept_folder(planted))
    found = find_labels(planted)
    assert found is not None
    assert found.of(ON_X) == labels.of(ON_X)


def test_explanations_are_imported_once_and_used_offline(planted, neuronpedia, tmp_path, capsys):
    folder, export = tmp_path / "d", tmp_path / "batch-0.jsonl"
    planted.module.save_model(folder)
    row = {"layer": "0-planted", "index": "4", "description": "from the export"}
    export.write_text(json.dumps(row) + "\n", encoding="utf-8")
    assert run(["sae", "label", str(folder), "--export", str(export), "--neuronpedia"]) == 0
    assert "explains 3 features" in capsys.readouterr().out
    asked = len(neuronpedia.asked)
    assert run(["sae", "info", str(folder), "--feature", "4"]) == 0
    assert "4: from the export (neuronpedia)" in capsys.readouterr().out
    assert len(neuronpedia.asked) == asked


def test_list_as_a_user_runs_it(capsys):
    assert run(["sae", "list", "--model", "google/gemma-3-270m-it"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "gemma-scope-2-270m-it-res:layer_12_width_16k_l0_medium" in "\n".join(lines)
    assert all("google/gemma-3-270m-it" in line for line in lines)
    assert run(["sae", "list", "goodfire", "--all", "--json"]) == 0
    assert all("pickles" in row["refused"] for row in json.loads(capsys.readouterr().out))
    assert run(["sae", "list", "nothing-like-it"]) == 64


def test_push_as_a_user_runs_it(hub, trained_folder, capsys):
    hub.add_writer("mine", "me")
    assert run(["sae", "push", str(trained_folder), "me/d", "--token", "mine"]) == 0
    where = capsys.readouterr().out.strip()
    assert where.startswith("me/d:mine@")
    assert run(["sae", "info", where]) == 0
    assert "mine: 48 features of layer 1" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["label", "D"], "Give text to read"),
        (["label", "D", "--data", "t.txt"], "Give the model"),
        (["label", "D", "--data", "t.txt", "--model", "nowhere/x"], "nowhere/x"),
        (["label", "D", "--export", "nowhere"], "no explanation file"),
        (["info", "D", "--feature", "99"], "no feature 99"),
        (["info", "nowhere"], "No SAE 'nowhere'"),
        (["push", "D", "me/d"], "no dictionary.json"),
    ],
)
def test_bad_input_is_one_line(planted, tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    planted.module.save_model(tmp_path / "D")
    (tmp_path / "t.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    assert run(["sae", *arguments]) in (64, 69)
    lines = capsys.readouterr().err.strip().splitlines()
    assert message in lines[-1]
    assert "Traceback" not in "".join(lines)
