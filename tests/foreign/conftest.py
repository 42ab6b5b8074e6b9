"""What the tests of foreign files share."""

from __future__ import annotations

import pytest

from exchanges import save_tiny_bert


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path / "store"))
    monkeypatch.setenv("MODELASSAY_CLASSIFIERS", str(tmp_path / "judges"))


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return save_tiny_bert(tmp_path_factory.mktemp("bert") / "tiny-bert")
