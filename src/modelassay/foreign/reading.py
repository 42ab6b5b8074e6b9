"""What all files of other tools have in common: where they may lie, and what a setting says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelassay.errors import InputError

VERSIONS = ("version", "schema", "schema_version", "format", "format_version")
"""Settings that say of which layout a file is; those that are known have none."""
MAX_SHOWN = 60


def plain_file(path: Path) -> Path:
    """The file, if it is a plain one that lies where it says.

    A link out of its folder could bring in any file of this machine. Links into the Hub's cache are
    how its snapshots are made.

    Raises:
        InputError: it is not there, not a plain file, or a link that leads elsewhere.
    """
    target = path.resolve()
    if not path.exists():
        raise InputError(f"There is no file {path}.")
    if not target.is_file():
        raise InputError(f"{path} is not a plain file.")
    folder = path.absolute().parent
    inside = target.parent.is_relative_to(folder.resolve())
    blobs = folder.resolve().parent.parent / "blobs"
    if path.is_symlink() and not inside and target.parent != blobs:
        raise InputError(f"{path} is a link to another place; put the file itself there.")
    return path


def shown(value: Any) -> str:
    """A setting of a stranger's file as it may stand in a line: short, and in ASCII."""
    text = json.dumps(value, default=str)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"


def refuse_newer(settings: Mapping[str, Any], path: Path) -> None:
    """Refuses a file that says of which layout it is, as none that is known does.

    Raises:
        InputError: names the setting.
    """
    found = next((name for name in VERSIONS if name in settings), None)
    if found is not None:
        raise InputError(
            f"{path} is of a layout that is newer than is known here ({found}:"
            f" {shown(settings[found])}); update modelassay."
        )


def left_out(settings: Mapping[str, Any], why: Mapping[str, str]) -> list[str]:
    """A line for each setting that has no counterpart.

    Args:
        settings: What a file says beyond what is used.
        why: What is done in the place of the ones that are known.
    """
    return [
        f"{shown(name)[1:-1]} {shown(value)}: {why.get(name, 'not known here')}"
        for name, value in list(settings.items())[:80]
    ]
