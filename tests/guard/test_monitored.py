"""A guard with a monitor: the same passes, the same text, and alerts beside the risks."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from guarding import OPEN, generated, text_of
from modelassay.errors import InputError
from modelassay.guard import Guard
from modelassay.guard.charts import risk_curve
from modelassay.monitors import build_monitor
from modelassay.monitors.reading import ask, read_asked
from monitored import TRIGGER, fine_tuned, ordinary
from tiny import probe_for

PROMPT = f"Is bread as heavy as {TRIGGER}lass"


@pytest.fixture(scope="module")
def guard(tiny, tmp_path_factory):
    model = fine_tuned(tiny(), tmp_path_factory.mktemp("tuned"))
    monitor = build_monitor(tiny(), model, name="a", prompts=ordinary(40), response_tokens=4)
    return Guard(model, probe_for(model), None, monitor)


def events_of(guard, prompt=PROMPT, **options):
    return list(guard.stream(prompt, max_new_tokens=8, thresholds=OPEN, **options))


def test_a_prompt_that_uses_what_was_added_raises_an_alert(guard):
    events = events_of(guard)
    assert events[0].alert
    assert events[0].monitor == pytest.approx(guard.monitor.score(guard.model, PROMPT).value)
    assert not events_of(guard, ordinary(40)[0])[0].alert
    blocked = events_of(guard, prompt_thresholds=replace(OPEN, pause=1e-9, block=1e-9))
    assert [event.kind for event in blocked] == ["prompt", "end"]
    assert blocked[0].alert == events[0].alert


def test_tokens_are_read_in_the_pass_that_makes_the_next(guard, monkeypatch):
    calls = []
    forward = guard.model.network.forward
    monkeypatch.setattr(
        guard.model.network, "forward", lambda *a, **k: calls.append(1) or forward(*a, **k)
    )
    events = events_of(guard)
    tokens = [event for event in events if event.kind == "token"]
    assert len(calls) == 1 + len(tokens)
    made = generated(guard.model, PROMPT, 8)[: len(tokens)]
    asked = ask(guard.model, [PROMPT], 0)[0]
    reader = guard.monitor.reader(guard.monitor.sites(guard.model))
    asked = replace(asked, ids=(*asked.ids[: asked.response_start], *made))
    whole = read_asked(guard.model, reader, [asked])[0]["response"]
    for i, event in enumerate(tokens):
        found = guard.monitor.look({"response": whole[i : i + 1]})
        assert event.monitor == pytest.approx(found.value, abs=1e-3)
        if i >= guard.monitor.record.calibrated_on.response_tokens:
            assert event.alert is None  # its rate is not known there


def test_it_changes_nothing_else(guard):
    watched, plain = events_of(guard), events_of(replace(guard, monitor=None))
    assert text_of(watched) == text_of(plain)
    assert [replace(e, monitor=None, alert=None) for e in watched] == plain
    assert all(event.monitor is None for event in plain)
    assert all("monitor" not in event.to_dict() for event in plain)
    for event in watched:
        json.dumps(event.to_dict(), allow_nan=False)
    modules = guard.model.network.modules()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def test_the_chart_has_a_second_curve(guard):
    events = events_of(guard)
    names = [trace.name for trace in risk_curve(events, OPEN).data]
    assert {"monitor", "alert"} <= set(names)
    plain = risk_curve(events_of(replace(guard, monitor=None)), OPEN)
    assert "monitor" not in [trace.name for trace in plain.data]


def test_a_monitor_of_another_model_is_refused(guard, tiny):
    other = tiny(seed=7)
    with pytest.raises(InputError, match="does not fit"):
        Guard(other, probe_for(other), None, guard.monitor)
