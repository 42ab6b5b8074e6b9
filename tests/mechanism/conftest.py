"""A tiny model with room for whole requests in their attacks."""

from __future__ import annotations

import pytest

from modelassay.models import load


@pytest.fixture(scope="module")
def roomy(tiny_folder):
    model = load(str(tiny_folder(seed=7)), device="cpu")
    model.network.config.max_position_embeddings = 4096
    return model
