"""What a guard costs in time."""

from __future__ import annotations

import json

import pytest

from benches import Clears
from modelassay.errors import InputError
from modelassay.guard import Guard
from modelassay.guard_bench import latency
from modelassay.guard_bench.latency import (
    CLASSIFIER,
    GENERATE,
    MONITOR,
    PROBE,
    RAW,
    measure_latency,
)
from modelassay.guard_bench.suites import read_suite
from modelassay.monitors import build_monitor
from modelassay.report import to_json
from monitored import fine_tuned, ordinary
from tiny import probe_for


def test_a_monitor_is_timed_beside_the_probe(tiny, tmp_path):
    model = fine_tuned(tiny(), tmp_path)
    monitor = build_monitor(tiny(), model, prompts=ordinary(20), response_tokens=2)
    guard = Guard(model, probe_for(model, pause=0.999999, block=1.0), Clears(), monitor)
    report = measure_latency(guard, read_suite("latency", limit=2), new_tokens=3, rounds=1)
    assert set(report.total) == {RAW, PROBE, MONITOR, CLASSIFIER}


def test_latency(tiny):
    model = tiny()
    guard = Guard(model, probe_for(model, pause=0.999999, block=1.0), Clears())
    data = read_suite("latency", limit=3)
    steps = []
    report = measure_latency(
        guard, data, new_tokens=6, rounds=2, on_progress=lambda *step: steps.append(step)
    )
    assert set(report.total) == {RAW, PROBE, CLASSIFIER}
    assert set(report.first_token) == {GENERATE, RAW, PROBE, CLASSIFIER}
    assert report.n_prompts + report.n_ended_early == 3
    assert all(0 < s.least <= s.median <= s.largest for s in report.total.values())
    assert steps[-1][1] == steps[-1][2]
    assert json.loads(to_json(report))["schema"] == "modelassay.guard-latency/1"
    assert report.n_skipped_pairs == 0
    frame = report.to_dataframe().set_index("way")
    assert frame.loc[PROBE, "total"] == report.total[PROBE].median
    assert list(report.figure().data[0].y) == [each.median for each in report.total.values()]
    assert set(report.milliseconds) == set(report.tokens_per_second) == set(report.first_token)
    for way, spent in report.milliseconds.items():
        assert spent.median >= report.first_milliseconds[way].median > 0
        assert report.tokens_per_second[way].largest == pytest.approx(6000 / spent.least)
    assert report.n_responses == 2 * report.n_prompts
    assert report.classifier_calls == {GENERATE: 0, RAW: 0, PROBE: 0, CLASSIFIER: 0}
    measured = report.to_dataframe("measured").set_index("way")
    assert measured.loc[RAW, "milliseconds"] == report.milliseconds[RAW].median
    doubting = Guard(model, probe_for(model, pause=1e-9, block=1.0), Clears())
    ways = latency._ways(doubting, 14)
    prompt = data.prompts[0].prompt
    assert ways[CLASSIFIER](prompt).classifier_calls >= 1
    assert ways[CLASSIFIER](prompt).classifier_calls >= 1  # of one response each
    assert ways[RAW](prompt).classifier_calls == 0
    shut = Guard(model, probe_for(model, pause=1e-6, block=1e-6))
    with pytest.raises(InputError, match="None of the 3 prompts"):
        measure_latency(shut, data, new_tokens=6, rounds=1)
