"""Any encoder by name: trained, written, read back; what is none is refused before it is."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf

from exchanges import RECIPE, synthetic, write_rows
from modelassay.classifier import CLASSIFIERS, load_classifier, train_classifier
from modelassay.cli.main import run
from modelassay.errors import EXIT_BAD_INPUT, InputError
from outputs import one_line

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
SIZES = {**SMALL, "intermediate_size": 64, "max_position_embeddings": 98}
ENCODERS = {
    "roberta": lambda n: tf.RobertaModel(tf.RobertaConfig(vocab_size=n, pad_token_id=0, **SIZES)),
    "modernbert": lambda n: tf.ModernBertModel(
        tf.ModernBertConfig(vocab_size=n, pad_token_id=0, local_attention=16, **SIZES)
    ),
    "deberta-v2": lambda n: tf.DebertaV2Model(
        tf.DebertaV2Config(vocab_size=n, relative_attention=True, **SIZES)
    ),
    "distilbert": lambda n: tf.DistilBertModel(
        tf.DistilBertConfig(vocab_size=n, dim=32, n_layers=2, n_heads=2, hidden_dim=64)
    ),
    "electra": lambda n: tf.ElectraModel(
        tf.ElectraConfig(vocab_size=n, embedding_size=32, hidden_dropout_prob=0.0, **SIZES)
    ),
}


def save(kind: str, bert: Path, folder: Path) -> Path:
    tokenizer = tf.AutoTokenizer.from_pretrained(bert)
    torch.manual_seed(0)
    ENCODERS[kind](len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", sorted(ENCODERS))
def test_an_encoder_of_any_architecture_is_trained_and_read_back(kind, bert, tmp_path):
    folder = save(kind, bert, tmp_path / f"tiny-{kind}")
    recipe = replace(RECIPE, epochs=14) if kind == "electra" else RECIPE  # it learns slowly
    out = train_classifier(synthetic(240), encoder=str(folder), out=tmp_path / "out", recipe=recipe)
    record = CLASSIFIERS.open(out).record
    assert record.base.id == f"tiny-{kind}"
    assert record.metrics is not None
    assert record.metrics.auroc > 0.9  # it learnt
    others = [(row.prompt, row.response) for row in synthetic(30, seed=9, first=500)]
    classifier = load_classifier(str(out), device="cpu")
    found = classifier.predict(others)
    assert np.allclose(found.sum(axis=1), 1, atol=1e-4)
    alone = np.concatenate([classifier.predict([pair]) for pair in others])
    assert np.allclose(found, alone, atol=1e-4)


def test_the_command_takes_an_encoder_from_the_hub_by_its_id(hub, bert, tmp_path, capsys):
    files = {
        path.name: path.read_bytes() for path in save("roberta", bert, tmp_path / "r").iterdir()
    }
    hub.add_repo("models", "lab/tiny-roberta", files)
    rows = write_rows(tmp_path / "rows.jsonl", synthetic(90))
    command = ["classifier", "train", "--model-id", "lab/tiny-roberta", "--data-path", str(rows)]
    command += ["--output-dir", str(tmp_path / "out"), "--epochs", "1", "--max-length", "48", "-q"]
    assert run(command) == 0
    assert CLASSIFIERS.open(tmp_path / "out").record.base.id == "lab/tiny-roberta"
    assert not (tmp_path / "out.training").exists()


def test_a_fine_tuned_classifier_is_an_encoder_too(trained, tmp_path):
    """Its head of other classes is replaced; the encoder's weights are not."""
    recipe = replace(RECIPE, epochs=0.5)
    rows = [replace(row, label=None) for row in synthetic(120)]
    out = train_classifier(rows, encoder=str(trained), out=tmp_path / "out", recipe=recipe)
    assert CLASSIFIERS.open(out).record.labels == ("safe", "unsafe")


def test_what_is_no_encoder_is_refused(tiny_folder, bert, tmp_path):
    folder = Path(shutil.copytree(tiny_folder(), tmp_path / "decoder"))
    with pytest.raises(InputError, match="reads a text both ways"):
        train_classifier(synthetic(60), encoder=str(folder), out=tmp_path / "out", recipe=RECIPE)
    lacking = save("electra", bert, tmp_path / "lacking")
    from safetensors.torch import load_file, save_file

    tensors = load_file(lacking / "model.safetensors")
    del tensors[max(name for name in tensors if "layer.1" in name)]
    save_file(tensors, lacking / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="lacks weights of its encoder"):
        train_classifier(synthetic(60), encoder=str(lacking), out=tmp_path / "out", recipe=RECIPE)
    roberta = save("roberta", bert, tmp_path / "roberta")
    long = replace(RECIPE, max_length=98)  # its positions begin at one
    with pytest.raises(InputError, match="cannot read 98 tokens"):
        train_classifier(synthetic(60), encoder=str(roberta), out=tmp_path / "out", recipe=long)
    other = tf.AutoTokenizer.from_pretrained(bert)
    other.add_tokens([f"more{i}" for i in range(9)])
    other.save_pretrained(roberta)
    with pytest.raises(InputError, match="do not belong together"):
        train_classifier(synthetic(60), encoder=str(roberta), out=tmp_path / "out", recipe=RECIPE)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["config", "weights", "tokenizer", "nothing"])
def test_a_damaged_encoder_is_one_line(damage, bert, tmp_path, capsys):
    folder = save("roberta", bert, tmp_path / "roberta")
    if damage == "nothing":
        for file in folder.iterdir():
            file.unlink()
    else:
        name = {"config": "config.json", "weights": "model.safetensors"}
        (folder / name.get(damage, "tokenizer.json")).write_text("{", encoding="utf-8")
    rows = write_rows(tmp_path / "rows.jsonl", synthetic(60))
    command = ["classifier", "train", "--encoder", str(folder), "--data", str(rows), "-q"]
    assert run([*command, "--out", str(tmp_path / "out")]) == EXIT_BAD_INPUT
    one_line(capsys.readouterr().err)
    assert {path.name for path in tmp_path.iterdir()} == {"roberta", "rows.jsonl"}
