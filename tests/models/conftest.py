"""What the tests of models share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from checkpoints import edit_json, write_gguf


@pytest.fixture
def copy(tiny_folder: Callable[..., Path], tmp_path: Path) -> Callable[..., Path]:
    """A copy of a saved tiny model, to be damaged."""

    def get(family: str = "llama", **changes: Any) -> Path:
        folder = tmp_path / "model"
        shutil.copytree(tiny_folder(family), folder)
        if changes:
            edit_json(folder / "config.json", **changes)
        return folder

    return get


@pytest.fixture(scope="session")
def gguf_file(tiny_folder: Callable[..., Path], tmp_path_factory) -> Path:
    return write_gguf(tiny_folder(), tmp_path_factory.mktemp("gguf") / "tiny.gguf")
