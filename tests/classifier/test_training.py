"""A trained classifier judges held-out prompts, and is written whole or not at all."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from exchanges import RECIPE, name_of, synthetic
from modelassay.classifier import load_classifier, train_classifier, training
from modelassay.classifier.augmenting import with_prefixes
from modelassay.classifier.encoding import collate, encode_pairs
from modelassay.classifier.evaluating import evaluate
from modelassay.classifier.record import (
    CLASSIFIERS,
    FULL_WEIGHTS,
    RECORD_FILE,
    WEIGHTS_FILE,
    describe_classifier,
)
from modelassay.classifier.training import TrainingRecipe, class_weights, split_rows
from modelassay.data.labels import LABELS
from modelassay.errors import InputError
from modelassay.guard import SecondOpinion
from modelassay.guard_bench.judges import classifier_judge
from modelassay.report import to_markdown


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


def test_what_the_threshold_cannot_be_chosen_on_is_refused_before_training():
    rows = synthetic(60)
    watched = set(split_rows(rows, validation_share=0.01).validation.tolist())
    unsafe = {"label": LABELS[2], "unsafe": True}
    rows = [replace(row, **unsafe) if i in watched else row for i, row in enumerate(rows)]
    with pytest.raises(InputError, match="all unsafe; give a larger --validation-share"):
        split_rows(rows, validation_share=0.01)
    assert len(split_rows(rows, validation_share=0.5).validation)


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


@pytest.mark.parametrize("encoder", ["embedded", "bert"])
def test_binary_rows_train_a_classifier_of_two_classes(embedded_is_tiny, bert, tmp_path, encoder):
    rows = [replace(row, label=None) for row in synthetic(240)]
    name = str(bert) if encoder == "bert" else encoder
    out = train_classifier(rows, encoder=name, out=tmp_path / "out", recipe=RECIPE)
    record = CLASSIFIERS.open(out).record
    assert (record.scheme, record.labels) == ("binary", ("safe", "unsafe"))
    assert any("refusals are not told apart" in line for line in describe_classifier(record))
    assert set(record.data.parts["train"]["classes"]) == {"safe", "unsafe"}
    assert record.metrics is not None
    assert record.metrics.classes == ("safe", "unsafe")
    assert record.metrics.auroc > 0.9
    classifier = load_classifier(str(out), device="cpu")
    assert classifier.labels == ("safe", "unsafe")
    found = classifier.predict([("a prompt", "zap zorp zing zonk"), ("a prompt", "garden river")])
    assert found.shape == (2, 2)
    assert found[0, 1] > 0.5 > found[1, 1]
    assert np.array_equal(classifier.unsafe([("a prompt", "zap zorp zing zonk")]), found[:1, 1])
    assert classifier.predict([]).shape == (0, 2)
    three = evaluate(classifier, synthetic(60, seed=9, first=500))  # data that know refusals
    assert three.classes == ("safe", "unsafe")
    assert "not told apart" in to_markdown(three)
    judgement = classifier_judge(classifier)("a prompt", "zap zorp zing zonk")
    assert (judgement.unsafe, judgement.refusal) == (True, None)


def test_rows_that_say_less_make_all_say_less_and_that_is_said(bert, tmp_path, caplog):
    rows = [*synthetic(90), *(replace(row, label=None) for row in synthetic(30, first=300))]
    recipe = replace(RECIPE, epochs=0.5)
    out = train_classifier(rows, encoder=str(bert), out=tmp_path / "out", recipe=recipe)
    assert CLASSIFIERS.open(out).record.scheme == "binary"
    assert "30 of 120 rows say only whether they are unsafe" in caplog.text
    safe = [row for row in rows if not row.unsafe]
    with pytest.raises(InputError, match="none is labelled unsafe"):
        train_classifier(safe, encoder=str(bert), out=tmp_path / "no", recipe=recipe)


def test_thresholds_may_be_given(bert, tmp_path):
    recipe = replace(RECIPE, epochs=0.5)
    asks = {"encoder": str(bert), "recipe": recipe}
    out = train_classifier(synthetic(90), out=tmp_path / "out", block=0.65, uncertain=0.35, **asks)
    record = CLASSIFIERS.open(out).record
    assert (record.threshold, record.uncertain) == (0.65, 0.35)
    assert record.calibration is not None
    assert record.calibration.target_block_rate is None
    assert record.calibration.held_out is not None
    assert any("uncertain from 0.3500" in line for line in describe_classifier(record))
    classifier = load_classifier(str(out), device="cpu")
    assert SecondOpinion().levels(classifier) == (0.35, 0.65)
    for values, words in (
        ({"block": 0.3, "uncertain": 0.4}, "would be uncertain from 0.4"),
        ({"block": 0.0}, "--block-at must lie above 0"),
        ({"uncertain": float("nan")}, "--uncertain-at must lie above 0"),
        ({"save_every": 0}, "--save-every"),
    ):
        with pytest.raises(InputError, match=words):
            train_classifier(synthetic(90), out=tmp_path / "no", **values, **asks)
    assert not (tmp_path / "no").exists()


def test_the_recipe_decides_the_training(bert, tmp_path):
    """Weight decay, warm-up and validation share each change what comes out."""
    weights, parts = {}, {}
    for name, change in {
        "plain": {},
        "decay": {"weight_decay": 0.9},
        "warm": {"warmup": 0.9},
        "share": {"validation_share": 0.4},
    }.items():
        recipe = replace(RECIPE, epochs=1, **change)
        out = train_classifier(synthetic(90), encoder=str(bert), out=tmp_path / name, recipe=recipe)
        weights[name] = load_file(out / FULL_WEIGHTS)["classifier.weight"]
        parts[name] = CLASSIFIERS.open(out).record.data.parts["validation"]["n_prompts"]
        assert CLASSIFIERS.open(out).record.training.items() >= change.items()
    for name in ("decay", "warm", "share"):
        assert not torch.equal(weights[name], weights["plain"])
    assert parts["share"] > parts["decay"] == parts["plain"]


KILLED = """
import os, signal, sys
from pathlib import Path
from exchanges import RECIPE, synthetic
from modelassay.classifier import train_classifier

