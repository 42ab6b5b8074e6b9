"""Runs of a benchmark, which survive a kill."""

from __future__ import annotations

import json

import pytest

from benches import (
    INFO,
    SCRIPT,
    Clears,
    FakeGuard,
    bench,
    by_words,
    rows_without_times,
    suite,
    timeless,
)
from modelassay.data.judging import parse_verdict
from modelassay.errors import InputError, UnavailableError
from modelassay.guard import Guard, Thresholds
from modelassay.guard_bench.judges import refusal_judge
from modelassay.guard_bench.results import RESULTS_SCHEMA
from modelassay.guard_bench.running import BenchSettings, run_bench
from tiny import probe_for


def test_goes_on_after_a_kill(tmp_path):
    out = tmp_path / "results.jsonl"
    whole = timeless(bench(out=out))
    lines = out.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["schema"] == RESULTS_SCHEMA
    assert len(lines) == 1 + 2 * len(SCRIPT)
    for kept in (1, 4, 7):  # the header alone; half a prompt; some prompts; a torn line each
        out.write_bytes(b"".join(lines[:kept]) + lines[kept][:-9])
        guard = FakeGuard(SCRIPT)
        assert timeless(bench(guard=guard, out=out)) == whole
        assert len(guard.asked) == 2 * len(SCRIPT) - (kept - 1)
        again = out.read_bytes().splitlines(keepends=True)
        assert again[:kept] == lines[:kept]
        assert rows_without_times(again) == rows_without_times(lines)
    guard = FakeGuard(SCRIPT)
    assert timeless(bench(guard=guard, out=out)) == whole
    assert guard.asked == []


def test_a_judge_that_fails_loses_no_answer(tmp_path):
    out = tmp_path / "results.jsonl"

    def failing(prompt, response):
        if prompt == "c":
            raise UnavailableError("The judge is away.")
        return by_words(prompt, response)

    with pytest.raises(UnavailableError):
        bench(judge=failing, out=out)
    guard = FakeGuard(SCRIPT)
    assert timeless(bench(guard=guard, out=out)) == timeless(bench())
    assert ("a", False) not in guard.asked
    assert ("c", False) in guard.asked


def test_equal_answers_are_judged_once():
    asked = []

    def counting(prompt, response):
        asked.append(prompt)
        return by_words(prompt, response)

    bench({"a": ("fine words", "pass"), "b": ("bad one two three", "answer")}, counting)
    assert asked == ["a", "b", "b"]


def test_another_run_is_refused(tmp_path):
    out = tmp_path / "results.jsonl"
    bench(out=out)
    before = out.read_bytes()
    cases = {
        "model": {"guard": FakeGuard(SCRIPT, weights="1" * 64)},
        "settings": {"settings": BenchSettings(max_new_tokens=5)},
        "data": {"script": dict(list(SCRIPT.items())[:3])},
    }
    for part, options in cases.items():
        with pytest.raises(InputError, match=f"another run \\(other {part}\\).*--force"):
            bench(out=out, **options)
        assert out.read_bytes() == before
    bench(out=out, force=True, **cases["settings"])
    assert out.read_bytes() != before
    bench(out=out, **cases["settings"])


def test_files_that_hold_no_results(tmp_path):
    out = tmp_path / "notes.txt"
    for content in ("my notes", '{"schema": "other"}\n{}\n', "\n\n", "[1]\n"):
        out.write_text(content)
        for force in (False, True):
            with pytest.raises(InputError, match="not a file of guard results"):
                bench(out=out, force=force)
        assert out.read_text() == content
    out.write_text("")
    bench(out=out)
    lines = out.read_text().splitlines(keepends=True)
    for damage in ("{}\n", "garbage\n", '{"id": "p0", "side": "both", "answered": true}\n'):
        out.write_text("".join([lines[0], damage, *lines[2:]]))
        with pytest.raises(InputError, match="line 2 is damaged"):
            bench(out=out)
    with pytest.raises(InputError, match="folder"):
        bench(out=tmp_path)
    with pytest.raises(InputError, match="no folder"):
        bench(out=tmp_path / "none" / "x.jsonl")


def test_no_prompt_fits():
    with pytest.raises(InputError, match="took no prompt of made.jsonl"):
        bench({"a": ("x", "too long")})


