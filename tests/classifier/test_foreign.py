"""Classifiers of open-constitution are asked as they were trained, and kept as ours."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

from exchanges import synthetic
from modelassay.classifier import CLASSIFIERS, find_classifier, load_classifier
from modelassay.classifier.evaluating import evaluate, recalibrate
from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, InputError
from modelassay.guard import SecondOpinion
from outputs import one_line

BINARY = {"0": "safe", "1": "unsafe"}
THREE = {"0": "safe_compliance", "1": "safe_refusal", "2": "unsafe_compliance"}


def made_elsewhere(bert: Path, folder: Path, mapping: dict[str, str] | None = None, **more) -> Path:
    """What `train-exchange-classifier` leaves: a model, its tokenizer, and its own config."""
    tokenizer = AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(1)
    network = BertForSequenceClassification(
        BertConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
            intermediate_size=64, max_position_embeddings=96, num_labels=len(mapping or BINARY),
            initializer_range=0.5,
        )
    )  # fmt: skip
    network.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    config = {
        "model_id": "lab/base", "data_path": "data/rows.jsonl", "max_length": 48,
        "allow_threshold": 0.35, "block_threshold": 0.65, "label_mapping": mapping, "seed": 0,
        "metrics": {"eval": {"eval_f1": 0.9}}, "text_format": "user_assistant",
    }  # fmt: skip
    kept = {name: value for name, value in (config | more).items() if value is not None}
    (folder / "classifier_config.json").write_text(json.dumps(kept), encoding="utf-8")
    return folder


def as_there(folder: Path, prompt: str, response: str) -> list[float]:
    """Probabilities as their runtime takes them: one text, no segments."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = BertForSequenceClassification.from_pretrained(folder).eval()
    text = f"User:\n{prompt}\n\nAssistant:\n{response}"
    ids = tokenizer(text, add_special_tokens=False, truncation=False, padding=False)["input_ids"]
    row = torch.tensor([[tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]])
    with torch.inference_mode():
        return torch.softmax(network(input_ids=row).logits[0], -1).tolist()


@pytest.mark.parametrize("mapping", [BINARY, THREE])
def test_a_folder_is_asked_as_there(bert, tmp_path, mapping):
    folder = made_elsewhere(bert, tmp_path / "judge", mapping)
    classifier = load_classifier(str(folder), device="cpu")
    assert classifier.labels == tuple(mapping.values())
    pairs = [("w1 w2 the", "zap garden"), ("", "w3 of sorry"), ("a prompt", ""), ("w5", "w6 w7")]
    expected = [as_there(folder, *pair) for pair in pairs]
    assert np.allclose(classifier.predict(pairs), expected, atol=1e-5)
    assert SecondOpinion().levels(classifier) == (0.35, 0.65)
    assert classifier.record.metrics is None  # theirs were taken on prompts of the training too
    found = evaluate(classifier, synthetic(60))
    assert found.classes == (("safe", "unsafe") if mapping is BINARY else tuple(THREE.values()))


def test_a_long_exchange_keeps_the_newest_words_and_the_mark_between(bert, tmp_path):
    folder = made_elsewhere(bert, tmp_path / "judge", BINARY)
    classifier = load_classifier(str(folder), device="cpu")
    long = ("w1 " * 200, "w2 " * 200)
    assert classifier.predict([long]).shape == (1, 2)
    newest = classifier.predict([(long[0], long[1] + "zap zap zap zap zap zap")])
    assert abs(newest - classifier.predict([long])).max() > 1e-4
    assert classifier.predict([long], whole=True).shape == (1, 2)


