"""Classifier folders of open-constitution: the same probabilities, from the same text."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from exchanges import synthetic
from foreign_files import save_classifier_folder
from modelassay.classifier import load_classifier
from modelassay.classifier.encoding import encode_pairs
from modelassay.classifier.evaluating import evaluate
from modelassay.classifier.record import CLASSIFIERS
from modelassay.data.labels import LABELS
from modelassay.errors import InputError
from modelassay.foreign import import_artifact
from modelassay.guard import SecondOpinion

THREE = {str(i): name for i, name in enumerate(LABELS)}
TWO = {"0": "safe", "1": "unsafe"}
EXCHANGES = [
    ("a prompt", "zap zorp zing"),
    ("", "a response"),
    ("a prompt", ""),
    ("a\n\nb", "\n\nc"),
    ("w1 " * 40, "w2 " * 40),
]


@pytest.fixture(params=[THREE, TWO], ids=["three classes", "two classes"])
def classes(request):
    return request.param


@pytest.fixture
def folder(bert, classes, tmp_path):
    return save_classifier_folder(tmp_path / "theirs", bert, classes)


def there(folder, prompt, response):
    """Probabilities as open-constitution computes them."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    network = AutoModelForSequenceClassification.from_pretrained(folder)
    text = f"User:\n{prompt}\n\nAssistant:\n{response}"
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=64)
    with torch.inference_mode():
        return torch.softmax(network(**inputs).logits, -1)[0].numpy()


def test_probabilities_are_the_same(folder, classes):
    found = import_artifact(folder)
    classifier = load_classifier("theirs", device="cpu")
    assert classifier.folder == found.folder
    for prompt, response in EXCHANGES[:4]:
        expected = there(folder, prompt, response)
        (probabilities,) = classifier.predict([(prompt, response)])
        assert classifier.labels == tuple(classes.values())
        assert np.allclose(probabilities, expected, atol=1e-5)


def test_a_pickle_is_read_as_its_safetensors_are_and_kept_as_such(folder):
    before = import_artifact(folder, name="safe-one")
    to_pickle(folder)
    found = import_artifact(folder)
    assert [path.name for path in found.folder.glob("*.bin")] == []
    assert "pytorch_model.bin" in found.imported.files
    classifier = load_classifier("theirs", device="cpu")
    expected = load_classifier(before.name, device="cpu").predict(EXCHANGES)
    assert np.array_equal(classifier.predict(EXCHANGES), expected)


def test_the_hostile_pickle_is_hostile(folder):
    """Else the test of it could not fail."""
    to_hostile(folder)
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert MARKER.is_dir()
    MARKER.rmdir()


def test_a_long_exchange_keeps_the_newest_words(folder):
    import_artifact(folder)
    classifier = load_classifier("theirs", device="cpu")
    (row,) = encode_pairs(
        classifier.tokenizer, [("w1 " * 60, "w2 " * 60 + "w3")], 64, text_format="user_assistant"
    )
    words = classifier.tokenizer.convert_ids_to_tokens(row.ids)
    assert row.cut
    assert len(words) <= 64
    assert words[-2] == "w3"
    assert words.count("w2") > words.count("w1") > 5
    (first,) = encode_pairs(
        classifier.tokenizer,
        [("w1 " * 60, "w3 " + "w2 " * 60)],
        64,
        newest=False,
        text_format="user_assistant",
    )
    assert "w3" in classifier.tokenizer.convert_ids_to_tokens(first.ids)
    assert np.allclose(classifier.predict(EXCHANGES).sum(1), 1, atol=1e-5)


def test_the_record_says_what_is_unknown(folder, classes):
    import_artifact(folder)
    record = CLASSIFIERS.find("theirs").record
    said = "\n".join(CLASSIFIERS.kind.describe(record))
    for words in (
        "imported from open-constitution",
        "unknown: which prompts",
        "unknown: how often its threshold",
        "block_threshold 0.65",
        "allow_threshold 0.35: `uncertain`",
        'left out: data_path "data/training_data.jsonl"',
        "left out: seed 0",
        "left out: metrics",
    ):
        assert words in said
    assert ("does not tell refusals" in said) == (classes == TWO)
    assert (record.threshold, record.uncertain) == (0.65, 0.35)
    assert (record.base.id, record.base.sha256) == ("answerdotai/ModernBERT-base", None)
    assert SecondOpinion().levels(load_classifier("theirs", device="cpu")) == (0.35, 0.65)


def test_it_is_scored_on_the_classes_that_it_has(folder, classes):
    import_artifact(folder)
    found = evaluate(load_classifier("theirs", device="cpu"), synthetic(60))
    assert found.classes == (LABELS if classes == THREE else ("safe", "unsafe"))
    assert found.n_seen is None


def edit(folder, **changes):
    path = folder / "classifier_config.json"
    settings = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in settings.items() if v is not None}))


