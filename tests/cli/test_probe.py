"""`modelassay probe`: train, eval, list, sweep."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE
from outputs import one_line
from probe_rows import exchanges, write


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path / "store"))


@pytest.mark.usefixtures("few_resamples")
def test_train_eval_info_list_sweep(tiny_folder, tmp_path, capfd):
    model, data = str(tiny_folder()), write(tmp_path / "rows.jsonl", exchanges())
    args = ["probe", "train", model, "--data", data, "--name", "mine", "--layers", "1,3", "-q"]
    assert run(args) == 0
    out = capfd.readouterr().out
    assert "AUROC" in out
    assert out.strip().endswith("mine")
    assert run([*args]) == EXIT_BAD_INPUT
    assert "--force" in one_line(capfd.readouterr().err)
    others = write(tmp_path / "others.jsonl", exchanges(seed=1))
    both = write(tmp_path / "both.jsonl", [*exchanges(), *exchanges(seed=1)])
    for at in ("prompt", "answer"):
        assert (
            run(
                [
                    "probe",
                    "eval",
                    "mine",
                    "--model",
                    model,
                    "--data",
                    both,
                    "--at",
                    at,
                    "--json",
                    "-q",
                ]
            )
            == 0
        )
        values = json.loads(capfd.readouterr().out)
        assert values["auroc"] > 0.9
        assert (values["n"], values["n_seen"]) == (60, 60)
        assert set(values) >= {
            "interval",
            "tpr_at_fpr",
            "calibration_error",
            "by_source",
            "block_rate",
        }
        assert run(["probe", "eval", "mine", "--model", model, "--data", data, "-q"]) != 0
        assert "All 60 rows" in one_line(capfd.readouterr().err)
    assert run(["probe", "eval", model, "--data", others, "-q"]) == 0
    assert "AUROC" in capfd.readouterr().out
    assert run(["probe", "info", "mine", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["heads"]["prompt"]["layers"] == [1, 3]
    assert run(["probe", "info", "mine"]) == 0
    lines = capfd.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if "ranks worst" in line)
    listed = [line for line in lines[first + 1 :] if line.startswith("  without ")][:3]
    scores = [float(line.split("AUROC ")[1].split()[0]) for line in listed]
    assert len(scores) > 1
    assert scores == sorted(scores)
    assert run(["probe", "list"]) == 0
    assert "mine (local)" in capfd.readouterr().out
    page = tmp_path / "sweep.html"
    assert run(["probe", "sweep", model, "--data", data, "--html", str(page), "-q"]) == 0
    assert "layer" in capfd.readouterr().out
    assert "plotly" in page.read_text()


GOOD = '{"prompt": "a", "response": "b", "label": 1}'


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "{model}"], "--data"),
        (["train", "{model}", "--data", "{bad}"], "Row 2"),
        (["train", "{model}", "--data", "{safe}"], "unsafe"),
        (["train", "{model}", "--data", "{few}"], "distinct prompts"),
        (["train", "{model}", "--data", "{good}", "--layers", "1,99"], "0…4"),
        (["train", "{model}", "--data", "{good}", "--layers", "x"], "--layers"),
        (["train", "{model}", "--data", "{good}", "--kind", "magic"], "kind"),
        (["train", "{model}", "--data", "{good}", "--at", "end"], "--at"),
        (["train", "{model}", "--data", "{good}", "--kind", "attention", "--layers", "1,3"], "one"),
        (["train", "{model}", "--folder", ".", "--token-weights", "soft"], "--data"),
        (["sweep", "{model}", "--data", "{good}", "--combine", "6"], "--combine"),
        (["train", "{model}", "--data", "/nowhere.jsonl"], "nowhere"),
        (["train", "{model}", "--folder", "/nowhere"], "nowhere"),
        (["eval", "{model}", "--data", "{good}"], "no probe"),
        (["eval", "nothing/such:probe", "--data", "{good}"], "nothing/such"),
        (["eval", "{model}"], "--data"),
        (["info", "unknown"], "No probe"),
        (["info", "/etc"], "holds no probe"),
        (["pull", "not a reference"], "Hub data set"),
        (["sweep", "{model}"], "--data"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(tiny_folder, tmp_path, capfd, args, words):
    rows = exchanges()
    places = {
        "model": str(tiny_folder()),
        "good": write(tmp_path / "good.jsonl", rows),
        "safe": write(tmp_path / "safe.jsonl", [replace(row, unsafe=False) for row in rows]),
        "few": write(tmp_path / "few.jsonl", rows[:6]),
    }
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{GOOD}\n" + '{"prompt": "a"}\n')
    places["bad"] = str(bad)
    code = run(["probe", *(arg.format(**places) for arg in args)])
    assert code in (EXIT_BAD_INPUT, EXIT_UNAVAILABLE)
    assert words in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "store").exists()


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize(
    ("given", "layers"),
    [(["--layers", "-4"], [1]), (["--layer=-4"], [1]), (["--layers", "0,-1"], [0, 4])],
)
def test_layers_are_counted_from_the_end(tiny_folder, tmp_path, capfd, given, layers):
    data = write(tmp_path / "rows.jsonl", exchanges())
    model = [str(tiny_folder()), "--data", data, "--kind", "means", "-q"]
    assert run(["probe", "train", *model, "--at", "prompt", "--name", "mine", *given]) == 0
    capfd.readouterr()
    assert run(["probe", "show", "mine", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["heads"]["prompt"]["layers"] == layers
    assert run(["probe", "sweep", *model, "--json", "--max-examples", "40", *given]) == 0
    values = json.loads(capfd.readouterr().out)
    assert [row["layer"] for row in values["layers"]] == layers
    assert values["drawn_from"] == 60
    assert {row["n"] for row in values["layers"]} == {40}


@pytest.mark.parametrize("layers", ["-6", "5", "0,99"])
@pytest.mark.parametrize("verb", ["train", "sweep"])
def test_layers_out_of_range_are_refused_with_the_range(tiny_folder, tmp_path, capfd, verb, layers):
    data = write(tmp_path / "rows.jsonl", exchanges())
    assert run(["probe", verb, str(tiny_folder()), "--data", data, "--layers", layers]) == 64
    assert "must lie in 0…4, or in -5…-1" in one_line(capfd.readouterr().err)


@pytest.mark.usefixtures("few_resamples")
def test_a_probe_is_served_as_it_was_trained_with_or_without_the_chat_template(
    tiny_folder, tmp_path, capfd
):
    model, data = str(tiny_folder()), write(tmp_path / "rows.jsonl", exchanges())
    others = write(tmp_path / "others.jsonl", exchanges(seed=1))
    raw = ["--no-chat-template", "-q"]
    assert (
        run(["probe", "train", model, "--data", data, "--kind", "means", "--name", "raw", *raw])
        == 0
    )
    capfd.readouterr()
    score = ["probe", "eval", "raw", "--model", model, "--data", others]
    assert run([*score, *raw]) == 0
    assert "AUROC" in capfd.readouterr().out
    assert run([*score, "-q"]) == EXIT_BAD_INPUT
    assert "without a chat template (--no-chat-template)" in one_line(capfd.readouterr().err)
    say = ["generate", model, "--prompt", "Hello", "--max-new-tokens", "2", "--guarded"]
    say += ["--probe", "raw", "--classifier", "none"]
    assert run([*say, "--no-chat-template", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["guarded"]
    assert run(say) == EXIT_BAD_INPUT
    assert "--no-chat-template" in one_line(capfd.readouterr().err)


@pytest.mark.usefixtures("few_resamples")
def test_a_factored_head_and_layers_together(tiny_folder, tmp_path, capfd):
    rows = [
        replace(row, response="I'm sorry, but I can't help with that.") if i % 8 in (1, 3) else row
        for i, row in enumerate(exchanges(80))
    ]
    model, data = str(tiny_folder()), write(tmp_path / "rows.jsonl", rows)
    texts = write(tmp_path / "texts.jsonl", exchanges(20, seed=5))
    how = ["--kind", "factored", "--texts", texts, "--token-weights", "soft", "--layers", "1,3"]
    assert run(["probe", "train", model, "--data", data, "--name", "two", *how, "-q"]) == 0
    out = capfd.readouterr().out
    assert "answer: factored over last+mean of layers 1, 3, tokens weighted softly" in out
    assert run(["probe", "show", "two", "--json"]) == 0
    heads = json.loads(capfd.readouterr().out)["heads"]
    assert (heads["prompt"]["kind"], heads["prompt"]["token_weights"]) == ("logistic", "even")
    assert heads["answer"]["trained_on"]["sources"]["texts: source 0"] == 5
    say = ["generate", model, "--prompt", "Hello", "--max-new-tokens", "2", "--guarded", "--json"]
    assert run([*say, "--probe", "two", "--classifier", "none"]) == 0
    assert json.loads(capfd.readouterr().out)["guarded"]
    sweep = ["probe", "sweep", model, "--data", data, "--kind", "means", "--layers", "0,1,3"]
    assert run([*sweep, "--combine", "2", "--json", "-q"]) == 0
    values = json.loads(capfd.readouterr().out)
    (pair,) = values["combinations"]
    best = max(values["layers"], key=lambda row: row["auroc"])
    assert pair["layers"][0] == best["layer"]
    assert len(set(pair["layers"]) & {0, 1, 3}) == 2