def test_one_is_imported_shown_calibrated_and_pushed(bert, tmp_path, monkeypatch, hub, capsys):
    monkeypatch.setenv("MODELASSAY_CLASSIFIERS", str(tmp_path / "own"))
    hub.add_writer("hf_mine", "alice")
    folder = made_elsewhere(bert, tmp_path / "judge", BINARY)
    assert run(["classifier", "show", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "classes: safe, unsafe (refusals are not told apart" in said
    assert "uncertain from 0.3500" in said
    assert run(["classifier", "import", str(folder), "--name", "theirs"]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "own" / "theirs")
    assert run(["classifier", "list"]) == 0
    assert "theirs (local): lab/base" in capsys.readouterr().out
    pair = [("a prompt", "zap zorp")]
    before = load_classifier(str(folder), device="cpu").predict(pair)
    assert np.array_equal(load_classifier("theirs", device="cpu").predict(pair), before)
    assert (
        run(["classifier", "push", "theirs", "--repo", "alice/judges", "--token", "hf_mine"]) == 0
    )
    pushed = capsys.readouterr().out.strip()
    assert pushed.startswith("alice/judges:theirs@")
    assert run(["classifier", "pull", "alice/judges", "--force"]) == 0
    kept = load_classifier("theirs", device="cpu")
    assert kept.origin.author == "alice"
    assert np.array_equal(kept.predict(pair), before)
    assert np.array_equal(load_classifier(pushed, device="cpu").predict(pair), before)
    # Calibrating gives it our record, in a copy.
    classifier = load_classifier(str(folder), device="cpu")
    recalibrate(classifier, synthetic(30), block=0.8, out=tmp_path / "new")
    assert load_classifier(str(tmp_path / "new"), device="cpu").threshold == 0.8


def test_a_model_repository_of_theirs_is_found_and_imported(bert, tmp_path, monkeypatch, hub):
    monkeypatch.setenv("MODELASSAY_CLASSIFIERS", str(tmp_path / "own"))
    folder = made_elsewhere(bert, tmp_path / "judge", THREE)
    hub.add_repo("models", "bob/judge", {f.name: f.read_bytes() for f in folder.iterdir()})
    found = load_classifier("bob/judge", device="cpu")
    assert found.origin.author == "bob"
    assert run(["classifier", "import", "bob/judge", "--name", "mine"]) == 0
    assert find_classifier("mine").origin.author == "bob"


def test_pushing_a_folder_of_theirs_publishes_nothing(bert, tmp_path, hub, capsys):
    hub.add_writer("hf_mine", "alice")
    folder = made_elsewhere(bert, tmp_path / "judge", BINARY)
    push = ["classifier", "push", str(folder), "--repo", "alice/judges", "--token", "hf_mine"]
    assert run(push) == EXIT_BAD_INPUT
    assert "classifier import" in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"max_length": 4}, "max_length"),
        ({"allow_threshold": 0.9}, "allow_threshold must not lie above"),
        ({"block_threshold": "high"}, "block_threshold"),
        ({"label_mapping": {"0": "cat", "1": "dog"}}, "known are"),
        ({"label_mapping": [1, 2]}, "label_mapping"),
        ({"text_format": "chat"}, "text_format"),
        ({"max_length": 4096}, "max_length that its encoder cannot read"),
    ],
)
def test_configs_that_cannot_be(bert, tmp_path, more, words):
    folder = made_elsewhere(bert, tmp_path / "judge", **{"mapping": BINARY, **more})
    with pytest.raises(InputError, match=words) as caught:
        load_classifier(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


def test_damaged_and_pickled_ones_are_refused(bert, tmp_path, capsys):
    folder = made_elsewhere(bert, tmp_path / "judge")
    assert load_classifier(str(folder), device="cpu").labels == ("safe", "unsafe")  # by number
    (folder / "classifier_config.json").write_text("[]", encoding="utf-8")
    with pytest.raises(InputError, match="the file: "):
        load_classifier(str(folder))
    (folder / "classifier_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="not valid JSON"):
        load_classifier(str(folder))
    (folder / "classifier_config.json").write_text("{}", encoding="utf-8")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError):
        load_classifier(str(folder))
    out = shutil.copytree(folder, tmp_path / "there")
    for arguments, words in (
        ([str(folder)], "--out FOLDER"),
        ([str(folder), "--out", str(out), "--name", "x"], "--out FOLDER"),
        ([str(folder), "--out", str(out)], "is there and is not a classifier"),
        (["nowhere", "--name", "x"], "No classifier at"),
    ):
        assert run(["classifier", "import", *arguments]) == EXIT_BAD_INPUT
        assert words in one_line(capsys.readouterr().err)
    assert CLASSIFIERS.here("x") is None
