"""What the tests of the Hub share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fetched import files_of


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Takes the pauses out of the client's retries; holds their lengths."""
    pauses: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", pauses.append)
    return pauses


@pytest.fixture
def llama(tiny_folder: Callable[..., Path]) -> dict[str, bytes]:
    return files_of(tiny_folder("llama"))
