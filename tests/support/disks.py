"""Disks that are full and folders that are forbidden, for tests of what is written there."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import zipfile
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import safetensors.torch
from safetensors import SafetensorError

from modelassay.errors import AssayError


def refusal(kind: type[AssayError], call: Callable[..., object], *args: object) -> str:
    with pytest.raises(kind) as caught:
        call(*args)
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    return message


def mounted(folder: Path, options: str) -> bool:
    """Mounts a small disk, which only root may do."""
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on a disk of 1 MB; where none can be mounted, files in it fail as on a full one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if mounted(folder, "size=1m"):
        yield folder
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        return

    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def full_for_safetensors(*_args: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(1 << 20, 0, 1 << 20))
    monkeypatch.setattr(os, "fdopen", full)
    monkeypatch.setattr(safetensors.torch, "save_file", full_for_safetensors)
    monkeypatch.setattr(zipfile.ZipFile, "extract", full)
    yield folder


@contextlib.contextmanager
def as_nobody() -> Iterator[None]:
    """Root may write anywhere; this gives up that right for a moment."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture(params=[0o555, 0o000])
def forbidden(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A folder in which nothing may be made, or not even looked for."""
    with tempfile.TemporaryDirectory() as name:  # pytest's own folders are closed to `nobody`
        folder = Path(name) / "forbidden"
        folder.mkdir()
        folder.parent.chmod(0o755)
        (folder / "report.html").write_text("old")
        folder.chmod(request.param)
        yield folder
        folder.chmod(0o755)