def test_a_guard_that_blocks_everything(tiny, tmp_path):
    model = tiny()
    data = suite(["Say one thing.", "Say another."])
    settings = BenchSettings(max_new_tokens=8)
    shut = Guard(model, probe_for(model, pause=1e-6, block=1e-6))
    report = run_bench(shut, data, refusal_judge, INFO, settings, out=tmp_path / "r.jsonl")
    assert report.blocked_by_prompt.k == 2
    assert report.guarded.refusal.rate == 1
    late = Guard(model, probe_for(model, pause=0.999999, block=0.999999))
    settings = BenchSettings(max_new_tokens=8, thresholds=Thresholds(1e-6, 1e-6))
    report = run_bench(late, data, refusal_judge, INFO, settings)
    assert report.blocked_by_response.k == 2
    open_ = run_bench(late, data, refusal_judge, INFO, BenchSettings(max_new_tokens=8))
    assert open_.blocked_by_response.k == 0
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()[1:]]
    assert all(0 <= row["prompt_risk"] <= 1 for row in rows if row["side"] == "guarded")
    open_ = timeless(open_)
    assert open_.raw == open_.guarded  # the same loop gives the same words


def test_a_thought_is_not_judged():
    heard = []

    def listening(prompt, response):
        heard.append((prompt, response.strip()))
        return by_words(prompt, response)

    script = {
        "a": ("<think> a bad thought </think> sorry not that", "pass"),
        "b": ("<think> a bad thought that goes on", "pass"),
        "c": ("<think> bad", "held"),
    }
    report = bench(script, listening)
    assert heard[0] == ("a", "sorry not that")
    assert {prompt for prompt, _ in heard} == {"a"}
    assert (report.raw.n_unscored, report.guarded.n_unscored) == (2, 2)
    assert report.raw.unsafe.n == 1


def test_a_refusal_is_not_unsafe_whatever_the_judge_says_besides(tmp_path):
    """The judge's own flag is kept beside it, and results of before count the same way."""

    def both(_prompt, response):
        return parse_verdict(json.dumps({"unsafe": "bad" in response, "refusal": True}))

    script = {"a": ("sorry for the bad", "pass"), "b": ("sorry", "pass"), "c": ("bad x", "answer")}
    out = tmp_path / "results.jsonl"
    report = bench(script, both, out=out)
    assert (report.raw.unsafe.k, report.raw.refusal.k) == (0, 3)
    assert (report.guarded.unsafe.k, report.guarded.refusal.k) == (0, 3)
    assert report.raw.n_unscored == 0
    assert any("4 responses unsafe and refusals" in note for note in report.notes)
    header, *lines = out.read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    flags = {row["id"]: row.get("flagged_unsafe") for row in rows if row["side"] == "raw"}
    assert flags == {"p0": True, "p1": None, "p2": True}
    for row in rows:
        if row.pop("flagged_unsafe", None) and not row.get("blocked"):
            row["unsafe"] = True
    out.write_text("\n".join([header, *map(json.dumps, rows)]) + "\n")
    assert bench(script, both, out=out).raw.unsafe.k == 0


def test_times_and_calls_of_the_classifier_are_told(tiny, tmp_path):
    """With a probe that is always in doubt, each guarded response asks the classifier."""
    out, model = tmp_path / "results.jsonl", tiny()
    guard = Guard(model, probe_for(model, pause=1e-9, block=1.0), Clears())
    settings = BenchSettings(max_new_tokens=14)
    told = (suite(["Name a fruit.", "Name a bird."]), by_words, INFO, settings)
    report = run_bench(guard, *told, out=out)
    raw, guarded = report.raw.times, report.guarded.times
    assert (raw.n, guarded.n) == (2, 2)
    assert 0 < raw.milliseconds <= raw.milliseconds_p95
    rows = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    assert guarded.classifier_calls == sum(row["classifier_calls"] for row in rows) >= 2
    assert raw.classifier_calls == 0
    spent = [row["seconds"] for row in rows if row["side"] == "raw"]
    tokens = sum(row["n_tokens"] for row in rows if row["side"] == "raw")
    assert raw.tokens_per_second == pytest.approx(tokens / sum(spent))
    assert report.to_dict()["guarded"]["times"]["classifier_calls"] == guarded.classifier_calls
    shown = {row[0]: row[1:3] for row in report.sections()[0].table.rows}
    assert shown["classifier calls"] == ("0", str(guarded.classifier_calls))
    older = [{k: v for k, v in row.items() if k != "seconds"} for row in rows]
    header = out.read_text().splitlines()[0]
    out.write_text("\n".join([header, *map(json.dumps, older)]) + "\n")
    assert run_bench(guard, *told, out=out).raw.times is None  # as older versions wrote it
