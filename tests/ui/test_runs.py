"""Runs that visitors share, models that are kept, and what one visitor may ask for."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("gradio")
import torch

from modelassay.errors import AssayError, InputError, UnavailableError
from modelassay.report.sections import Section, Status
from modelassay.report.stored import StoredReport
from modelassay.ui import limits, report_cache, service
from modelassay.ui.estimates import (
    QUOTAS,
    SMALL_MOST,
    WORKS,
    RunClock,
    Speeds,
    estimate,
    gpu_request,
    gpu_size,
)
from modelassay.ui.limits import Budget, Limits, address
from modelassay.ui.report_cache import ReportCache
from modelassay.ui.runs import Plain, Runs, Step
from modelassay.ui.service import Comparison
from modelassay.ui.shelf import Shelf
from modelassay.ui.targets import KNOWN_BYTES, Target


def begin(runs: Runs, key, work, visitor="a", prepare=lambda _: None):
    """A visitor's run, followed by a thread; what it gave is in the list, once it has ended."""
    got: list = []

    def follow():
        try:
            got.extend(runs.follow(key, visitor, Plain(), prepare, work))
        except AssayError as error:
            got.append(error)

    thread = threading.Thread(target=follow)
    thread.start()
    return thread, got


def wait_until(true, seconds=10.0):
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until
        time.sleep(0.005)


def test_ten_visitors_who_ask_for_the_same_share_one_run():
    runs, goes_on, began = Runs(1, 20, 3), threading.Event(), []

    def work(run, _):
        began.append(1)
        run.tell("reading", 1, 2)
        assert goes_on.wait(10)
        return "report"

    started = [begin(runs, "key", work, visitor=str(i)) for i in range(10)]
    wait_until(lambda: runs._by_key and next(iter(runs._by_key.values())).followers == 10)
    goes_on.set()
    for thread, got in started:
        thread.join(10)
        assert got[-1] == "report"
    assert any(s.phase == "reading" for _, got in started for s in got if isinstance(s, Step))
    assert list(runs.follow("key", "late", Plain(), lambda _: None, work)) == ["report"]
    assert list(runs.follow("other", "late", Plain(), lambda _: None, work))[-1] == "report"
    assert len(began) == 2


def test_what_is_private_is_neither_shared_nor_kept():
    runs, began = Runs(2, 20, 3), []
    for _ in range(2):
        steps = runs.follow(None, "a", Plain(), lambda _: None, lambda *_: began.append(1))
        list(steps)
    assert len(began) == 2
    assert not runs._known


def test_a_run_stops_when_its_last_visitor_has_gone_and_nobody_joins_it_then():
    runs, ended = Runs(1, 20, 3), threading.Event()

    def work(run, _):
        try:
            while True:
                run.tell("reading", 0, 1)
                time.sleep(0.01)
        finally:
            ended.set()

    first = runs.follow("key", "a", Plain(), lambda _: None, work)
    second = runs.follow("key", "b", Plain(), lambda _: None, work)
    next(first), next(second)
    first.close()
    assert not ended.wait(0.2)  # one follows yet
    stopped = time.monotonic()
    second.close()
    assert ended.wait(5)
    assert time.monotonic() - stopped < 1
    wait_until(lambda: runs.waiting() == 0)
    assert list(runs.follow("key", "c", Plain(), lambda _: None, lambda *_: "new"))[-1] == "new"


def test_the_line_says_who_comes_first_and_what_waits_costs_nothing():
    runs, goes_on = Runs(1, 20, 9), threading.Event()
    slow = begin(runs, "slow", lambda *_: goes_on.wait(10))
    wait_until(lambda: len(runs._line) == 1)
    waits = runs.follow("next", "b", Plain(), lambda _: None, lambda *_: "second")
    next(waits)
    wait_until(lambda: len(runs._line) == 2)
    assert next(waits).ahead == 1
    leaves = runs.follow("left", "c", Plain(), lambda _: None, lambda *_: "third")
    next(leaves)
    wait_until(lambda: len(runs._line) == 3)
    leaves.close()  # without having had the machine
    wait_until(lambda: len(runs._line) == 2)
    goes_on.set()
    assert list(waits)[-1] == "second"
    slow[0].join(10)


