"""What is fetched from a Hub on this machine, and what must fail."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelassay.errors import EXIT_UNAVAILABLE, AssayError
from modelassay.models.sources import Source

TOKEN = "hf_tokenOfTheOwner"
OTHER_TOKEN = "hf_tokenOfSomebodyElse"
WEIGHTS = bytes(range(256)) * 200
SMALL = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}


def files_of(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.is_file()}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def failure(action: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[int, str]:
    """Exit code and line of what must fail, and must fail as an AssayError."""
    with pytest.raises(AssayError) as caught:
        action(*arguments, **options)
    line = str(caught.value)
    assert "\n" not in line
    assert "hf_token" not in line
    return caught.value.exit_code, line


def weights(source: Source) -> bytes:
    (file,) = source.weight_files()
    return file.read_bytes()


NOT_THERE = (
    "No model {!r} on the Hub that you may see: check the spelling, or pass a token if it is"
    " private. A local model is given as a path."
)


def unreachable(name: str) -> tuple[int, str]:
    return (
        EXIT_UNAVAILABLE,
        f"The Hub cannot be reached and {name} is not in the local cache; check the network, or"
        " give a local folder, or `embedded`.",
    )
