"""Where modelassay keeps files between runs, and how it writes them.

Everything lives under one folder: `MODELASSAY_CACHE`, else the platform's user cache folder.
Files and folders appear under their final name only when they are complete.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from modelassay.errors import AssayError, UnavailableError, first_line

log = logging.getLogger(__name__)

PARTIAL_PREFIX = ".partial-"
ASIDE_PREFIX = ".replaced-"


def _read_umask() -> int:
    """The process's umask, which can only be read by setting it."""
    umask = os.umask(0o077)
    os.umask(umask)
    return umask


_UMASK = _read_umask()  # on import, before other threads make files


def cache_dir() -> Path:
    """The cache folder; it need not exist yet."""
    override = os.environ.get("MODELASSAY_CACHE")
    if override:
        return Path(override).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("modelassay")


@contextmanager
def explain_os_errors(doing: str) -> Iterator[None]:
    """Turns a full disk or a forbidden folder into one line that names what was being done."""
    try:
        yield
    except AssayError:
        raise
    except Exception as error:
        # safetensors raises an error of its own for a full disk, so the text is looked at as well.
        code = error.errno if isinstance(error, OSError) else None
        if code in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error):
            raise UnavailableError(
                f"The disk is full while {doing}; free some space or set MODELASSAY_CACHE to a"
                " folder on another disk."
            ) from error
        if not isinstance(error, OSError):
            raise
        # Of a temporary file the folder is what matters.
        where = str(error.filename or "there").partition(PARTIAL_PREFIX)[0]
        raise UnavailableError(
            f"Cannot write {where} while {doing} ({error.strerror or first_line(error)}); choose"
            " another folder (MODELASSAY_CACHE for the cache)."
        ) from error


@contextmanager
def locked(target: Path, *, awaited: str | None = None) -> Iterator[None]:
    """Keeps other processes from writing `target` meanwhile.

    The lock is a file in the cache folder, which stays: removing one that others may be opening
    would let two of them in.

    Args:
        target: What is written.
        awaited: What another process that holds the lock prepares, for the log, where that is to be
            waited for.

    Raises:
        UnavailableError: another process holds it, and it is not to be waited for.
    """
    from filelock import FileLock, Timeout

    name = hashlib.sha256(os.path.abspath(target).encode()).hexdigest()[:32]
    folder = cache_dir() / "locks"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / name)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        if awaited is None:
            raise UnavailableError(f"Another process is writing {target}; wait for it.") from error
        log.warning("Another process is preparing %s; waiting for it.", awaited)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_space(folder: Path, needed: int, what: str, advice: str) -> None:
    """Refuses a disk that is too full.

    Args:
        folder: Existing folder on that disk.
        needed: Bytes.
        what: What needs them; begins the error.
        advice: What to do about it; ends the error.

    Raises:
        UnavailableError: there is less room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(
            f"{what} needs about {needed / 1e6:.0f} MB in {folder} but only {free / 1e6:.0f} MB are"
            f" free; {advice}."
        )


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """Gives a temporary folder beside `target` that becomes `target` if the work in it succeeds.

    A folder that has that name already is there, whole, until the new one is complete. The caller
    holds a lock on `target`, so partial folders of killed runs are removed here.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for stale in target.parent.glob(f"{PARTIAL_PREFIX}{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    aside = target.parent / f"{ASIDE_PREFIX}{target.name}"
    if aside.exists() and not target.exists():
        os.replace(aside, target)  # a run was killed between two renames
    partial = Path(tempfile.mkdtemp(prefix=f"{PARTIAL_PREFIX}{target.name}-", dir=target.parent))
    try:
        yield partial
        for path in (partial, *partial.rglob("*")):
            _make_readable(path)
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():
            os.replace(target, aside)
        try:
            os.replace(partial, target)
        except BaseException:
            if aside.exists():
                os.replace(aside, target)
            raise
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _make_readable(path: Path | str) -> None:
    """Gives a file or folder the usual mode: temporary ones are private, and results are not."""
    os.chmod(path, (0o777 if os.path.isdir(path) else 0o666) & ~_UMASK)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Gives a temporary name beside `path` that becomes `path` if the work in it succeeds."""
    handle, name = tempfile.mkstemp(prefix=f"{PARTIAL_PREFIX}{path.name}-", dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
        _make_readable(name)
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def write_rows_atomically(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows as JSON lines, one after the other, to a temporary name, then renames it.

    Args:
        path: The file.
        rows: What JSON does not know is written as its text.

    Raises:
        UnavailableError: no room, or no permission.
    """
    with (
        explain_os_errors(f"writing {path}"),
        new_file(path) as partial,
        partial.open("w", encoding="utf-8") as stream,
    ):
        for row in rows:
            stream.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")


def write_text_atomically(path: Path, text: str) -> None:
    """Writes UTF-8 text to a temporary name beside `path`, then renames it."""
    with explain_os_errors(f"writing {path}"), new_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
