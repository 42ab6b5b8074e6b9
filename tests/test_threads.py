"""Threads are shared by all runs on a machine, also after some of them were killed."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
import torch

from modelassay import threads
from modelassay.progress import silent
from modelassay.threads import Worker, active_workers, sharing

OTHER = """
import sys
from modelassay.threads import Worker
with Worker():
    print("here", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def four_cores(tmp_path, monkeypatch):
    """A machine of four cores, on which nothing else of ours runs."""
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path))
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "load", lambda: 0.0)
    monkeypatch.setattr(threads, "COUNTED_FOR", 0.0)
    monkeypatch.setattr(threads._COUNT, "_most", 4)
    before = torch.get_num_threads()
    threads._COUNT.forget()
    yield
    torch.set_num_threads(before)


def test_a_run_shares_with_another_process_until_that_is_killed(four_cores):
    seen = []

    def on_progress(_phase, done, _total):
        seen.append((done, torch.get_num_threads()))

    other: list[subprocess.Popen] = []

    @sharing
    def run(on_progress=silent):
        on_progress("reading", 0, 3)
        other.append(
            subprocess.Popen(
                [sys.executable, "-c", OTHER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        )
        assert other[0].stdout.readline() == "here\n"
        on_progress("reading", 1, 3)
        other[0].kill()  # without a word to anybody
        other[0].wait()
        on_progress("reading", 2, 3)

    run(on_progress=on_progress)
    assert seen == [(0, 4), (1, 2), (2, 4)]
    assert active_workers() == 0


def test_one_call_within_another_is_the_same_worker(four_cores):
    @sharing
    def inner():
        return active_workers()

    @sharing
    def outer():
        return inner()

    assert outer() == 1
    with Worker(), Worker():
        assert active_workers() == 2
        assert torch.get_num_threads() == 2
    assert torch.get_num_threads() == 4


def test_a_cache_that_cannot_be_written_stops_nobody(four_cores, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "file"))
    with Worker(), Worker():
        assert active_workers() == 2
    assert active_workers() == 0


def test_a_share_is_cheap_enough_for_each_token(four_cores, monkeypatch):
    monkeypatch.setattr(threads, "COUNTED_FOR", 0.5)
    with Worker() as worker:
        started = time.process_time()
        for _ in range(200):
            worker.share()
        assert (time.process_time() - started) / 200 < 0.002


def test_other_programs_leave_less_to_share(four_cores, monkeypatch):
    shares = []
    for busy in (0.0, 4.0, 5.0, 6.2, 30.0):
        monkeypatch.setattr(threads, "load", lambda busy=busy: busy)
        shares.append((threads.fair_share(1), threads.fair_share(2), threads.fair_share(9)))
    assert shares == [(4, 2, 1), (4, 2, 1), (3, 2, 1), (2, 1, 1), (1, 1, 1)]
