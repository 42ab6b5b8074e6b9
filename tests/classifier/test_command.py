"""`modelassay classifier` as a user runs it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from exchanges import synthetic, write_rows
from modelassay.classifier.record import CLASSIFIERS, RECORD_FILE
from modelassay.cli.main import run
from modelassay.data.fingerprints import unseen
from modelassay.data.labels import LABELS
from modelassay.errors import EXIT_BAD_INPUT


def test_command_trains_and_describes(bert, tmp_path, capsys):
    data, out = write_rows(tmp_path / "rows.jsonl", synthetic(90)), tmp_path / "made"
    assert (
        run(
            ["classifier", "train", "--data", str(data), "--encoder", str(bert), "--out", str(out),
             "--epochs", "1", "--max-length", "48", "--device", "cpu", "-q"]
        )
        == 0
    )  # fmt: skip
    assert capsys.readouterr().out.strip() == str(out)
    assert run(["classifier", "info", str(out)]) == 0
    said = capsys.readouterr().out
    assert "fine-tune of tiny-bert" in said
    assert "macro-F1" in said
    assert run(["classifier", "info", str(out), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["schema"] == "modelassay.classifier/1"


def test_the_command_trains_on_two_classes_with_options_of_its_own(bert, tmp_path, capsys):
    data, out = write_rows(tmp_path / "r.jsonl", synthetic(90), binary=True), tmp_path / "made"
    command = ["classifier", "train", "--data", str(data), "--encoder", str(bert)]
    command += ["--out", str(out), "--epochs", "1", "--max-length", "48", "--device", "cpu", "-q"]
    command += ["--weight-decay", "0.1", "--warmup", "0.2", "--validation-size", "0.3"]
    command += ["--block-threshold", "0.65", "--allow-threshold", "0.35", "--save-steps", "2"]
    assert run(command) == 0
    record = CLASSIFIERS.open(out).record
    assert (record.scheme, record.threshold, record.uncertain) == ("binary", 0.65, 0.35)
    wanted = {"weight_decay": 0.1, "warmup": 0.2, "validation_share": 0.3}
    assert record.training.items() >= wanted.items()
    assert {path.name for path in tmp_path.iterdir()} == {"r.jsonl", "made"}  # no state is left
    capsys.readouterr()
    eval_on = ["--data", str(write_rows(tmp_path / "o.jsonl", synthetic(60, seed=9, first=500)))]
    assert run(["classifier", "eval", str(out), *eval_on]) == 0
    assert "refusals are not told apart" in capsys.readouterr().out
    band = ["--block-at", "0.7", "--uncertain-at", "0.4", "--json"]
    assert run(["classifier", "calibrate", str(out), *eval_on, *band]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["threshold"], found["uncertain"]) == (0.7, 0.4)
    assert found["target_block_rate"] is None


def test_the_same_command_goes_on(bert, tmp_path, monkeypatch, capsys):
    from modelassay.classifier import training

    def stop(self, step):
        if step > 6:
            raise KeyboardInterrupt
        return look(self, step)

    look = training._Best.look
    data = write_rows(tmp_path / "rows.jsonl", synthetic(90))
    command = ["classifier", "train", "--data", str(data), "--encoder", str(bert), "-q"]
    command += ["--epochs", "4", "--max-length", "48", "--device", "cpu", "--save-every", "5"]
    with monkeypatch.context() as patch:
        patch.setattr(training._Best, "look", stop)
        assert run([*command, "--out", str(tmp_path / "made")]) == 130
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "made.training"}
    other = [*command, "--out", str(tmp_path / "made"), "--weight-decay", "0.5"]
    assert run(other) == EXIT_BAD_INPUT
    assert "delete the folder" in capsys.readouterr().err
    for name in ("made", "whole"):
        assert run([*command, "--out", str(tmp_path / name)]) == 0
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("made", "whole")]
    assert weights[0] == weights[1]
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "made", "whole"}


@pytest.mark.parametrize("binary", [False, True])
def test_command_scores(trained, tmp_path, capsys, binary):
    data = write_rows(tmp_path / "rows.jsonl", synthetic(60, seed=9, first=500), binary=binary)
    assert run(["classifier", "eval", str(trained), "--data", str(data), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["classes"] == (["safe", "unsafe"] if binary else list(LABELS))
    assert found["macro_f1"] > 0.8
    assert found["auroc"] > 0.9
    assert {"per_class", "intervals", "n"} <= set(found)
    assert run(["classifier", "eval", str(trained), "--data", str(data)]) == 0
    assert "macro-F1" in capsys.readouterr().out


def test_rows_of_prompts_that_it_learnt_from_are_left_out(trained, copy, tmp_path, capsys):
    learnt, others = synthetic(240), synthetic(60, seed=9, first=500)
    parts = CLASSIFIERS.open(trained).record.data.parts

    def eval_on(rows, *more):
        data = write_rows(tmp_path / "rows.jsonl", rows)
        code = run(["classifier", "eval", str(copy), "--data", str(data), *more])
        return code, capsys.readouterr()

    again = [replace(row, prompt=f" {row.prompt.upper()}  ", response="new") for row in learnt]
    for rows in (learnt, again):  # the part that was held out is left, and scored
        code, said = eval_on([*rows, *others], "--json")
        found = json.loads(said.out)
        n_learnt = parts["train"]["n"] + parts["validation"]["n"]
        assert (code, found["n_seen"], found["n"]) == (0, n_learnt, 300 - n_learnt)
    assert f"{n_learnt} of prompts that it was trained on" in eval_on([*learnt, *others])[1].out
    assert "none" in eval_on(others)[1].out
    record = json.loads((copy / RECORD_FILE).read_text())
    held = {row.prompt for row in learnt if not unseen([row], *_known(record)).rows}
    code, said = eval_on([row for row in learnt if row.prompt in held])
    assert code == EXIT_BAD_INPUT
    assert "classifier show" in said.err
    data = write_rows(tmp_path / "rows.jsonl", [*learnt, *others])
    assert run(["classifier", "calibrate", str(copy), "--data", str(data), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["n"] == (300 - n_learnt) * 2 // 3

    for part in record["data"]["parts"].values():  # as records were before
        del part["prompts"]
    (copy / RECORD_FILE).write_text(json.dumps(record))
    code, said = eval_on(learnt, "--json")
    assert (code, json.loads(said.out)["n_seen"]) == (0, None)
    assert "unknown" in eval_on(learnt)[1].out


def test_examples_are_drawn_evenly_and_records_say_of_how_many(
    bert, trained, copy, tmp_path, capsys
):
    rows = synthetic(240, seed=9, first=500)
    uneven = [row for i, row in enumerate(rows) if row.unsafe or i % 2]
    data = str(write_rows(tmp_path / "rows.jsonl", uneven))
    few = ["--data", data, "--max-examples", "90"]
    assert run(["classifier", "eval", str(trained), *few, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n"], found["drawn_from"]) == (90, len(uneven))
    assert {each["n"] for each in found["per_class"].values()} == {30}
    assert run(["classifier", "eval", str(trained), *few]) == 0
    assert f"drawn from {len(uneven)} rows" in capsys.readouterr().out
    assert run(["classifier", "calibrate", str(copy), *few]) == 0
    assert f"drawn from {len(uneven)} rows" in capsys.readouterr().out
    assert CLASSIFIERS.open(copy).record.calibration.drawn_from == len(uneven)
    out = tmp_path / "made"
    how = ["--encoder", str(bert), "--out", str(out), "--epochs", "1", "--max-length", "48"]
    assert run(["classifier", "train", *few, *how, "--device", "cpu", "-q"]) == 0
    learnt = CLASSIFIERS.open(out).record.data
    assert learnt.drawn_from == len(uneven)
    assert sum(part["n"] for part in learnt.parts.values()) == 90


def _known(record):
    parts = [record["data"]["parts"][name] for name in ("train", "validation")]
    return "".join(part["prompts"] for part in parts), [part["sha256"] for part in parts]


def test_command_calibrates(copy, tmp_path, capsys):
    data = write_rows(tmp_path / "rows.jsonl", synthetic(60, seed=9, first=500), binary=True)
    command = ["classifier", "calibrate", str(copy), "--data", str(data), "--rate", "0.05"]
    assert run([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["block_rate"] <= 0.05
    assert CLASSIFIERS.open(copy).record.threshold == found["threshold"]
    assert run([*command, "--out", str(tmp_path / "new")]) == 0
    said = capsys.readouterr()
    assert "catches" in said.out
    assert (tmp_path / "new" / RECORD_FILE).is_file()


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"prompt": "a", "response": "b"', "Row 4 of rows.jsonl is not valid JSON"),
        ('{"prompt": "a", "response": "b", "label": "odd"}', "Row 4 of rows.jsonl"),
        ('{"prompt": "a", "label": "safe_refusal"}', "Row 4 of rows.jsonl"),
    ],
)
def test_a_malformed_row_is_named_and_nothing_is_written(bert, tmp_path, capsys, line, said):
    data = write_rows(tmp_path / "rows.jsonl", synthetic(3))
    data.write_text(data.read_text() + line + "\n")
    out = tmp_path / "out"
    train = ["classifier", "train", "--data", str(data), "--encoder", str(bert), "--out", str(out)]
    for command in (train, ["classifier", "eval", "embedded", "--data", str(data)]):
        assert run(command) == 64
        error = capsys.readouterr().err
        assert said in error
        assert "Traceback" not in error
        assert error.count("\n") == 1
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["train"], "--data, or --folder"),
        (["train", "--folder", "nowhere"], "no data folder"),
        (["train", "--data", "x.jsonl", "--folder", "y"], "not both"),
        (["calibrate", "embedded", "--data", "x.jsonl", "--rate", "2"], "--rate must be"),
        (["calibrate", "embedded", "--data", "x.jsonl", "--block-at", "0"], "--block-at must"),
        (["train", "--data", "x.jsonl", "--uncertain-at", "2"], "--uncertain-at must"),
        (["train", "--data", "x.jsonl", "--weight-decay", "-1"], "--weight-decay must"),
        (["train", "--data", "x.jsonl", "--warmup", "1.5"], "--warmup must"),
        (["train", "--data", "x.jsonl", "--validation-share", "0.9"], "--validation-share must"),
        (
            ["train", "--data", "x.jsonl", "--block-at", "0.2", "--uncertain-at", "0.3"],
            "would be uncertain",
        ),
        (["eval", "embedded", "--data", "nowhere.jsonl"], "No data file"),
        (["info", "nowhere"], "No classifier at"),
    ],
)
def test_mistakes_are_one_line(arguments, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["classifier", *arguments]) == 64
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
