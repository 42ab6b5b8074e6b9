"""Files and folders are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path
from threading import Event, Thread

import pytest
import safetensors.torch
import torch

from disks import as_nobody, refusal
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import (
    ASIDE_PREFIX,
    PARTIAL_PREFIX,
    explain_os_errors,
    locked,
    new_folder,
    write_text_atomically,
)


def test_the_disk_is_full_while_weights_are_saved(small_disk):
    """safetensors raises an error of its own, which is not an OSError."""

    def save() -> None:
        with explain_os_errors("saving"), new_folder(small_disk / "new") as folder:
            safetensors.torch.save_file({"a": torch.zeros(1 << 20)}, folder / "model.safetensors")

    assert "disk is full while saving" in refusal(UnavailableError, save)
    assert list(small_disk.iterdir()) == []


def test_the_disk_is_full_while_a_report_is_written(small_disk):
    report = small_disk / "report.html"
    report.write_text("old")
    message = refusal(UnavailableError, write_text_atomically, report, "new" * (1 << 20))
    assert f"disk is full while writing {report}" in message
    assert report.read_text() == "old"
    assert list(small_disk.iterdir()) == [report]


def test_a_report_in_a_forbidden_folder(forbidden):
    report = forbidden / "report.html"
    with as_nobody():
        message = refusal(UnavailableError, write_text_atomically, report, "new")
    assert f"Cannot write {forbidden}/ while writing {report} (Permission denied)" in message
    forbidden.chmod(0o755)
    assert report.read_text() == "old"


def test_reports_that_cannot_be_written(tmp_path):
    missing = tmp_path / "gone" / "report.html"
    assert "No such file or directory" in refusal(
        UnavailableError, write_text_atomically, missing, "x"
    )
    folder = tmp_path / "folder"
    folder.mkdir()
    assert "Is a directory" in refusal(UnavailableError, write_text_atomically, folder, "x")
    name = tmp_path / ("a" * 300)
    assert "File name too long" in refusal(UnavailableError, write_text_atomically, name, "x")
    assert list(tmp_path.iterdir()) == [folder]


def test_text_is_written_as_others_may_read_it(tmp_path):
    path = tmp_path / "report.html"
    mask = os.umask(0o022)
    try:
        write_text_atomically(path, "Ünïcödé\n")
        write_text_atomically(path, "日本語\n")
    finally:
        os.umask(mask)
    assert path.read_bytes() == "日本語\n".encode()
    assert path.stat().st_mode & 0o777 == 0o644
    assert list(tmp_path.iterdir()) == [path]


def test_text_that_is_not_utf8_leaves_the_old_file(tmp_path):
    path = tmp_path / "report.html"
    write_text_atomically(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text_atomically(path, "\ud800")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_new_folder_appears_whole_and_stale_ones_go(tmp_path):
    target, stranger = tmp_path / "model", tmp_path / f"{PARTIAL_PREFIX}other-1"
    stale = tmp_path / f"{PARTIAL_PREFIX}model-abc"
    for folder in (stale, stranger):
        folder.mkdir()
        (folder / "weights").touch()
    with new_folder(target) as partial:
        assert not stale.exists()
        (partial / "weights").write_text("whole")
        assert not target.exists()
    assert (target / "weights").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {"model", stranger.name}


def test_a_new_folder_takes_the_place_of_an_old_one_when_it_is_whole(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    with new_folder(target) as partial:
        (partial / "new").touch(mode=0o600)
        assert (target / "old").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert [path.name for path in target.iterdir()] == ["new"]
    umask = os.umask(0)
    os.umask(umask)
    assert (target / "new").stat().st_mode & 0o777 == 0o666 & ~umask
    with pytest.raises(ZeroDivisionError), new_folder(target):
        _ = 1 / 0
    assert [path.name for path in target.iterdir()] == ["new"]


def test_a_replacement_that_fails_at_the_last_rename_loses_nothing(tmp_path, monkeypatch):
    target = tmp_path / "model"
    target.mkdir()
    (target / "old").touch()
    rename = os.replace

    def fail_once(source, goal):
        if Path(goal) == target and Path(source).name.startswith(PARTIAL_PREFIX):
            raise OSError("no")
        rename(source, goal)

    monkeypatch.setattr(os, "replace", fail_once)
    with pytest.raises(OSError, match="no"), new_folder(target):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "old").exists()


def test_a_run_killed_between_the_renames_loses_nothing(tmp_path):
    target, aside = tmp_path / "model", tmp_path / f"{ASIDE_PREFIX}model"
    aside.mkdir()
    (aside / "old").touch()
    with pytest.raises(ZeroDivisionError), new_folder(target):
        _ = 1 / 0
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert (target / "old").exists()


def test_a_new_folder_is_not_made_when_its_block_fails(tmp_path):
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "model"):
        _ = 1 / 0
    assert list(tmp_path.iterdir()) == []


def test_errors_that_are_no_writing_are_let_through():
    with pytest.raises(ZeroDivisionError), explain_os_errors("testing"):
        _ = 1 / 0
    with pytest.raises(InputError, match="mine"), explain_os_errors("testing"):
        raise InputError("mine")


def test_a_lock_can_be_waited_for(tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    target, entered = tmp_path / "model", Event()

    def prepare():
        with locked(target, awaited="the model"):
            entered.set()

    waiting = Thread(target=prepare)
    with locked(target):
        with pytest.raises(UnavailableError, match="Another process is writing"), locked(target):
            pass
        waiting.start()
        assert not entered.wait(0.3)
    waiting.join(10)
    assert entered.is_set()
    assert "Another process is preparing the model; waiting for it." in caplog.text