def spoil(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def to_pickle(folder, name="pytorch_model.bin", change=dict):
    """Weights as transformers saved them before safetensors: an ordered state_dict."""
    tensors = OrderedDict(change(load_file(folder / "model.safetensors")))
    torch.save(tensors, folder / name)
    (folder / "model.safetensors").unlink()


class Call:
    def __reduce__(self):
        return os.mkdir, (str(MARKER),)


MARKER = Path(tempfile.gettempdir()) / f"marker-{os.getpid()}"


def to_hostile(folder):
    to_pickle(folder, change=lambda tensors: tensors | {"more": Call()})


def with_code(folder):
    path = folder / "config.json"
    settings = json.loads(path.read_text())
    settings |= {"model_type": "own", "auto_map": {"AutoConfig": "own.Config"}}
    path.write_text(json.dumps(settings))
    (folder / "own.py").write_text(f"open({str(folder / 'marker')!r}, 'w')\n")


def without_ends(folder):
    path = folder / "tokenizer.json"
    settings = json.loads(path.read_text()) | {"post_processor": None}
    path.write_text(json.dumps(settings))


def link(folder, name):
    target = folder.parent / f"secret-{name}"
    shutil.move(folder / name, target)
    os.symlink(target, folder / name)


REFUSED = {
    "no length": (lambda f: edit(f, max_length=None), "`max_length` is missing"),
    "no threshold": (lambda f: edit(f, block_threshold=None), "`block_threshold` is missing"),
    "no classes": (lambda f: edit(f, label_mapping=None), "`label_mapping` is missing"),
    "other classes": (lambda f: edit(f, label_mapping={"0": "a", "1": "b"}), "classes"),
    "classes turned": (lambda f: edit(f, label_mapping={"0": "unsafe", "1": "safe"}), "classes"),
    "classes that do not fit": (
        lambda f: edit(f, label_mapping=TWO if len(read(f)) == 3 else THREE),
        "classes in place of",
    ),
    "another text": (lambda f: edit(f, text_format="chatml"), "text format"),
    "newer": (lambda f: edit(f, schema_version=3), "newer than is known"),
    "too long": (lambda f: edit(f, max_length=4096), "max_length"),
    "an absurd length": (lambda f: edit(f, max_length=10**12), "max_length"),
    "broken settings": (lambda f: (f / "classifier_config.json").write_text("{"), "not valid"),
    "half the weights": (
        lambda f: (f / "model.safetensors").write_bytes(
            (f / "model.safetensors").read_bytes()[:500]
        ),
        "weight file .* is damaged",
    ),
    "weights missing": (
        lambda f: spoil(f, lambda t: t.pop("classifier.weight")),
        "lacks classifier",
    ),
    "NaN": (lambda f: spoil(f, lambda t: t["classifier.weight"].fill_(float("nan"))), "finite"),
    "pickled in parts": (
        lambda f: to_pickle(f, "pytorch_model-00001-of-00002.bin"),
        "pickled",
    ),
    "a hostile pickle": (to_hostile, "nothing in it was run"),
    "half a pickle": (
        lambda f: (to_pickle(f), os.truncate(f / "pytorch_model.bin", 900)),
        "damaged",
    ),
    "a pickle that lacks tensors": (
        lambda f: to_pickle(f, change=lambda t: {k: t[k] for k in t if "classifier" not in k}),
        "lacks classifier",
    ),
    "a pickle of something else": (
        lambda f: to_pickle(f, change=lambda t: {"epoch": 3, "state": t}),
        "not the state_dict",
    ),
    "code": (with_code, "code"),
    "other special tokens": (without_ends, "special tokens"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "no model weights"),
    "no config": (lambda f: (f / "config.json").unlink(), "no file"),
    "a link": (lambda f: link(f, "tokenizer.json"), "link to another place"),
    "linked weights": (lambda f: link(f, "model.safetensors"), "link to another place"),
}


def read(folder):
    return json.loads((folder / "classifier_config.json").read_text())["label_mapping"]


@pytest.mark.parametrize("kind", REFUSED)
def test_what_does_not_fit_gets_one_line_and_leaves_nothing(folder, kind, tmp_path):
    change, words = REFUSED[kind]
    change(folder)
    with pytest.raises(InputError, match=words) as refused:
        import_artifact(folder)
    assert "\n" not in str(refused.value)
    assert ".partial" not in str(refused.value)
    assert not (folder / "marker").exists()
    assert not MARKER.exists()
    assert [*(tmp_path / "judges").glob("*")] == []


def test_the_classes_of_a_record_are_those_of_its_scheme(folder, classes, tmp_path):
    found = import_artifact(folder)
    path = found.folder / "classifier.json"
    values = json.loads(path.read_text())
    assert values["scheme"] == ("binary" if classes == TWO else "three-class")
    values["scheme"] = "three-class" if classes == TWO else "binary"
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="the labels must be"):
        CLASSIFIERS.open(found.folder)


def test_the_base_may_be_unknown_only_where_it_is_imported(folder):
    found = import_artifact(folder)
    path = found.folder / "classifier.json"
    values = json.loads(path.read_text())
    values["imported"] = None
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="base.sha256 is missing"):
        CLASSIFIERS.open(found.folder)


def test_thresholds_out_of_order_are_refused(folder):
    edit(folder, allow_threshold=0.9)
    with pytest.raises(InputError, match="allow_threshold must not lie above"):
        import_artifact(folder)
    edit(folder, allow_threshold=0)
    import_artifact(folder)
    assert CLASSIFIERS.find("theirs").record.uncertain == pytest.approx(1e-6)
