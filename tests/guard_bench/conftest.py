"""What the tests of guard_bench share."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))