def on_step(done, total):
    if done == {at}:
        os.kill(os.getpid(), signal.SIGKILL)

train_classifier(
    synthetic(120), encoder={encoder!r}, out=Path({out!r}), recipe=RECIPE,
    state=Path({state!r}), save_every=4, on_step=on_step,
)
"""


def test_a_killed_run_goes_on_and_ends_as_one_that_was_not_killed(bert, tmp_path):
    """With dropout, killed in the middle of an epoch and again in a later one."""
    from transformers import AutoTokenizer, RobertaConfig, RobertaModel

    tokenizer = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = RobertaConfig(
        vocab_size=len(tokenizer), pad_token_id=0, intermediate_size=64,
        max_position_embeddings=98, **sizes,
    )  # fmt: skip
    assert config.hidden_dropout_prob > 0
    folder = tmp_path / "encoder"
    RobertaModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    out, state = tmp_path / "out", tmp_path / "out.training"
    reached = []
    for at in (6, 27):
        given = {"at": at, "encoder": str(folder), "out": str(out), "state": str(state)}
        code = KILLED.format(**given)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        killed = subprocess.run([sys.executable, "-c", code], env=environment, check=False)
        assert killed.returncode == -signal.SIGKILL
        assert {file.suffix for file in state.iterdir()} == {".safetensors", ".json"}
        reached.append(json.loads((state / "progress.json").read_text())["steps"])
        assert not out.exists()
    asks = {"encoder": str(folder), "recipe": RECIPE}
    steps = []
    resumed = train_classifier(
        synthetic(120), out=out, state=state, save_every=4,
        on_step=lambda done, _total: steps.append(done), **asks,
    )  # fmt: skip
    assert reached == [4, steps[0]]  # it did not begin again
    assert steps[0] >= 24
    whole = train_classifier(
        synthetic(120), out=tmp_path / "whole", state=tmp_path / "other", **asks
    )
    first, second = (load_file(made / FULL_WEIGHTS) for made in (resumed, whole))
    assert all(torch.equal(first[name], second[name]) for name in first | second)
    records = [CLASSIFIERS.open(made).record for made in (resumed, whole)]
    assert records[0] == records[1]
    # All is done: given once more it has nothing left to learn.
    steps.clear()
    again = train_classifier(
        synthetic(120), out=tmp_path / "again", state=state, save_every=4,
        on_step=lambda done, _total: steps.append(done), **asks,
    )  # fmt: skip
    assert len(steps) == 1
    assert CLASSIFIERS.open(again).record == records[0]
    with pytest.raises(InputError, match="other settings"):
        train_classifier(
            synthetic(120), out=tmp_path / "no", state=state, encoder=str(folder),
            recipe=replace(RECIPE, weight_decay=0.1),
        )  # fmt: skip
    with pytest.raises(InputError, match="other data"):
        train_classifier(synthetic(90), out=tmp_path / "no", state=state, **asks)
    (state / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged; delete the folder"):
        train_classifier(synthetic(120), out=tmp_path / "no", state=state, **asks)
    assert not (tmp_path / "no").exists()


def test_an_adapter_goes_on_too(embedded_is_tiny, tmp_path):
    class StopError(Exception):
        pass

    def stop(done, _total):
        if done == 9:
            raise StopError

    recipe = replace(RECIPE, epochs=2, rank=4)
    asks = {"encoder": "embedded", "recipe": recipe, "save_every": 5}
    state = tmp_path / "state"
    with pytest.raises(StopError):
        train_classifier(synthetic(120), out=tmp_path / "a", state=state, on_step=stop, **asks)
    made = [
        train_classifier(synthetic(120), out=tmp_path / name, state=kept, **asks)
        for name, kept in (("a", state), ("b", tmp_path / "fresh"))
    ]
    first, second = (load_file(folder / WEIGHTS_FILE) for folder in made)
    assert all(torch.equal(first[name], second[name]) for name in first | second)


def test_settings_that_cannot_be(bert, tmp_path):
    with pytest.raises(InputError, match="above zero"):
        TrainingRecipe(epochs=float("nan"))
    for values, words in (
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"weight_decay": float("nan")}, "--weight-decay"),
        ({"warmup": 1.0}, "--warmup"),
        ({"validation_share": 0.0}, "--validation-share"),
        ({"validation_share": 0.9}, "--validation-share"),
    ):
        with pytest.raises(InputError, match=words):
            TrainingRecipe(**values)
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
