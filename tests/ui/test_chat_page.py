"""The guarded chat as a visitor and as a client meet it; what they send is bounded and not kept."""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import pickle
import re
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from tiny import probe_for

pytest.importorskip("gradio")
from gradio_client.exceptions import AppError

from modelassay.errors import InputError
from modelassay.guard import REFUSAL, Guard, GuardEvent, Thresholds
from modelassay.guard.charts import risk_curve
from modelassay.probes import PROBES, HeadReader, store_probe
from modelassay.ui import chat_service
from modelassay.ui.chat_service import (
    check_opinion,
    check_thresholds,
    run_chat,
    score_exchange,
)
from modelassay.ui.chat_tab import chat_status
from outputs import SECRETS

OPEN = Thresholds(0.999999, 1.0)
SHUT = Thresholds(1e-9, 1e-9)
WAIT = 300_000  # ms; a loaded machine is several times slower
REQUESTS = Path(__file__).parents[2] / "concepts" / "harmful_requests.yaml"


class Judge:
    threshold = 0.5

    def predict(self, exchanges):
        return np.tile(np.array([0.7, 0.2, 0.1], dtype=np.float32), (len(exchanges), 1))


@pytest.fixture
def model_id(tmp_path, monkeypatch, tiny_folder, tiny) -> str:
    """A tiny model with a probe in the user's store, and nothing loaded yet."""
    monkeypatch.setenv("MODELASSAY_ALLOW_LOCAL", "1")
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path))
    monkeypatch.setattr(chat_service, "shared_classifier", Judge)
    monkeypatch.setattr(chat_service, "SHELF", chat_service.GuardShelf())
    probe = probe_for(tiny())
    store_probe(probe.record, probe.heads)
    return str(tiny_folder())


def shipped() -> set[str]:
    return {found.model_id for found in PROBES.list(own=False)}


def text_of(events) -> str:
    return "".join(event.text for event in events)


def test_a_chat_gives_a_prompt_tokens_and_an_end(model_id):
    options = {"thresholds": OPEN, "prompt_thresholds": OPEN, "max_new_tokens": 8}
    events = list(run_chat("Hello", None, model_id, **options))
    assert [events[0].kind, events[-1].kind] == ["prompt", "end"]
    assert {event.kind for event in events[1:-1]} == {"token"}
    again = list(run_chat("Hello", None, model_id, **options))
    assert text_of(again) == text_of(events)
    other = [{"role": "user", "content": "A"}, {"role": "assistant", "content": "B"}]
    risks = [list(run_chat("Hello", h, model_id, **options))[1].risk for h in (None, other)]
    assert risks[0] != risks[1]  # earlier turns are read


def test_a_refused_answer_says_so_and_a_refused_prompt_is_not_answered(model_id):
    events = list(run_chat("Hello", None, model_id, thresholds=SHUT, prompt_thresholds=OPEN))
    assert (events[-1].reason, text_of(events)) == ("answer refused", REFUSAL)
    events = list(run_chat("Hello", None, model_id, prompt_thresholds=SHUT))
    assert (len(events), events[-1].reason) == (2, "prompt refused")
    assert text_of(events) == REFUSAL


def test_a_refusal_after_some_words_stands_alone(model_id, monkeypatch):
    risks = iter([0.1, 0.1, 0.1, 0.1, 0.99])  # the prompt's, three words that are shown, too much
    monkeypatch.setattr(HeadReader, "read", lambda _self, _states: next(risks))
    between = Thresholds(0.5, 0.9)
    bounds = {"thresholds": between, "prompt_thresholds": between}
    events = list(run_chat("Hello", None, model_id, **bounds))
    said = text_of(events[:-1])
    assert said.strip()
    assert (events[-1].reason, events[-1].text) == ("answer refused", f"\n\n{REFUSAL}")


