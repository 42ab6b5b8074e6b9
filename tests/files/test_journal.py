"""Journals: what a kill leaves, and whose they are."""

from __future__ import annotations

import json
import resource

import pytest

from modelassay.errors import InputError, UnavailableError
from modelassay.files.journal import open_journal


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))


def opened(path, identity=None, **options):
    return open_journal(
        path, "a/1", identity or {"of": 1}, called="entries", option="--out", **options
    )


def test_goes_on_after_a_torn_line(tmp_path):
    path = tmp_path / "j"
    with opened(path) as journal:
        for n in range(3):
            journal.add({"n": n}, sync=n == 2)
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"n": 3')
    with opened(path) as journal:
        assert [json.loads(line)["n"] for line in journal.entries()] == [0, 1, 2]
        assert path.read_bytes() == whole
        journal.keep(1)
        journal.add({"n": "new"})
        assert [json.loads(line)["n"] for line in journal.entries()] == [0, "new"]
        journal.add({"n": "last"})  # entries may be read between
    with opened(path) as journal:
        assert [json.loads(line)["n"] for line in journal.entries()] == [0, "new", "last"]


def test_another_runs_is_left_alone(tmp_path):
    path = tmp_path / "j"
    with opened(path) as journal:
        journal.add({"n": 1})
    before = path.read_bytes()
    with pytest.raises(InputError, match=r"entries of another run \(other of\).*--force"):
        opened(path, {"of": 2}).__enter__()
    assert path.read_bytes() == before
    with opened(path, {"of": 2}, force=True) as journal:
        assert list(journal.entries()) == []
    for strange in ("hello\n", '{"schema": "b/1"}\n', "[" * 100_000, '"text"\n'):
        path.write_text(strange)
        with pytest.raises(InputError, match="is not a file of entries; give another name"):
            opened(path, force=True).__enter__()
        assert path.read_text() == strange
    with pytest.raises(InputError, match="is a folder"):
        opened(tmp_path).__enter__()
    with pytest.raises(InputError, match="no folder"):
        opened(tmp_path / "no" / "j").__enter__()


@pytest.fixture
def little_room():
    """Files may get no larger than 20 kB; more is answered as by a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("sync", [True, False])
def test_a_full_disk_is_told_in_one_line_and_keeps_what_was_written(tmp_path, little_room, sync):
    path = tmp_path / "j"

    def fill():
        with opened(path) as journal:
            for n in range(1000):
                journal.add({"n": n, "text": "x" * 100}, sync=sync)

    with pytest.raises(UnavailableError, match="Cannot write"):
        fill()
    with opened(path) as journal:
        kept = [json.loads(line)["n"] for line in journal.entries()]
    assert kept == list(range(len(kept)))
    assert len(kept) > 100
