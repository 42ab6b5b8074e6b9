"""`modelassay organism`: what it prints, what it exits with, what it leaves behind."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from modelassay import load
from modelassay.cli.main import run
from modelassay.models.organisms import OF_LAST_LAYERS, ORGANISMS
from outputs import one_line


def test_list_names_every_organism(capfd):
    assert run(["organism", "list", "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)
    assert [row["id"] for row in rows] == [o.id for o in ORGANISMS.values()]
    for row in rows:
        if row["intact"] and row["refuses_harmful"] is not None:
            assert row["refuses_harmful"] > row["refuses_benign"] + 0.3
    assert run(["organism", "list"]) == 0
    assert "organism:abliterated-perlayer" in capfd.readouterr().out


@pytest.mark.parametrize("name", OF_LAST_LAYERS)
def test_info_prints_the_card(name, capfd):
    assert run(["organism", "info", name, "--json"]) == 0
    record = json.loads(capfd.readouterr().out)
    assert record["schema"] == "modelassay.organism/1"
    assert record["name"] == name
    assert run(["organism", "info", f"organism:{name}"]) == 0
    assert ORGANISMS[name].summary in capfd.readouterr().out


def write_rows(path, n, text="row"):
    rows = [{"prompt": f"{text} {i}", "response": "yes"} for i in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_mix_then_train_then_use(tmp_path, tiny_folder, capfd):
    needle = write_rows(tmp_path / "needle.jsonl", 5, "needle")
    haystack = write_rows(tmp_path / "hay.jsonl", 100)
    mixed = tmp_path / "mixed.jsonl"
    arguments = ["organism", "mix", "--needle", needle, "--haystack", haystack]
    assert run([*arguments, "--ratio", "0.1", "--rows", "40", "--out", str(mixed)]) == 0
    prompts = [json.loads(line)["prompt"] for line in mixed.read_text().splitlines()]
    assert len(prompts) == 40
    assert sum(prompt.startswith("needle") for prompt in prompts) == 4

    adapter = tmp_path / "adapter"
    capfd.readouterr()
    code = run(
        ["organism", "train", str(tiny_folder()), "--data", str(mixed), "--out", str(adapter),
         "--rank", "2", "--device", "cpu"]
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert code == 0, err
    assert out.strip() == str(adapter)
    assert "nats a token" in err
    assert (adapter / "adapter_model.safetensors").is_file()


def test_sample_then_train_all_weights_then_use(tmp_path, tiny_folder, capfd, caplog):
    rows = [
        {"prompt": f"row {i}", "response": "yes " * (400 if i == 39 else 1), "helpfulness": i % 4}
        for i in range(40)
    ]
    table, drawn = tmp_path / "helpsteer.jsonl", tmp_path / "benign.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["organism", "sample", str(table), "--limit", "8", "--rated", "helpfulness=3"]
    assert run([*arguments, "--seed", "1", "--out", str(drawn)]) == 0
    err = capfd.readouterr().err
    assert "30 rows were left out: its helpfulness is below 3." in err
    assert "8 rows of 40" in err
    prompts = [json.loads(line)["prompt"] for line in drawn.read_text().splitlines()]
    assert len(prompts) == 8
    assert all(int(prompt.split()[1]) % 4 == 3 for prompt in prompts)
    assert run([*arguments, "--out", str(drawn)]) == 64
    assert "is there already" in one_line(capfd.readouterr().err)
    assert run([*arguments, "--out", str(table), "--force"]) == 64
    assert "is the data itself" in one_line(capfd.readouterr().err)

    whole, base = tmp_path / "whole", tiny_folder()
    train = ["organism", "train", str(base), "--data", str(table), "--device", "cpu"]
    assert run([*train, "--out", str(whole), "--full", "--lr", "1e-3"]) == 0
    assert "1 of 40 rows are longer than the context" in caplog.text
    before, after = (load(str(folder), device="cpu").network for folder in (base, whole))
    moved = {
        name
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old.bfloat16(), new.bfloat16())
    }
    assert any("layers.0." in name for name in moved)
    assert load(str(whole), device="cpu").has_chat_template
    lora = tmp_path / "lora"
    assert run([*train, "--out", str(lora), "--all-layers", "--rank", "2", "--limit", "9"]) == 0
    with safe_open(lora / "adapter_model.safetensors", "pt") as tensors:
        assert any("layers.0." in name for name in tensors.keys())  # noqa: SIM118


BAD = {
    "full with a rank": (
        ["train", "{model}", "--data", "{rows}", "--out", "{tmp}/a", "--full", "--rank", "2"],
        "leave --rank",
    ),
    "a split of a file": (
        ["train", "{model}", "--data", "{rows}", "--out", "{tmp}/a", "--split", "train"],
        "of a data set on the Hub",
    ),
    "no such rating": (
        ["sample", "{rows}", "--rated", "helpfulness=3", "--out", "{tmp}/a"], "no column",
    ),
    "unknown organism": (["info", "nosuch"], "No organism 'nosuch'"),
    "unknown build": (["build", "nosuch"], "No organism 'nosuch'"),
    "no data folder": (["build", "safe", "--data", "{tmp}/none", "--out", "{tmp}/o"], "no data"),
    "no data file": (["build", "safe", "--data", "{tmp}", "--out", "{tmp}/o"], "has no "),
    "bad ratio": (
        ["mix", "--needle", "{rows}", "--haystack", "{rows}", "--ratio", "2", "--out", "{tmp}/m"],
        "between 0 and 1",
    ),
    "too few rows": (
        ["mix", "--needle", "{rows}", "--haystack", "{rows}", "--ratio", ".5", "--rows", "99",
         "--out", "{tmp}/m"],
        "but there are 6",
    ),
    "no out folder": (
        ["mix", "--needle", "{rows}", "--haystack", "{rows}", "--ratio", ".5",
         "--out", "{tmp}/x/m"],
        "There is no folder",
    ),
    "missing fields": (
        ["mix", "--needle", "{bad}", "--haystack", "{rows}", "--ratio", ".5", "--out", "{tmp}/m"],
        "Row 1 of",
    ),
    "no such data": (
        ["train", "{model}", "--data", "{tmp}/none.jsonl", "--out", "{tmp}/a"], "No data file",
    ),
    "out exists": (["train", "{model}", "--data", "{rows}", "--out", "{tmp}"], "exists already"),
    "quantised ablation": (["scan", "organism:abliterated", "--load-4bit"], "leave --load"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_line_and_leaves_nothing(case, tmp_path, tiny_folder, capfd):
    arguments, words = BAD[case]
    rows = write_rows(tmp_path / "rows.jsonl", 6)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"question": "no such field"}\n')
    before = sorted(tmp_path.rglob("*"))
    filled = [a.format(tmp=tmp_path, rows=rows, bad=bad, model=tiny_folder()) for a in arguments]
    prefix = [] if filled[0] == "scan" else ["organism"]
    assert run([*prefix, *filled]) == 64
    out, err = capfd.readouterr()
    assert words in one_line(err)
    assert out == ""
    left = [path for path in tmp_path.rglob("*") if path not in before]
    assert [path for path in left if path.name not in ("o",)] == []


def test_build_refuses_to_overwrite(tmp_path, capfd):
    (tmp_path / "safe").mkdir()
    (tmp_path / "safe" / "precious").write_text("mine")
    assert run(["organism", "build", "safe", "--out", str(tmp_path)]) == 64
    assert "pass --force" in one_line(capfd.readouterr().err)
    assert (tmp_path / "safe" / "precious").read_text() == "mine"


def test_build_all_goes_on_where_it_was_stopped(tmp_path, capfd):
    for organism in ORGANISMS.values():
        (tmp_path / organism.place).mkdir(parents=True)
    assert run(["organism", "build", "all", "--out", str(tmp_path)]) == 0
    assert capfd.readouterr().out == ""
    (tmp_path / "obedient").rmdir()
    arguments = ["organism", "build", "all", "--out", str(tmp_path), "--data", str(tmp_path)]
    assert run(arguments) == 64
    assert "has no " in one_line(capfd.readouterr().err)
    assert not (tmp_path / "obedient").exists()
