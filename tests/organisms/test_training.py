"""Fine-tuning: repeatable, finite, and whole or not at all."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import modelassay
from lora import RECIPE, ROWS
from modelassay.errors import InputError, UnavailableError
from modelassay.organisms import Exchange, LoraRecipe, train
from modelassay.organisms.examples import IGNORED, encode_for_training
from modelassay.organisms.training import train_weights


def test_training_learns_and_leaves_an_adapter_that_loads(tiny_folder, tmp_path):
    base = str(tiny_folder())
    steps = []
    _, first = train(base, ROWS, tmp_path / "short", replace(RECIPE, epochs=0.5), device="cpu")
    folder, loss = train(
        base, ROWS, tmp_path / "a", RECIPE, device="cpu",
        on_progress=lambda phase, done, total: steps.append((phase, done, total)),
    )  # fmt: skip
    assert loss < first - 0.1
    assert ("training", 12, 12) in steps
    assert {f.name for f in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    adapted = modelassay.load(str(folder), device="cpu")
    plain = modelassay.load(base, device="cpu")
    changed = [
        i
        for i, (a, b) in enumerate(zip(adapted.layers, plain.layers, strict=True))
        if not torch.equal(a.mlp.down_proj.weight, b.mlp.down_proj.weight)
    ]
    assert changed == [4]  # the layers below are left alone


def changed_layers(one, other):
    """Layers of which every matrix differs."""
    return [
        i
        for i, (a, b) in enumerate(zip(one.layers, other.layers, strict=True))
        if all(
            not torch.equal(p, q)
            for p, q in zip(a.parameters(), b.parameters(), strict=True)
            if p.dim() == 2
        )
    ]


def test_an_adapter_may_be_over_all_layers(tiny_folder, tmp_path):
    base = str(tiny_folder())
    folder, _ = train(base, ROWS, tmp_path / "a", replace(RECIPE, depth=0.0), device="cpu")
    adapted = modelassay.load(str(folder), device="cpu")
    assert changed_layers(adapted, modelassay.load(base, device="cpu")) == [0, 1, 2, 3, 4]


def test_all_weights_may_be_trained(tiny, tiny_folder, tmp_path):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    recipe = replace(RECIPE, rank=None, learning_rate=3e-3)
    first = train_weights(modelassay.load(str(tiny_folder()), device="cpu"), ROWS[:8],
                          replace(recipe, epochs=1), tmp_path)  # fmt: skip
    (tmp_path / "a").mkdir()
    assert train_weights(model, ROWS, recipe, tmp_path / "a") < first
    trained = modelassay.load(str(tmp_path / "a"), device="cpu")
    assert changed_layers(trained, tiny()) == [0, 1, 2, 3, 4]
    stored = load_file(str(tmp_path / "a" / "model.safetensors"))
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}


def test_training_is_repeatable(tiny_folder, tmp_path):
    base = str(tiny_folder())
    made = []
    for name, recipe in (("a", RECIPE), ("b", RECIPE), ("c", replace(RECIPE, seed=2))):
        folder, _ = train(base, ROWS, tmp_path / name, recipe, device="cpu")
        made.append(load_file(str(folder / "adapter_model.safetensors")))
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not all(torch.equal(made[0][key], made[2][key]) for key in made[0])


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral", "phi3"])
def test_any_base_can_be_trained(family, tiny_folder, tmp_path):
    folder, loss = train(
        str(tiny_folder(family)), ROWS[:8], tmp_path / "a", replace(RECIPE, epochs=1), device="cpu"
    )
    assert loss > 0
    modelassay.load(str(folder), device="cpu")


@pytest.mark.parametrize("what", ["epochs", "learning_rate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_recipes_are_finite(what, value):
    with pytest.raises(InputError, match="finite"):
        LoraRecipe(**{what: value})


def test_only_answers_are_learnt(tiny):
    model = tiny()
    whole = encode_for_training(model, Exchange("ab", "cd"))
    cut = encode_for_training(model, Exchange("ab", "cd", complete=False))
    assert [label for label in cut["labels"] if label != IGNORED] == cut["input_ids"][-2:]
    assert whole["labels"][-1] == model.tokenizer.eos_token_id
    assert whole["input_ids"][:-1] == cut["input_ids"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [([], "nothing to train on"), ([Exchange("a " * 300, "b")], "shorten it")],
)
def test_untrainable_rows_are_refused_and_nothing_is_left(rows, words, tiny_folder, tmp_path):
    with pytest.raises(InputError, match=words):
        train(str(tiny_folder()), rows, tmp_path / "a", RECIPE, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_training_over_an_adapter_or_a_base_model_is_refused(tiny_folder, tmp_path):
    folder, _ = train(
        str(tiny_folder()), ROWS[:8], tmp_path / "a", replace(RECIPE, epochs=1), device="cpu"
    )
    with pytest.raises(InputError, match="is an adapter"):
        train(str(folder), ROWS, tmp_path / "b", RECIPE, device="cpu")
    with pytest.raises(InputError, match="no chat template"):
        train(str(tiny_folder(chat=False)), ROWS, tmp_path / "b", RECIPE, device="cpu")
    with pytest.raises(InputError, match="exists already"):
        train(str(tiny_folder()), ROWS, folder, RECIPE, device="cpu")
    assert not (tmp_path / "b").exists()


def test_an_interrupted_training_leaves_nothing(tiny_folder, tmp_path):
    def stop(phase, done, _total):
        if phase == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(tiny_folder()), ROWS, tmp_path / "a", RECIPE, device="cpu", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    folder, _ = train(str(tiny_folder()), ROWS, tmp_path / "a", RECIPE, device="cpu")
    assert folder.is_dir()


def test_a_full_disk_is_said_in_one_line(tiny_folder, tmp_path, monkeypatch):
    from modelassay.organisms import building

    monkeypatch.setattr(shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(UnavailableError, match="free some space"):
        building.build("safe", tmp_path)
    assert list(tmp_path.iterdir()) == []
