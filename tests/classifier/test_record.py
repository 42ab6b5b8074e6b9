"""Classifiers on the Hub: pushed, pulled and asked."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from exchanges import synthetic
from modelassay.classifier import CLASSIFIERS, find_classifier, load_classifier
from modelassay.classifier.evaluating import recalibrate
from modelassay.errors import InputError


def test_a_whole_classifier_is_pushed_pulled_and_asked(hub, copy, tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CLASSIFIERS", str(tmp_path / "own"))
    hub.add_writer("hf_mine", "alice")
    mine = Path(shutil.move(copy, tmp_path / "mine"))
    pushed = CLASSIFIERS.push(CLASSIFIERS.open(mine), "alice/judges", token="hf_mine")
    pair = [("a prompt", "zap zorp zing")]
    before = load_classifier(str(mine), device="cpu").predict(pair)
    there = load_classifier(f"alice/judges:mine@{pushed.commit}", device="cpu")
    assert np.array_equal(there.predict(pair), before)
    CLASSIFIERS.pull("alice/judges")
    kept = load_classifier("mine", device="cpu")
    assert np.array_equal(kept.predict(pair), before)
    assert kept.origin.author == "alice"
    with pytest.raises(InputError, match="not yours to change"):
        recalibrate(kept, synthetic(30))


def test_a_classifier_in_a_model_repository_is_found_as_before(hub, trained, caplog):
    files = {path.name: path.read_bytes() for path in trained.iterdir()}
    commit = hub.add_repo("models", "bob/judge", files)
    found = load_classifier("bob/judge", device="cpu")
    assert (found.origin.author, found.origin.revision, found.origin.on_main) == (
        "bob",
        commit,
        True,
    )
    assert "by bob" in caplog.text
    hub.add_commit("models", "bob/judge", {**files, "more.txt": b""})
    assert not find_classifier("bob/judge", revision=commit).origin.on_main
