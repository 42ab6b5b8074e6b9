"""Texts that a report names without showing them."""

from __future__ import annotations

from typing import Any

from modelassay.files.provenance import text_hash

SHOWN_DIGITS = 16


def redact(text: str) -> dict[str, Any]:
    """What stands in a text's place: its length in characters and the begin of its sha256."""
    return {"characters": len(text), "sha256": text_hash(text)[:SHOWN_DIGITS]}
