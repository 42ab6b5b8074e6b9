"""What the tests of classifier share."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from exchanges import RECIPE, save_tiny_bert, synthetic
from modelassay.classifier import load_classifier, model, train_classifier, training


@pytest.fixture(scope="session")
def bert(tmp_path_factory) -> Path:
    return save_tiny_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch, request):
    if "real_model" not in request.keywords:
        monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture
def embedded_is_tiny(bert, monkeypatch):
    """The tiny encoder in place of the one from PyPI."""
    monkeypatch.setattr(model, "ensure_encoder", lambda: bert)
    monkeypatch.setattr(training, "ensure_encoder", lambda: bert)


@pytest.fixture(scope="session")
def trained(bert, tmp_path_factory) -> Path:
    """A whole sequence classifier, trained on synthetic rows."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))
        out = tmp_path_factory.mktemp("trained") / "classifier"
        return train_classifier(synthetic(240), encoder=str(bert), out=out, recipe=RECIPE)


@pytest.fixture
def copy(trained, tmp_path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def tokenizer(bert):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(bert)


@pytest.fixture(scope="session")
def shipped():
    return load_classifier("embedded", device="cpu")