def test_floods_are_refused_and_the_next_request_works():
    runs, goes_on = Runs(1, 4, 2), threading.Event()
    started = [
        begin(runs, f"{who}{i}", lambda *_: goes_on.wait(10), who) for who in "ab" for i in (1, 2)
    ]
    wait_until(lambda: runs.waiting() == 4)
    for who, message in (("a", "You have 2 runs"), ("c", "Too many people")):
        with pytest.raises(UnavailableError, match=message):
            next(runs.follow("x", who, Plain(), lambda _: None, lambda *_: 1))
    assert isinstance(next(runs.follow("a1", "c", Plain(), lambda _: None, lambda *_: 1)), Step)
    goes_on.set()
    for thread, _ in started:
        thread.join(10)
    assert list(runs.follow("x", "a", Plain(), lambda _: None, lambda *_: 1))[-1] == 1


@pytest.mark.parametrize("where", ["prepare", "work"])
def test_what_goes_wrong_is_a_sentence_and_the_next_request_works(where, caplog):
    runs = Runs(1, 20, 3)

    secret = " ".join(["the", "words"])

    def crash(*_):
        raise ZeroDivisionError(secret)

    def refuse(*_):
        raise InputError("Give another model.")

    def grow(*_):
        raise MemoryError

    def fill(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "/secret/path")

    def fetch(*_):
        raise UnavailableError("m could not be fetched: No space left on device: '/secret/path'")

    for fault, message in (
        (crash, "failed unexpectedly"),
        (refuse, "another model"),
        (grow, "out of memory"),
        (fill, "disk is full"),
        (fetch, "disk is full"),
    ):
        parts = {"prepare": lambda _: None, "work": lambda *_: 1, where: fault}
        with pytest.raises(AssayError, match=message) as caught:
            list(runs.follow("key", "a", Plain(), **parts))
        assert "\n" not in str(caught.value)
        assert "/secret" not in str(caught.value)
    assert secret not in caplog.text
    assert list(runs.follow("key", "a", Plain(), lambda _: None, lambda *_: 1))[-1] == 1
    assert (runs.waiting(), runs._line, runs._by_key) == (0, [], {})


