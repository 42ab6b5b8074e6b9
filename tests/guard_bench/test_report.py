"""What a benchmark reports: counts, intervals, tables and charts, and no text."""

from __future__ import annotations

import json

import pytest

from benches import REFUSAL, SCRIPT, FakeGuard, bench, suite
from modelassay.guard_bench.judges import Judgement, refusal_judge
from modelassay.guard_bench.report import difference_of, rate_of
from modelassay.guard_bench.running import BenchSettings, run_bench
from modelassay.report import to_json
from modelassay.statistics import newcombe_interval, wilson_interval


def test_report_counts():
    report = bench()
    # Raw: a, b, c are unsafe of a to e and g; f is unscored, h cannot be given to the model.
    assert (report.raw.unsafe.k, report.raw.unsafe.n) == (3, 6)
    assert report.raw.unsafe.interval == wilson_interval(3, 6)
    assert (report.raw.n_unscored, report.raw.n_unanswered) == (1, 1)
    # Guarded: a passes; of c two words were out before the refusal; b shows nothing.
    assert (report.guarded.unsafe.k, report.guarded.unsafe.n) == (2, 6)
    assert (report.guarded.n_unscored, report.guarded.n_unanswered) == (1, 1)
    assert (report.blocked_by_prompt.k, report.blocked_by_prompt.n) == (1, 7)
    assert (report.blocked_by_response.k, report.blocked_by_response.n) == (2, 7)
    assert report.unsafe_difference.value == pytest.approx(-1 / 6)
    assert report.unsafe_difference.interval == newcombe_interval(2, 6, 3, 6)
    # Refused: e on both sides, and whatever the guard blocked.
    assert (report.raw.refusal.k, report.raw.refusal.n) == (1, 6)
    assert (report.guarded.refusal.k, report.guarded.refusal.n) == (4, 6)
    assert report.n == 8
    assert report.categories["even"].raw_unsafe == 2
    assert report.categories["even"].blocked == 1
    assert sum(counts.n for counts in report.categories.values()) == 8
    assert any("2 responses could not be scored" in note for note in report.notes)
    found = json.loads(to_json(report))
    assert found["schema"] == "modelassay.guard-bench/1"
    assert found["raw"]["unsafe"]["interval"][0] == pytest.approx(wilson_interval(3, 6)[0], 1e-4)


def test_tables_and_charts_hold_the_numbers():
    report = bench()
    frame = report.to_dataframe()
    raw = frame[(frame["side"] == "raw") & (frame["rate"] == "unsafe")].iloc[0]
    assert (raw["k"], raw["n"], raw["value"]) == (3, 6, 0.5)
    assert (raw["low"], raw["high"]) == report.raw.unsafe.interval
    bars = {trace.name: dict(zip(trace.x, trace.y, strict=True)) for trace in report.figure().data}
    assert bars["raw"]["unsafe"] == 0.5
    assert bars["guarded"]["prompt blocked"] == report.blocked_by_prompt.rate
    assert "3/6" in report._repr_html_()
    unsafe = {row["category"]: row["raw_unsafe"] for row in report.sections()[-1].table.records()}
    assert unsafe == {name: each.raw_unsafe for name, each in report.categories.items()}


def test_the_refusal_judge_gives_no_unsafe_rate():
    script = {"a": ("Here is how that goes", "prompt"), "b": ("I cannot help with that", "pass")}
    report = run_bench(FakeGuard(script), suite(list(script)), refusal_judge, {"name": "refusal"})
    for side in (report.raw, report.guarded):
        assert side.unsafe.rate is None
        assert side.n_unscored == 2
    assert report.unsafe_difference.value is None
    assert (report.raw.refusal.k, report.guarded.refusal.k) == (1, 2)


def test_a_judge_of_two_classes_gives_no_refusal_rate():
    """Not even over what the guard refused, which nobody had to judge."""

    def judge(_prompt, response):
        return Judgement("bad" in response, None)

    report = bench(judge=judge)
    for side in (report.raw, report.guarded):
        assert side.unsafe.n
        assert (side.refusal.n, side.refusal.rate) == (0, None)
    assert report.refusal_difference.n == 0
    assert any("no refusal rates" in note for note in report.notes)
    assert not any("no refusal rates" in note for note in bench().notes)


def test_no_text_in_results_nor_report(tmp_path):
    out = tmp_path / "results.jsonl"
    report = bench(out=out)
    written = out.read_text() + to_json(report)
    for said, _ in SCRIPT.values():
        assert not said or said not in written
    assert "it begins" not in written
    assert REFUSAL not in written
    assert bench(out=tmp_path / "text.jsonl", settings=BenchSettings(keep_text=True))
    assert "bad one two three four" in (tmp_path / "text.jsonl").read_text()


def test_wilson_and_newcombe_numbers():
    # 5 of 10, from the closed form: centre 0.5, half width z sqrt(n/4 + z²/4) / (n + z²).
    assert rate_of(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert rate_of(0, 0).rate is None
    # Newcombe (1998), table II: 56/70 - 48/80 gives 0.0524 to 0.3339.
    pairs = [(n < 48, True) for n in range(56)] + [(False, False) for _ in range(14)]
    assert difference_of(pairs).interval == newcombe_interval(56, 70, 48, 70)
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_of([(None, True)]).value is None
