"""A tiny base and a fine-tune of it, and an agent behind an endpoint of this machine."""

from __future__ import annotations

import pytest

from agents import agent_endpoint, audit_config, tiny_pair


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(models, tmp_path):
    return audit_config(models, tmp_path)


@pytest.fixture
def endpoint(monkeypatch):
    yield from agent_endpoint(monkeypatch)
