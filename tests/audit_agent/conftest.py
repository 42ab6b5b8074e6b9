"""A tiny base and a fine-tune of it, and the config of their audit."""

from __future__ import annotations

import pytest

from agents import audit_config, tiny_pair


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    return tiny_pair(tmp_path_factory.mktemp("models"))


@pytest.fixture
def config(models, tmp_path):
    return audit_config(models, tmp_path)
