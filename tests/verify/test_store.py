"""Where baselines are kept: listed, replaced and deleted, and nothing else is."""

from __future__ import annotations

from threading import Event, Thread

import pytest

import modelassay
from modelassay.artifacts import Origin
from modelassay.artifacts.kind import ORIGIN_FILE
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import locked
from modelassay.verify import BASELINES, create_baseline, store_baseline, verify
from modelassay.verify.baseline import INDEX_FILE


def test_the_store_keeps_lists_and_deletes(baseline, store):
    path = store_baseline(baseline)
    assert path == store / "tiny"
    assert [p.name for p in store.iterdir()] == ["tiny"]
    assert ("tiny", "local") in [(f.name, f.origin.source) for f in BASELINES.list()]
    with pytest.raises(InputError, match="--force"):
        store_baseline(baseline)
    store_baseline(baseline, force=True)
    BASELINES.delete("tiny")
    assert not path.exists()
    with pytest.raises(InputError, match="No baseline 'tiny'"):
        BASELINES.delete("tiny")
    with pytest.raises(InputError, match="No baseline"):
        BASELINES.delete("../store")


def test_a_store_that_is_being_written_is_left_alone(baseline, store):
    held, release = Event(), Event()

    def hold():
        with locked(store / "tiny"):
            held.set()
            release.wait(30)

    holder = Thread(target=hold)
    holder.start()
    held.wait(30)
    try:
        with pytest.raises(UnavailableError, match="Another process is writing"):
            store_baseline(baseline)
    finally:
        release.set()
        holder.join()
    assert not (store / "tiny").exists()
    store_baseline(baseline)


def test_only_baselines_are_ever_replaced(baseline, tmp_path):
    precious = tmp_path / "thesis"
    (precious / "sub").mkdir(parents=True)
    (precious / "sub" / "chapter.tex").write_text("years")
    (tmp_path / "file").write_text("mine")
    for out in (precious, tmp_path / "file"):
        with pytest.raises(InputError, match="is not a baseline; give a new folder"):
            store_baseline(baseline, out=out, force=True)
    assert (precious / "sub" / "chapter.tex").read_text() == "years"
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("text", ["{bad", '{"author": ["x"]}', "[]"])
def test_a_damaged_origin_is_an_unknown_one(baseline, store, text):
    pulled = Origin("alice/b:tiny", "hub", "alice", "a" * 40)
    store_baseline(baseline, origin=pulled)
    assert BASELINES.list()[-1].origin.author == "alice"
    (store / "tiny" / ORIGIN_FILE).write_text(text)
    (found,) = [found.origin for found in BASELINES.list() if found.name == "tiny"]
    assert (found.author, found.on_main) == ("an unknown author", False)


def test_a_damaged_baseline_does_not_spoil_the_list(baseline, store):
    store_baseline(baseline)
    (store / "broken").mkdir()
    (store / "broken" / INDEX_FILE).write_text("{")
    assert "tiny" in [found.name for found in BASELINES.list()]
    with pytest.raises(InputError, match="not a valid baseline"):
        verify("embedded", "broken")


def test_names_that_cannot_be_are_refused(tiny_folder):
    with pytest.raises(InputError, match="cannot name a baseline"):
        create_baseline(modelassay.load(str(tiny_folder()), device="cpu"), name="a b")
