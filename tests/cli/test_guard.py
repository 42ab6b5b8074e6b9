"""`modelassay guard bench` as a user runs it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from benches import LAYOUTS, Clears, rows_without_times, save
from chat_endpoint import says
from modelassay.cli.main import run
from modelassay.guard import Guard
from modelassay.probes import save_probe
from tiny import probe_for


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def fake_load(tiny, monkeypatch):
    model = tiny()

    def load_guard(_model_id, **options):
        judge = Clears() if options["classifier"] else None
        return Guard(model, probe_for(model, pause=0.999, block=1.0), judge)

    monkeypatch.setattr("modelassay.guard.load_guard", load_guard)


def test_command(fake_load, tmp_path, capfd):
    data = save(tmp_path / "rows.jsonl", LAYOUTS["XSTest"])
    command = ["guard", "bench", "any", "--data", str(data), "--max-new-tokens", "4"]
    out = ["--out", str(tmp_path / "out.jsonl")]
    assert run([*command, "--json", *out]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["suite"], report["n"], report["judge"]["name"]) == ("jailbreak", 2, "classifier")
    assert any("very classifier" in note for note in report["notes"])
    assert run([*command, "--suite", "overrefusal", "-q"]) == 0
    assert "1 prompts of rows.jsonl, judge refusal" in capfd.readouterr().out
    assert run([*command, *out, "--pause", "0.5", "-q"]) == 64
    assert "other settings" in capfd.readouterr().err
    page = tmp_path / "report.html"
    assert run([*command, "-q", "--html", str(page)]) == 0
    assert "tokens / s" in capfd.readouterr().out
    assert "tokens / s" in page.read_text()
    latency = ["--suite", "latency", "--rounds", "1", "--limit", "2", "--classifier", "none", "-q"]
    assert run(["guard", "bench", "any", *latency, "--max-new-tokens", "4"]) == 0
    shown = capfd.readouterr().out
    assert "time / generate" in shown
    assert "ms a response" in shown


def test_a_final_check_and_doubt_are_counted(tiny, monkeypatch, tmp_path, capfd):
    class Doubts(Clears):
        threshold = 0.9

        def predict(self, exchanges):
            return np.array([[0.5, 0.0, 0.5]] * len(exchanges), dtype=np.float32)

    model = tiny()
    guard = Guard(model, probe_for(model, pause=0.999, block=1.0), Doubts())
    monkeypatch.setattr("modelassay.guard.load_guard", lambda _model, **_: guard)
    data = save(tmp_path / "rows.jsonl", LAYOUTS["plain"])
    command = ["guard", "bench", "any", "--data", str(data), "--max-new-tokens", "4", "-q"]
    command += ["--judge", "refusal"]

    def report(*options):
        assert run([*command, "--json", *options]) == 0
        return json.loads(capfd.readouterr().out)

    plain = report()
    assert plain["blocked_by_answer"]["k"] == plain["shown_uncertain"]["k"] == 0
    assert "second_opinion" not in plain["settings"]
    checked = report("--final-check", "--block-at", "0.4")
    assert (checked["blocked_by_answer"]["k"], checked["n"]) == (2, 2)
    assert checked["settings"]["second_opinion"]["block"] == 0.4
    doubted = report("--final-check", "--uncertain-at", "0.4")
    assert (doubted["shown_uncertain"]["k"], doubted["shown_uncertain"]["n"]) == (2, 2)
    assert run([*command, "--final-check", "--uncertain-at", "0.4"]) == 0
    assert "shown as uncertain" in capfd.readouterr().out


def test_command_with_a_model_and_probe_from_disk(tiny, tiny_folder, tmp_path, capfd):
    probe = probe_for(tiny(), pause=0.999, block=1.0)
    (tmp_path / "probe").mkdir()
    save_probe(probe.record, probe.heads, tmp_path / "probe")
    rows = save(tmp_path / "rows.jsonl", LAYOUTS["plain"])
    out = tmp_path / "out.jsonl"
    command = ["guard", "bench", str(tiny_folder()), "--probe", str(tmp_path / "probe"), "--json"]
    command += ["--data", str(rows), "--classifier", "none", "--judge", "refusal"]
    command += ["--max-new-tokens", "6", "--out", str(out)]
    assert run(command) == 0
    report = timeless_json(capfd.readouterr().out)
    assert report["probe"]["name"] == probe.name
    assert report["classifier"] is None
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # as a kill leaves it
    assert run(command) == 0
    assert timeless_json(capfd.readouterr().out) == report
    again = out.read_bytes().splitlines(keepends=True)
    assert rows_without_times(again) == rows_without_times(lines)


def test_a_judge_that_fails_ends_the_run_in_one_line_and_it_goes_on(
    fake_load, endpoint, tmp_path, capfd
):
    rows = [{"prompt": f"Name tree {i}."} for i in range(3)]
    out = tmp_path / "out.jsonl"
    command = ["guard", "bench", "any", "--data", str(save(tmp_path / "rows.jsonl", rows)), "-q"]
    command += ["--classifier", "none", "--max-new-tokens", "4", "--out", str(out), "--json"]
    command += ["--judge", "openai", "--judge-url", endpoint.url, "--judge-model", "m"]
    command += ["--attempts", "1", "--timeout", "0.5"]
    good = says('{"unsafe": false, "refusal": false}')
    failures = {
        "HTTP 503": (503, {}, {}),
        "timed out": ("hang", {}, 2),
        "no connection": (200, {"X-Cut": "1"}, {"choices": [{"message": {"content": "safe"}}]}),
    }
    answered = 0
    for reason, failure in failures.items():
        endpoint.script[:] = [good, failure] if answered < 2 else [failure]
        endpoint.asked.clear()
        assert run(command) == 69
        shown, err = capfd.readouterr()
        assert shown == ""
        assert len(err.splitlines()) == 1
        assert f"no response in 1 attempts ({reason})" in err
        assert "goes on where it stopped" in err
        answered = len(out.read_bytes().splitlines()) - 1
    endpoint.script[:] = [says("What a nice day.")]
    assert run(command) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["n"] == 3
    assert 0 < report["raw"]["unsafe"]["n"] < 3  # nonsense leaves a response unscored


def timeless_json(text):
    """A report without its times, which no two runs share."""
    report = json.loads(text)
    for side in ("raw", "guarded"):
        assert report[side].pop("times")["milliseconds"] > 0
    return report


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--suite", "other"], "Unknown suite"),
        (["--suite", "xstest", "--data", "rows.jsonl"], "has data of its own"),
        (["--judge", "other"], "Unknown judge"),
        (["--judge", "openai"], "needs --judge-url and --judge-model"),
        (["--judge", "openai", "--judge-url", "ftp://x", "--judge-model", "m"], "http://"),
        (["--judge-url", "http://x"], "is for --judge openai"),
        (["--judge", "refusal", "--judge-model", "m"], "--judge-model is for"),
        (["--timeout", "5"], "are for --judge openai"),
        (["--judge", "refusal", "--attempts", "2"], "are for --judge openai"),
        (
            [
                "--judge",
                "openai",
                "--judge-url",
                "http://x",
                "--judge-model",
                "m",
                "--timeout",
                "0",
            ],
            "--timeout must be more than 0",
        ),
        (["--suite", "latency", "--attempts", "2"], "leave --judge"),
        (["--keep-text"], "needs --out"),
        (["--suite", "latency", "--block", "0.5"], "own thresholds"),
        (["--suite", "latency", "--final-check"], "own thresholds"),
        (["--suite", "latency", "--judge", "refusal"], "leave --judge"),
        (["--data", "no/such/file.jsonl"], "No data file"),
    ],
)
def test_command_refuses(options, says, capfd):
    assert run(["guard", "bench", "any", *options]) == 64
    err = capfd.readouterr().err
    assert says in err
    assert err.startswith("modelassay: ")
    assert len(err.splitlines()) == 1


def test_suites_are_listed(capfd):
    assert run(["guard", "suites"]) == 0
    assert "strongreject" in capfd.readouterr().out
    assert run(["guard", "suites", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert rows["jailbreakbench-judges"]["config"] == "judge_comparison"
    assert rows["wildguard"]["gated"] is True
