"""What the tests of diff share."""

from __future__ import annotations

import pytest

from tiny import save_tiny


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A tiny model whose layers have a bias, so that a constant can be planted in one."""
    return save_tiny(tmp_path_factory.mktemp("models") / "base", "gpt2")
