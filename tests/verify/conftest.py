"""What the tests of verify share."""

from __future__ import annotations

from pathlib import Path

import pytest

import modelassay
from modelassay.data.concepts import concepts_for
from modelassay.measures.examination import examine
from modelassay.verify import Baseline, save_baseline
from modelassay.verify.creating import baseline_of


@pytest.fixture(scope="session")
def baseline(tiny_folder) -> Baseline:
    """A baseline of the tiny llama."""
    model = modelassay.load(str(tiny_folder()), device="cpu")
    found = examine(model, mode="quick", concepts=concepts_for("quick"), identity=True)
    return baseline_of(model, found, "tiny", "owner/tiny")


@pytest.fixture
def saved(baseline, tmp_path) -> Path:
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_baseline(baseline, folder)
    return folder


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MODELASSAY_BASELINES", str(tmp_path / "store"))
    return tmp_path / "store"
