"""Paths that a tool is given: inside the audit's folder, or refused with the reason."""

from __future__ import annotations

import stat
from pathlib import Path, PurePath

from modelassay.errors import InputError, first_line

MAX_PATH = 500


def inside(folder: Path, given: str) -> Path:
    """The file that is meant.

    Args:
        folder: The audit's folder.
        given: What the tool was given: a path relative to it, or an absolute one below it.

    Raises:
        InputError: it lies elsewhere, goes through `..` or a symbolic link, or is no plain file.
    """
    shown = repr(given[:80])
    if not given.strip() or len(given) > MAX_PATH or "\0" in given:
        raise InputError(f"{shown} is no path of a file in the audit's folder.")
    path = PurePath(given)
    if ".." in path.parts:
        raise InputError(f"{shown} is refused: `..` leads out of the audit's folder.")
    if path.is_absolute():
        try:
            path = path.relative_to(folder)
        except ValueError as error:
            raise InputError(f"{shown} is refused: it is not in the audit's folder.") from error
    place = folder
    try:
        for part in path.parts:
            place = place / part
            mode = place.lstat().st_mode
            if stat.S_ISLNK(mode):
                raise InputError(f"{shown} is refused: {part[:60]!r} is a symbolic link.")
        # A device or a pipe would never end.
        if not stat.S_ISREG(place.lstat().st_mode):
            raise InputError(f"{shown} is refused: it is no plain file.")
    except FileNotFoundError as error:
        raise InputError(f"There is no file {shown} in the audit's folder.") from error
    except OSError as error:
        raise InputError(f"{shown} cannot be read: {first_line(error, 80)}.") from error
    return place
