"""What the tests of monitors share."""

from __future__ import annotations

import pytest

from modelassay.monitors import build_monitor
from monitored import fine_tuned, ordinary


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELASSAY_MONITORS", str(tmp_path / "store"))


@pytest.fixture(scope="session")
def tuned(tiny, tmp_path_factory):
    """A fine-tune of a tiny model that does something new at one letter."""
    return fine_tuned(tiny(), tmp_path_factory.mktemp("tuned"))


@pytest.fixture(scope="session")
def monitor(tiny, tuned):
    """A monitor of it."""
    return build_monitor(tiny(), tuned, name="mine", prompts=ordinary(120), response_tokens=4)