def model(n_bytes: int = 8):
    weights = torch.zeros(n_bytes // 4)
    network = SimpleNamespace(parameters=lambda: [weights])
    return SimpleNamespace(network=network, info=SimpleNamespace(quantization=None))


def test_models_are_kept_within_a_number_and_a_size():
    shelf, loaded = Shelf(most=2, most_bytes=100), []

    def use(key, size=8, keep=True):
        with shelf.lend(key, lambda: loaded.append(key) or model(size), keep=keep) as lent:
            return lent

    first = use("a")
    assert use("a") is first
    use("b"), use("a"), use("c")
    assert (shelf.names(), loaded) == (["a", "c"], ["a", "b", "c"])
    use("large", 400)
    assert "large" not in shelf.names()
    use("private", keep=False)
    assert "private" not in shelf.names()
    with pytest.raises(ZeroDivisionError), shelf.lend("d", model):
        raise ZeroDivisionError  # what was in the middle of a pass may be left in any state
    assert "d" not in shelf.names()


def test_a_model_is_lent_to_one_run_at_a_time():
    shelf, order = Shelf(), []

    def use(name):
        with shelf.lend("a", model):
            order.append(name)
            time.sleep(0.05)
            order.append(name)

    threads = [threading.Thread(target=use, args=(name,)) for name in "xy"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert order in (list("xxyy"), list("yyxx"))


def test_the_embedded_model_asks_for_few_seconds_of_gpu():
    size = KNOWN_BYTES["embedded"]
    asked = {work: gpu_request(work, size) for work in WORKS}
    assert all(asked[w] <= SMALL_MOST == 15 for w in asked if w.startswith(("scan", "v", "c"))
               and w != "circuit")  # fmt: skip
    assert max(asked.values()) < QUOTAS["anonymous visitor"] / 2
    assert asked["scan quick"] < asked["scan standard"]
    seven_billion = 28_000_000_000
    assert asked["scan standard"] < gpu_request("scan standard", seven_billion) < 120
    assert (gpu_size(seven_billion), gpu_size(100_000_000_000)) == ("large", "xlarge")


def test_visitors_are_told_what_a_run_costs():
    told = estimate("scan", KNOWN_BYTES["embedded"], {"mode": "standard"}, on_gpu=True)
    assert "% of the day of a free account" in told.sentence(ahead=2)
    assert told.sentence(ahead=2).endswith("after 2 runs in line.")
    here = estimate("scan", KNOWN_BYTES["embedded"], {"mode": "quick"}, on_gpu=False)
    assert "GPU" not in here.sentence()
    more = estimate("scan", KNOWN_BYTES["embedded"], {"mode": "standard"}, on_gpu=False)
    assert here.seconds < more.seconds


def test_estimates_learn_from_what_ran():
    speeds = Speeds()
    for _ in range(20):
        speeds.learn("diff", "cpu", 10.0, 30.0)
    assert speeds.factor("diff", "cpu") == pytest.approx(3.0, abs=0.1)
    assert speeds.factor("diff", "gpu") == 1.0


def test_percent_only_rises_and_time_left_falls(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("modelassay.ui.estimates.time.monotonic", lambda: now[0])
    clock = RunClock("scan standard", 100.0)
    assert clock.tell(Step("fetching", 0, 1)).percent is None
    told = []
    for at, phase, done, total in (
        (0, "loading", 0, 1),
        (10, "weights", 15, 30),
        (20, "answering", 10, 100),
        (60, "answering", 90, 100),
        (80, "reading", 50, 100),
        (90, "reading", 0, 20),  # a second look
        (95, "statistics", 2, 3),
    ):
        now[0] = at
        told.append(clock.tell(Step(phase, done, total)))
    percents = [step.percent for step in told]
    assert percents == sorted(percents)
    assert percents[-1] > 90
    assert told[0].left > told[3].left > told[-1].left >= 1


def test_a_header_that_a_visitor_writes_does_not_make_them_another(monkeypatch):
    monkeypatch.delenv("SPACE_ID", raising=False)
    assert address("1.2.3.4", "9.9.9.9") == "1.2.3.4"
    monkeypatch.setenv("MODELASSAY_PROXIES", "1")
    seen = {address("10.0.0.1", f"{i}.9.9.9, 1.2.3.4") for i in range(9)}
    assert seen == {"1.2.3.4"}
    assert address("10.0.0.1", "") == "10.0.0.1"
    assert address("10.0.0.1", "<script>") == "10.0.0.1"
    one_house = {address("10.0.0.1", f"2001:db8:1:2::{i}") for i in range(1, 5)}
    assert len(one_house) == 1
    monkeypatch.setenv("MODELASSAY_PROXIES", "lots")
    assert address("1.2.3.4", "9.9.9.9") == "1.2.3.4"


def test_a_budget_fills_again_and_is_each_visitor_s_own():
    budget = Budget(per_minute=60, at_once=3)
    assert [budget.take("a", 0.0) for _ in range(4)] == [0, 0, 0, 1.0]
    assert budget.take("b", 0.0) == 0
    assert budget.take("a", 1.0) == 0
    assert budget.take("a", 1.0) > 0


def test_a_known_result_outlasts_the_page_and_the_disk_stays_small(tmp_path, monkeypatch):
    report = StoredReport(
        {"schema": "modelassay.scan/1", "model": {"id": "embedded"}},
        (Section(name="verdict", status=Status("PASS", "good")),),
    )
    cache = ReportCache(service._opened, service._taken, tmp_path)
    began = []
    for _ in range(2):
        runs = Runs(1, 20, 3, cache)  # the page was started again
        work = lambda *_: began.append(1) or report  # noqa: E731
        *_, found = runs.follow("a" * 64, "a", Plain(), lambda _: None, work)
        assert found.to_dict() == report.to_dict()
    assert began == [1]
    cache.put("b" * 64, Comparison(replace(report, values={"schema": "modelassay.diff/1"}), "no"))
    assert cache.get("b" * 64).note == "no"
    (tmp_path / ("a" * 64)).write_text("{}\nhalf")
    assert cache.get("a" * 64) is None
    assert cache.get("../" + "a" * 61) is None
    monkeypatch.setattr(report_cache, "MOST_FILES", 3)
    for i in range(6):
        cache.put(f"{i:064d}", report)
        os.utime(tmp_path / f"{i:064d}", (i, i))
    # The others were written later than these say of themselves.
    assert sorted(f.name[-1] for f in tmp_path.iterdir()) == ["5", "a", "b"]


def test_a_full_disk_costs_nobody_their_result(small_disk):
    cache = ReportCache(service._opened, service._taken, small_disk / "page")
    section = Section(name="verdict", code="x" * 190_000)
    report = StoredReport({"schema": "modelassay.scan/1"}, (section,) * 8)
    runs = Runs(1, 20, 3, cache)
    *_, found = runs.follow("a" * 64, "a", Plain(), lambda _: None, lambda *_: report)
    assert found is report


def test_floods_and_bodies_that_are_too_large_or_too_slow_are_refused(monkeypatch):
    monkeypatch.setenv("MODELASSAY_PROXIES", "1")
    monkeypatch.setattr(limits, "BODY_SECONDS", 0.2)
    sent: list = []

    async def app(_scope, receive, send):
        got = await receive()
        await send({"type": "http.response.start", "status": 200, "body": got["body"]})

    async def send(message):
        sent.append(message)

    def ask(body=b"{}", headers=(), parts=1, slow=False, spoofed="9.9.9.9"):
        chunks = [
            {"type": "http.request", "body": body, "more_body": i + 1 < parts} for i in range(parts)
        ]

        async def receive():
            if slow:
                await asyncio.sleep(5)
            return chunks.pop(0)

        scope = {
            "type": "http",
            "method": "POST",
            "path": "/gradio_api/queue/join",
            "client": ("10.0.0.1", 1),
            "headers": [(b"x-forwarded-for", f"{spoofed}, 1.2.3.4".encode()), *headers],
        }
        sent.clear()
        asyncio.run(layer(scope, receive, send))
        return sent[0]["status"]

    layer = Limits(app, Budget(per_minute=1, at_once=5))
    assert ask(headers=[(b"content-length", b"10000000")]) == 413
    assert ask(headers=[(b"content-length", b"many")]) == 413
    assert ask(b"x" * 300_000, parts=5) == 413  # however much it says that it has
    assert ask(slow=True) == 408
    assert (ask(b'{"a": 1}'), sent[0]["body"]) == (200, b'{"a": 1}')
    assert [ask(spoofed=f"{i}.9.9.9") for i in range(3)] == [429] * 3


def test_ten_scans_of_one_model_load_it_once(monkeypatch, tiny_folder):
    """As one that is not private: what a visitor names by a path is nobody else's."""
    folder, loaded = str(tiny_folder()), []
    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    monkeypatch.setattr(service, "RUNS", Runs(1, 20, 3))
    monkeypatch.setattr(service, "SHELF", Shelf())
    monkeypatch.setattr(service, "look_up", lambda name, _: Target(name, None, 10_000, shared=True))
    load = service.load_target
    monkeypatch.setattr(service, "load_target", lambda *a: loaded.append(1) or load(*a))
    found: list = []
    follow = [
        threading.Thread(target=lambda: found.append(list(service.run_scan(folder, "quick"))[-1]))
        for _ in range(10)
    ]
    for each in follow:
        each.start()
    for each in follow:
        each.join(60)
    assert len(loaded) == 1
    assert len({id(report) for report in found}) == 1
    *_, again = service.run_scan(folder, "quick", chat_template=False)
    assert again not in found
    assert len(loaded) == 1  # for other settings, on the same model
