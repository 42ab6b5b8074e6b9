"""Where a result comes from: versions, time and hashes, written the same way in every record."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import modelassay

LIBRARIES = ("modelassay", "torch", "transformers", "numpy")
"""What the numbers of most results depend on."""
SHOWN_DIGITS = 16


def utc_now(timespec: str = "seconds") -> str:
    """The time in UTC, as in `2026-01-31T09:05:00Z`.

    Args:
        timespec: Precision, as `datetime.isoformat` names it.
    """
    return datetime.now(timezone.utc).isoformat(timespec=timespec).replace("+00:00", "Z")


def installed_versions(*packages: str) -> dict[str, str]:
    """Versions of packages, by default of `LIBRARIES`; those without metadata are left out."""
    found = {}
    for name in packages or LIBRARIES:
        try:
            # A checkout that is not installed knows its own version all the same.
            found[name] = modelassay.__version__ if name == "modelassay" else version(name)
        except PackageNotFoundError:
            continue
    return found


def text_hash(text: str) -> str:
    """sha256 of a text in hexadecimal; lone surrogates count as question marks."""
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()


def file_hash(path: Path) -> str:
    """sha256 of a file in hexadecimal.

    Raises:
        OSError: it cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while part := stream.read(1 << 22):
            digest.update(part)
    return digest.hexdigest()


def json_hash(value: Any, *, compact: bool = False) -> str:
    """sha256 of a JSON value, whatever the order of its keys.

    Args:
        value: Anything else than JSON values in it counts as its text.
        compact: Hash the value as written without spaces and with characters as they are.
    """
    style: dict[str, Any] = {"ensure_ascii": False, "separators": (",", ":")} if compact else {}
    return text_hash(json.dumps(value, sort_keys=True, default=str, **style))


def redact(text: str) -> dict[str, Any]:
    """What stands in a text's place: its length in characters and the begin of its sha256."""
    return {"characters": len(text), "sha256": text_hash(text)[:SHOWN_DIGITS]}