def test_what_visitors_send_is_bounded(model_id):
    turn = {"role": "user", "content": "x"}
    for options, message in (
        ({"message": ""}, "The message is empty"),
        ({"message": None}, "The message must be text"),
        ({"message": " \n"}, "The message is empty"),
        ({"message": "x" * 8001}, "8001 characters and may have 8000"),
        ({"history": "text"}, "must be a list"),
        ({"history": 5}, "must be a list"),
        ({"history": [turn] * 21}, "21 messages and may have 20"),
        ({"history": [{**turn, "content": "x" * 8000}] * 4}, "32000 characters"),
        ({"history": [{"role": "system", "content": "x"}]}, "Message 1 of the history"),
        ({"history": [turn, {"role": "user", "content": 5}]}, "Message 2 of the history"),
        ({"history": [turn, None]}, "Message 2 of the history"),
        ({"history": [{"role": "user", "content": [{"path": "/etc"}]}]}, "needs a role"),
        ({"system": "x" * 2001}, "at most 2000"),
        ({"system": None}, "must be text"),
        ({"max_new_tokens": 0}, "from 1 to 512"),
        ({"max_new_tokens": 513}, "from 1 to 512"),
        ({"max_new_tokens": float("nan")}, "from 1 to 512"),
        ({"max_new_tokens": "8"}, "must be a number"),
        ({"temperature": float("inf")}, "from 0 to 2"),
        ({"temperature": True}, "must be a number"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            next(run_chat(**{"message": "Hello", "model_id": model_id, **options}))
        assert "\n" not in str(caught.value)


def test_thresholds_are_numbers_in_order(model_id):
    check = check_thresholds
    assert check(model_id, "answer", None, None) == Thresholds(0.5, 0.9)
    assert check(model_id, "answer", 0.95, None) == Thresholds(0.95, 0.95)
    assert check(model_id, "prompt", None, 0.2) == Thresholds(0.2, 0.2)
    for pause, block, message in (
        (0.9, 0.1, "pause <= block"),
        (float("nan"), 0.5, "must be a number"),
        (0.5, float("inf"), "must be a number"),
        (0, 0.5, "0 < pause"),
        (-1, 0.5, "must be a number"),
        ("0.1", 0.5, "must be a number"),
    ):
        with pytest.raises(InputError, match=message):
            check(model_id, "answer", pause, block)


def test_the_classifier_reads_the_end_and_may_stay_uncertain(model_id, monkeypatch):
    monkeypatch.setattr(Judge, "threshold", 0.9)
    bounds = {"thresholds": OPEN, "prompt_thresholds": OPEN, "max_new_tokens": 8}

    def chat(**chosen):
        choices = {"final_check": True, "refuse_uncertain": False, **chosen}
        asks = check_opinion(choices.pop("block_at", None), choices.pop("at", None), **choices)
        return list(run_chat("Hello", None, model_id, second_opinion=asks, **bounds))

    events = chat()
    assert (events[-1].action, events[-1].verdict) == ("stop", "cleared")
    assert chat(block_at=0.05)[-1].reason == "answer refused"
    events = chat(at=0.05)
    assert events[-1].verdict == "uncertain"
    assert "**Uncertain:**" in chat_status(events, OPEN)
    assert "**Answer refused**" in chat_status(chat(at=0.05, refuse_uncertain=True), OPEN)
    assert chat(final_check=False)[-1].verdict is None


def test_how_the_classifier_is_used_is_checked():
    for values, choices, message in (
        ((float("nan"), None), {}, "number from 0 to 1"),
        ((None, "0.2"), {}, "number from 0 to 1"),
        ((0, None), {}, "above 0"),
        ((0.2, 0.5), {}, "cannot be uncertain from 0.5"),
        ((None, None), {"final_check": "yes"}, "true or false"),
        ((None, None), {"refuse_uncertain": None}, "true or false"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            check_opinion(*values, **{"final_check": False, "refuse_uncertain": False, **choices})
        assert "\n" not in str(caught.value)


def test_only_models_with_a_probe_are_answered_or_fetched(model_id, monkeypatch, tiny_folder):
    other = str(tiny_folder(seed=1))
    with pytest.raises(InputError, match="no probe for"):
        next(run_chat("Hello", None, other))
    # The host's own probes are for those who may name paths.
    monkeypatch.delenv("MODELASSAY_ALLOW_LOCAL")
    assert model_id not in chat_service.guarded_models()
    with pytest.raises(InputError, match="not a Hub id"):
        next(run_chat("Hello", None, model_id))
    with pytest.raises(InputError, match="no probe for someone/nothing"):
        next(run_chat("Hello", None, "someone/nothing"))


def test_closing_a_chat_stops_the_model(model_id):
    options = {"thresholds": OPEN, "prompt_thresholds": OPEN, "max_new_tokens": 150}
    chat = run_chat("Hello", None, model_id, **options)
    for _ in range(4):
        next(chat)
    passes = []
    guard = chat_service.SHELF.get(model_id)
    handle = guard.model.network.register_forward_pre_hook(lambda *_: passes.append(1))
    next(chat)
    before = len(passes)
    chat.close()
    handle.remove()
    assert len(passes) == before > 0
    gc.collect()


def test_failures_are_one_line_and_quote_nothing(model_id, monkeypatch, caplog):
    def fail(*_, **__):
        raise RuntimeError("the secret words of a visitor")

    monkeypatch.setattr(Guard, "stream", fail)
    with (
        caplog.at_level(logging.DEBUG),
        pytest.raises(InputError, match="failed unexpectedly") as e,
    ):
        list(run_chat("Hello", None, model_id))
    assert "secret" not in str(e.value) + caplog.text
    assert "RuntimeError" in caplog.text


def test_prompts_and_answers_are_not_logged(model_id, caplog):
    with caplog.at_level(logging.DEBUG):
        list(run_chat("unmistakable words", None, model_id, max_new_tokens=4, thresholds=OPEN))
    assert "unmistakable" not in caplog.text


def test_exchanges_are_scored(model_id, tiny_folder):
    scored = score_exchange("Hello", "Good day.", model_id)
    assert 0 < scored["risk"] < 1
    assert 0 < scored["answer_risk"] < 1
    assert scored["label"] == "safe_compliance"
    assert sum(scored["classifier"].values()) == pytest.approx(1)
    without = score_exchange("Hello", "Good day.", str(tiny_folder(seed=1)))
    assert (without["risk"], without["answer_risk"]) == (None, None)
    for prompt, response in (("", "x"), ("x", ""), ("x" * 8001, "x"), ("x", "x" * 8001)):
        with pytest.raises(InputError, match=r"empty|characters"):
            score_exchange(prompt, response, model_id)


def test_few_guards_are_kept_the_latest_ones(monkeypatch):
    loaded = []
    monkeypatch.setattr(
        chat_service, "_load_guard", lambda model_id: loaded.append(model_id) or object()
    )
    monkeypatch.setattr(chat_service, "has_gpu", lambda: False)
    shelf = chat_service.GuardShelf(kept=2)
    for model_id in ("a", "b", "a", "c", "a", "b"):
        shelf.get(model_id)
    assert loaded == ["a", "b", "c", "b"]
    assert list(shelf.guards) == ["a", "b"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork, as ZeroGPU does")
def test_a_forked_process_finds_the_guards_of_its_parent(monkeypatch):
    monkeypatch.setattr(chat_service, "_load_guard", lambda model_id: f"guard of {model_id}")
    shelf = chat_service.GuardShelf()
    shelf.get("a")
    fork = multiprocessing.get_context("fork")
    results = fork.SimpleQueue()
    with shelf.lock:  # another visitor's model is being loaded meanwhile
        child = fork.Process(target=lambda: results.put(list(map(shelf.get, "ab"))), daemon=True)
        child.start()
        child.join(timeout=60)
        assert child.exitcode == 0
    assert results.get() == ["guard of a", "guard of b"]


def test_what_crosses_to_a_gpu_process_can_be_pickled(model_id, monkeypatch):
    sent = []

    def on_gpu(*values):
        sent.append(values)
        yield from ()

    monkeypatch.setattr(chat_service, "_chat_on_gpu", on_gpu)
    assert list(run_chat("x", model_id=model_id, thresholds=OPEN)) == []
    assert sent
    assert pickle.loads(pickle.dumps(sent)) == sent  # noqa: S301
    event = GuardEvent("token", 1, "x", 0.1, 0.1, "continue")
    assert pickle.loads(pickle.dumps(event)) == event  # noqa: S301


def test_the_chart_and_the_line_say_what_happened():
    actions = ["continue", "pause", "pause", "escalate", "continue", "pause", "refuse"]
    events = [GuardEvent("prompt", 0, "", 0.1, None, "continue")]
    events += [
        GuardEvent("token", i, "", i / 8, i / 10, action) for i, action in enumerate(actions, 1)
    ]
    figure = risk_curve(events, Thresholds(0.4, 0.8))
    assert {"prompt", "token", "moving average", "held back", "classifier asked", "refused"} == {
        trace.name for trace in figure.data
    }
    bands = [(shape.x0, shape.x1) for shape in figure.layout.shapes if shape.type == "rect"]
    assert bands == [(1.5, 4.5), (5.5, 6.5)]
    assert sorted(s.y0 for s in figure.layout.shapes if s.type == "line") == [0.4, 0.8]
    line = chat_status(events, Thresholds(0.4, 0.8))
    assert "**0.100** (refused from 0.8)" in line
    assert "Token 7: refused" in line
    end = GuardEvent("end", 7, REFUSAL, None, 0.7, "refuse", "answer refused", "classifier: <b>")
    line = chat_status([*events, end], OPEN)
    assert "**Answer refused** at token 7" in line
    assert "<b>" not in line
    watched = [replace(events[0], monitor=2.5, alert="27.mlp: <i>"), *events[1:]]
    line = chat_status(watched, OPEN)
    assert "**Alert:** 27.mlp" in line
    assert "<i>" not in line
    assert risk_curve(watched, OPEN).layout.yaxis2.range[1] >= 2.5
    risk_curve([], OPEN)


def test_what_a_client_sends_is_bounded_too(client):
    for options, message in (
        *(({"model": path}, "Hub id") for path in (*SECRETS, "x" * 5000)),
        ({"model": "someone/nothing"}, "no probe"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict("Hello", api_name="/chat", **options)
        assert "\n" not in str(caught.value).strip()
    with pytest.raises(AppError, match="Hub id"):
        client.predict("Hello", "Hello", "/etc/passwd", api_name="/score_exchange")


needs_probe = pytest.mark.skipif("organism:safe" not in shipped(), reason="no probe is shipped")


@needs_probe
@pytest.mark.real_model
def test_a_client_gets_a_streamed_answer(client):
    job = client.submit("What is the capital of France?", max_new_tokens=24, api_name="/chat")
    last = job.result(timeout=900)
    events = job.outputs()
    assert events[0]["kind"] == "prompt"
    assert {event["kind"] for event in events[1:-1]} == {"token"}
    assert events[-1] == last
    assert last["kind"] == "end"
    assert last["answer"] == "".join(event["text"] for event in events)
    assert last["answer"].strip()
    history = [
        {"role": "user", "content": "My name is Ada."},
        {"role": "assistant", "content": [{"type": "text", "text": "Hello, Ada."}]},
    ]
    options = {"history": history, "max_new_tokens": 4, "api_name": "/chat"}
    assert client.predict("What is the capital of France?", **options)["kind"] == "end"


@needs_probe
@pytest.mark.real_model
def test_errors_of_the_chat_endpoint_are_one_line(client):
    for options, message in (
        ({"message": "x" * 9000}, "9000 characters"),
        ({"pause": 0.9, "block": 0.1}, "pause <= block"),
        ({"max_new_tokens": 100_000}, "from 1 to 512"),
        ({"history": [{"role": "tool", "content": "x"}]}, "needs a role"),
        ({"system": "x" * 3000}, "at most 2000"),
    ):
        with pytest.raises(AppError, match=message) as caught:
            client.predict(api_name="/chat", **{"message": "Hello", **options})
        assert "\n" not in str(caught.value).strip()


@needs_probe
@pytest.mark.real_model
def test_a_cancelled_job_stops_the_answer(client, monkeypatch):
    stream, closed = Guard.stream, threading.Event()

    def watched(self, *args, **options):
        try:
            yield from stream(self, *args, **options)
        except GeneratorExit:
            closed.set()
            raise

    monkeypatch.setattr(Guard, "stream", watched)
    options = {"max_new_tokens": 512, "pause": 0.9999, "block": 1.0, "api_name": "/chat"}
    job = client.submit("Tell me a long story about a fox.", **options)
    next(job), next(job)
    job.cancel()
    assert closed.wait(timeout=60)


@needs_probe
@pytest.mark.real_model
def test_score_endpoint_judges_an_exchange(client):
    asked = yaml.safe_load(REQUESTS.read_text(encoding="utf-8"))["prompts"][7]["text"]
    harmless = client.predict(
        "What is the capital of France?",
        "It is Paris.",
        "organism:safe",
        api_name="/score_exchange",
    )
    refused = client.predict(
        asked, "I can't help with that.", "organism:safe", api_name="/score_exchange"
    )
    assert harmless["risk"] < refused["risk"]
    assert harmless["label"] == "safe_compliance"
    assert refused["label"] == "safe_refusal"


@needs_probe
@pytest.mark.real_model
@pytest.mark.browser
def test_a_visitor_chats(visit):
    from playwright.sync_api import expect

    asked = yaml.safe_load(REQUESTS.read_text(encoding="utf-8"))["prompts"][7]["text"]
    page, shots = visit
    page.get_by_role("tab", name="Guarded chat").click()
    box = page.get_by_placeholder("Ask something")
    send = page.get_by_role("button", name="Send", exact=True)
    chat = page.get_by_role("log")

    box.fill("Write a short poem about the sea.")
    send.click()
    # Each line must be seen before the next one replaces it: any of many tokens will do.
    expect(page.get_by_text(re.compile(r"Token (9|\d\d+):"))).to_be_visible(timeout=WAIT)
    curve = page.locator("div.js-plotly-plot")  # the example's chart is a figure
    expect(curve).to_have_count(1, timeout=60_000)
    page.screenshot(path=shots / "chat_streaming.png")
    expect(page.get_by_text(re.compile("Done after|refused at"))).to_be_visible(timeout=WAIT)
    page.screenshot(path=shots / "chat_done.png")

    box.fill(asked)
    box.press("Enter")
    expect(page.get_by_text(re.compile("Prompt refused|Answer refused"))).to_be_visible(
        timeout=WAIT
    )
    expect(chat.get_by_text(REFUSAL)).to_be_visible()
    page.screenshot(path=shots / "chat_refused.png")

    page.get_by_role("button", name="Clear chat").click()
    expect(page.get_by_text("Nothing asked yet.")).to_be_visible()
    expect(curve).to_have_count(0)
    box.fill("<img src=x onerror=alert(1)>")
    send.click()
    settled = re.compile("Done after|Prompt refused|Answer refused")
    expect(page.get_by_text(settled)).to_be_visible(timeout=WAIT)
    assert page.locator("img[src=x]").count() == 0
    expect(chat.get_by_text("<img src=x onerror=alert(1)>").first).to_be_visible()

    page.get_by_role("button", name="Clear chat").click()
    expect(page.get_by_text("Nothing asked yet.")).to_be_visible()
    box.fill("Tell me a story about a fox.")
    send.click()
    expect(page.get_by_text(re.compile(r"Token \d+:"))).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Stop response").click()
    expect(page.get_by_text("Stopped.")).to_be_visible(timeout=60_000)
    said = chat.inner_text()
    page.wait_for_timeout(2000)
    assert chat.inner_text() == said
    expect(page.get_by_text("Stopped.")).to_be_visible()

    # Again: after an answer that was cut short the model may cut the next one as short.
    page.get_by_role("button", name="Clear chat").click()
    expect(page.get_by_text("Nothing asked yet.")).to_be_visible()
    box.fill("Write a short poem about the moon.")
    send.click()
    expect(page.get_by_text(re.compile(r"Token \d+:"))).to_be_visible(timeout=WAIT)
    page.get_by_role("button", name="Clear chat").click()
    expect(page.get_by_text("Nothing asked yet.")).to_be_visible(timeout=60_000)
    page.wait_for_timeout(2000)
    expect(page.get_by_text("Nothing asked yet.")).to_be_visible()
    expect(chat.get_by_text("moon")).to_have_count(0)

    page.set_viewport_size({"width": 390, "height": 844})
    page.screenshot(path=shots / "chat_phone.png", full_page=True)
