"""A trained classifier judges held-out prompts, and is written whole or not at all."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exchanges import RECIPE, name_of, synthetic
from modelassay.classifier import load_classifier, train_classifier, training
from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoding import collate, encode_pairs
from modelassay.classifier.record import CLASSIFIERS, RECORD_FILE, WEIGHTS_FILE
from modelassay.classifier.training import TrainingRecipe, class_weights, split_rows
from modelassay.data.labels import LABELS
from modelassay.errors import InputError


def test_training_judges_unseen_prompts(trained):
    record = CLASSIFIERS.open(trained).record
    assert record.kind == "full"
    assert record.base.id == "tiny-bert"  # and no path of this machine
    assert record.metrics is not None
    assert record.metrics.macro_f1 > 0.8
    assert record.metrics.auroc > 0.9
    assert record.metrics.intervals["auroc"][0] <= record.metrics.auroc
    assert record.calibration is not None
    assert record.calibration.held_out is not None
    assert sum(part["n"] for part in record.data.parts.values()) == 240
    names = {path.name for path in trained.iterdir()}
    assert {"classifier.json", "config.json", "model.safetensors", "tokenizer.json"} <= names
    assert not any(path.suffix in (".bin", ".pt", ".pkl") for path in trained.rglob("*"))
    assert str(trained.parent) not in (trained / RECORD_FILE).read_text()


def test_the_parts_share_no_prompt_and_only_the_training_part_grows(bert, tmp_path, monkeypatch):
    seen: dict[str, list] = {}

    def spy(rows, seed, prefixes):
        seen["grown"] = list(rows)
        return with_prefixes(rows, seed, prefixes)

    class Spy(training._Best):
        def __init__(self, trainee, watched, n_examples):
            seen["n_watched"] = len(watched)
            super().__init__(trainee, watched, n_examples)

    monkeypatch.setattr(training, "with_prefixes", spy)
    monkeypatch.setattr(training, "_Best", Spy)
    rows = synthetic(120)
    train_classifier(
        rows, encoder=str(bert), out=tmp_path / "out", recipe=replace(RECIPE, epochs=0.5)
    )
    parts = split_rows(rows)
    sides = [{rows[i].prompt for i in part} for part in (parts.train, parts.validation, parts.test)]
    assert sum(map(len, sides)) == len(set.union(*sides))
    assert min(map(len, sides)) >= 1
    assert {row.prompt for row in seen["grown"]} == sides[0]
    assert seen["n_watched"] == len(parts.validation)


def test_training_stops_when_held_out_prompts_are_judged_no_better(bert, tmp_path):
    """Classes drawn by lot can be learnt by heart only: held-out prompts get worse from that."""
    recipe = replace(RECIPE, epochs=12)
    draw = random.Random(0)  # noqa: S311
    rows = [
        replace(row, label=label, unsafe=label == "unsafe_compliance")
        for row in synthetic(120)
        for label in [draw.choice(LABELS)]
    ]
    out = train_classifier(rows, encoder=str(bert), out=tmp_path / "out", recipe=recipe)
    made = CLASSIFIERS.open(out).record.training
    an_epoch = -(-made["rows_with_prefixes"] // recipe.batch_size)
    assert made["steps"] < 12 * an_epoch
    assert made["best_step"] <= made["steps"] - 2 * an_epoch + 1


def test_a_modernbert_is_trained_and_read_back(bert, tmp_path):
    """The default kind of encoder, from a config: as any other by its folder."""
    from transformers import AutoTokenizer, ModernBertConfig, ModernBertModel

    tokenizer = AutoTokenizer.from_pretrained(bert)
    config = ModernBertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=3,
        num_attention_heads=2, max_position_embeddings=96, pad_token_id=0, local_attention=16,
    )  # fmt: skip
    torch.manual_seed(0)
    folder = tmp_path / "modern"
    ModernBertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    recipe = replace(RECIPE, epochs=1)
    out = train_classifier(synthetic(90), encoder=str(folder), out=tmp_path / "out", recipe=recipe)
    risks = load_classifier(str(out), device="cpu").predict([("a prompt", "an answer")])
    assert risks.shape == (1, 3)
    assert risks.sum() == pytest.approx(1, abs=1e-4)


def test_rows_may_say_what_stands_for_their_prompt():
    rows = [replace(row, prompt="") for row in synthetic(60)]
    with pytest.raises(InputError, match="fewer than"):
        split_rows(rows)
    parts = split_rows(rows, [name_of(i // 3) for i in range(60)])
    assert not set(parts.groups[parts.train]) & set(parts.groups[parts.test])


def test_training_is_repeatable_and_the_adapter_too(embedded_is_tiny, tmp_path):
    recipe = replace(RECIPE, epochs=1, rank=4)
    made = [
        train_classifier(synthetic(90), encoder="embedded", out=tmp_path / name, recipe=recipe)
        for name in "ab"
    ]
    first, second = (load_file(folder / WEIGHTS_FILE) for folder in made)
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_an_adapter_is_small_and_reads_as_it_was_trained(embedded_is_tiny, tmp_path, monkeypatch):
    kept = {}
    save = training._save

    def spy(trainee, folder):
        rows = encode_pairs(trainee.tokenizer, [(r.prompt, r.response) for r in judged], 48)
        with torch.no_grad():
            kept["live"] = torch.softmax(
                trainee.network(**collate(rows, 0, types=True)).float(), -1
            ).numpy()
        return save(trainee, folder)

    monkeypatch.setattr(training, "_save", spy)
    judged = synthetic(30, seed=5)
    recipe = replace(RECIPE, rank=4)
    out = train_classifier(synthetic(240), encoder="embedded", out=tmp_path / "a", recipe=recipe)
    assert {path.name for path in out.iterdir()} == {RECORD_FILE, WEIGHTS_FILE}
    classifier = load_classifier(str(out), device="cpu")
    again = classifier.predict([(row.prompt, row.response) for row in judged])
    assert np.abs(again - kept["live"]).max() < 0.02  # it is kept in bfloat16
    assert (again.argmax(1) == [LABELS.index(row.label) for row in judged]).mean() > 0.8


def test_class_weights_make_classes_count_alike():
    weights = class_weights([0] * 8 + [1] * 2)
    assert weights.tolist() == pytest.approx([10 / 16, 10 / 4, 0])


@pytest.mark.parametrize("missing", LABELS)
def test_a_missing_class_is_named_and_nothing_is_written(bert, tmp_path, missing):
    rows = [row for row in synthetic(60) if row.label != missing]
    with pytest.raises(InputError, match=missing):
        train_classifier(rows, encoder=str(bert), out=tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_binary_rows_cannot_train(bert, tmp_path):
    rows = [*synthetic(60), replace(synthetic(1)[0], label=None)]
    with pytest.raises(InputError, match="Row 61 says only"):
        train_classifier(rows, encoder=str(bert), out=tmp_path / "out")


def test_settings_that_cannot_be(bert, tmp_path):
    with pytest.raises(InputError, match="above zero"):
        TrainingRecipe(epochs=float("nan"))
    with pytest.raises(InputError, match="96 tokens at most"):
        train_classifier(
            synthetic(60), encoder=str(bert), out=tmp_path / "out",
            recipe=TrainingRecipe(max_length=200),
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    there = tmp_path / "there"
    there.mkdir()
    with pytest.raises(InputError, match="is there and is not a classifier"):
        train_classifier(synthetic(60), encoder=str(bert), out=there, force=True)
    (there / "classifier.json").write_text("{}", encoding="utf-8")
    with pytest.raises(InputError, match="exists already"):
        train_classifier(synthetic(60), encoder=str(bert), out=there)
    (there / "thesis.txt").write_text("years of work", encoding="utf-8")
    with pytest.raises(InputError, match="is there and is not a classifier"):
        train_classifier(synthetic(60), encoder=str(bert), out=there, force=True)
    assert (there / "thesis.txt").exists()
