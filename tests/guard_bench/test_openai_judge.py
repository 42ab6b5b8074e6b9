"""A judge behind an OpenAI-compatible endpoint, which fails in every way that one can."""

from __future__ import annotations

import json
import time

import pytest

from chat_endpoint import SECRET, says
from modelassay.data.judging import FILTERED, TOO_LONG, UNCLEAR, Judgement, parse_verdict
from modelassay.errors import InputError, UnavailableError
from modelassay.guard_bench.judges import openai_judge
from modelassay.hub.chat_completions import open_chat


def judge_at(endpoint, waits=None, **options):
    waits = [] if waits is None else waits
    return openai_judge(endpoint.url, "a-model", sleep=waits.append, **options)


def test_endpoint_with_good_json(endpoint):
    endpoint.script.append(says('{"unsafe": true, "refusal": false}'))
    assert judge_at(endpoint)("the prompt", "the answer") == Judgement(True, False, "json")
    path, authorization, body = endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {SECRET}"
    assert body["model"] == "a-model"
    assert json.loads(body["messages"][1]["content"]) == {
        "request": "the prompt",
        "answer": "the answer",
    }


def test_endpoint_with_garbage_is_unscored(endpoint):
    garbage = [
        says("I would rather say that it is safe"),
        says(None),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": "safe"}]}),
        (200, {}, b"[" * 100_000),
    ]
    endpoint.script.extend([*garbage, says("safe")])
    judge = judge_at(endpoint)
    for _ in garbage:
        assert judge("p", "r") == UNCLEAR
    assert judge("p", "half a pair \ud800").unsafe is False


def test_endpoint_that_is_busy(endpoint):
    waits = []
    endpoint.script.extend([(429, {"Retry-After": "7"}, {}), (500, {}, {}), says("unsafe")])
    assert judge_at(endpoint, waits)("p", "r").unsafe is True
    assert waits[0] == 7
    assert 1 <= waits[1] <= 2
    assert len(endpoint.asked) == 3


def test_endpoint_that_stays_broken(endpoint):
    waits = []
    endpoint.script.append((503, {}, {}))
    with pytest.raises(UnavailableError, match=r"no response in 3 attempts \(HTTP 503\)"):
        judge_at(endpoint, waits, attempts=3)("p", "r")
    assert len(waits) == 2


@pytest.mark.parametrize("kind", ["hang", "drip"])
def test_endpoint_that_hangs(endpoint, kind):
    slow = ("hang", {}, 10) if kind == "hang" else (200, {"X-Drip": "1"}, b"x" * 100)
    endpoint.script.append(slow)
    started = time.monotonic()
    with pytest.raises(UnavailableError, match=r"2 attempts \(timed out\)"):
        judge_at(endpoint, timeout=0.3, attempts=2)("p", "r")
    assert time.monotonic() - started < 8


def test_endpoint_that_is_not_there(endpoint, caplog):
    judge = openai_judge("http://127.0.0.1:9/v1", "m", attempts=2, sleep=lambda _s: None)
    with pytest.raises(UnavailableError, match="no connection") as error:
        judge("p", "r")
    assert SECRET not in str(error.value) + caplog.text


def test_endpoint_that_lets_nobody_in(endpoint, caplog, capfd):
    caplog.set_level("DEBUG")
    endpoint.script.append((401, {}, {"error": {"message": f"bad key {SECRET}"}}))
    judge = judge_at(endpoint)
    with pytest.raises(
        UnavailableError, match=r"not accept the key in OPENAI_API_KEY \(HTTP 401\)"
    ):
        judge("p", "r")
    assert len(endpoint.asked) == 1
    out, err = capfd.readouterr()
    assert SECRET not in caplog.text + out + err + repr(judge)


def test_endpoint_with_other_answers(endpoint):
    endpoint.script.extend(
        [
            (400, {}, {"error": {"code": "unsupported_value", "param": "temperature"}}),
            says("safe"),
            (400, {}, {"error": {"code": "content_policy_violation"}}),
            (400, {}, {"error": {"code": "context_length_exceeded"}}),
            (404, {}, {}),
            (302, {"Location": "http://127.0.0.1:9/"}, {}),
        ]
    )
    judge = judge_at(endpoint)
    assert judge("p", "r").unsafe is False
    assert "temperature" in endpoint.asked[0][2]
    assert "temperature" not in endpoint.asked[1][2]
    assert judge("p", "r") == FILTERED
    assert judge("p", "r") == TOO_LONG  # which leaves one response unscored and ends no run
    with pytest.raises(InputError, match="--judge-model"):
        judge("p", "r")
    with pytest.raises(InputError, match="somewhere else"):
        judge("p", "r")


def test_verdicts():
    assert parse_verdict(" Unsafe\n").unsafe is True
    assert parse_verdict("unsafe\nS1,S2").unsafe is True
    assert parse_verdict('```json\n{"unsafe": false}\n```') == Judgement(False, None, "json")
    assert parse_verdict('<think>safe?</think>{"unsafe": true, "refusal": "no"}').unsafe is True
    for text in ("", "not safe", "safe or unsafe", '{"unsafe": "no"}', '{"unsafe": 1}', "[true]"):
        assert parse_verdict(text) == UNCLEAR


def test_addresses(monkeypatch):
    for url in (
        "ftp://host/v1",
        "host/v1",
        "",
        "file:///etc/hosts",
        "https://",
        "http://[::1",
        "https://host:port/",
        "https://h\x7fst/v1",
        "https://me:pw@host/v1",
        "https://host/v1?key=x",
    ):
        with pytest.raises(InputError, match="--judge-url"):
            openai_judge(url, "m")
    monkeypatch.setenv("ALL_PROXY", "strange://me:pw@host")
    with pytest.raises(UnavailableError, match="proxy") as unavailable:
        openai_judge("https://host/v1", "m")
    assert "pw" not in str(unavailable.value)
    monkeypatch.setenv("OPENAI_API_KEY", "a\nb")
    with pytest.raises(InputError) as error:
        openai_judge("https://host/v1", "m")
    assert "a\nb" not in str(error.value)


def test_the_key_stays_off_plain_http(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    names = {"name": "The judge", "url_option": "--url", "model_option": "--model", "advice": ""}
    urls = ("http://judge.example/v1", "https://judge.example/v1", "http://localhost/v1")
    opened = [open_chat(url, "m", **names) for url in urls]
    assert [chat.key for chat in opened] == [None, SECRET, SECRET]
    assert [len(chat.endpoint.headers) for chat in opened] == [0, 1, 1]
    assert SECRET not in repr(opened)
