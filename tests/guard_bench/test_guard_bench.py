"""Benchmarks of the guard: data, judges, results that survive a kill, and what is reported."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest

from modelassay.cli.main import run
from modelassay.errors import InputError, UnavailableError
from modelassay.guard import Guard, GuardEvent, Thresholds
from modelassay.guard_bench.judges import Judgement, classifier_judge, refusal_judge
from modelassay.guard_bench.latency import CLASSIFIER, GENERATE, PROBE, RAW, measure_latency
from modelassay.guard_bench.openai_judge import (
    FILTERED,
    LONGEST_WAIT,
    UNCLEAR,
    openai_judge,
    parse_verdict,
    waiting_time,
)
from modelassay.guard_bench.report import difference_of, rate_of
from modelassay.guard_bench.results import RESULTS_SCHEMA
from modelassay.guard_bench.running import BenchSettings, run_bench
from modelassay.guard_bench.suites import BenchPrompt, SuiteData, read_suite
from modelassay.probes import save_probe
from modelassay.report import to_json
from modelassay.statistics import newcombe_interval, wilson_interval
from tiny import probe_for

REFUSAL = "I can't help with that."
SECRET = "sk-loopback-0123456789abcdef"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


# Data


LAYOUTS = {
    "JailbreakBench": [
        {"Index": 0, "Goal": "Do A", "Target": "Sure", "Behavior": "A", "Category": "one"},
        {"Index": 1, "Goal": "Do B", "Target": "Sure", "Behavior": "B", "Category": "two"},
    ],
    "HarmBench": [
        {
            "Behavior": "Do A",
            "BehaviorID": "a",
            "SemanticCategory": "one",
            "FunctionalCategory": "standard",
            "ContextString": None,
        },
        {
            "Behavior": "Do B",
            "BehaviorID": "b",
            "SemanticCategory": "two",
            "FunctionalCategory": "contextual",
            "ContextString": "Some context",
        },
    ],
    "StrongREJECT": [
        {"category": "one", "source": "x", "forbidden_prompt": "Do A"},
        {"category": "two", "source": "x", "forbidden_prompt": "Do B"},
    ],
    "WildGuardTest": [
        {"prompt": "Do A", "adversarial": True, "prompt_harm_label": "harmful", "response": ""},
        {"prompt": "Do B", "adversarial": False, "prompt_harm_label": "harmful", "response": ""},
        {"prompt": "Do C", "adversarial": False, "prompt_harm_label": "unharmful", "response": ""},
        {"prompt": "Do D", "adversarial": False, "prompt_harm_label": None, "response": ""},
    ],
    "XSTest": [
        {"id": 1, "prompt": "Do C", "type": "homonyms", "label": "safe"},
        {"id": 2, "prompt": "Do A", "type": "contrast_homonyms", "label": "unsafe"},
        {"id": 3, "prompt": "Do B", "type": "contrast_targets", "label": "unsafe"},
    ],
    "plain": [{"prompt": "Do A", "label": "harmful"}, {"prompt": "Do B", "label": "unsafe"}],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    data = read_suite("jailbreak", save(tmp_path / "rows.jsonl", LAYOUTS[layout]))
    assert data.layout == layout
    context = "Some context\n\n---\n\n" if layout == "HarmBench" else ""
    assert [prompt.prompt for prompt in data.prompts] == ["Do A", f"{context}Do B"]
    assert all(prompt.harmful for prompt in data.prompts)
    assert len({prompt.id for prompt in data.prompts}) == 2
    assert data.source == "rows.jsonl"


def test_the_other_side_of_a_layout(tmp_path):
    for layout, other, unlabelled in (("XSTest", 2, 0), ("WildGuardTest", 2, 1)):
        data = read_suite("overrefusal", save(tmp_path / "rows.jsonl", LAYOUTS[layout]))
        assert [prompt.prompt for prompt in data.prompts] == ["Do C"]
        assert (data.n_other_side, data.n_unlabelled) == (other, unlabelled)
    no_label = [{k: v for k, v in row.items() if k != "label"} for row in LAYOUTS["XSTest"]]
    data = read_suite("overrefusal", save(tmp_path / "rows.jsonl", no_label))
    assert [prompt.id for prompt in data.prompts] == ["1"]
    with pytest.raises(InputError, match="no benign prompts"):
        read_suite("overrefusal", save(tmp_path / "rows.jsonl", LAYOUTS["HarmBench"]))


def test_jailbreakbench_says_its_side_in_the_files_name(tmp_path):
    benign = save(tmp_path / "benign-behaviors.jsonl", LAYOUTS["JailbreakBench"])
    assert len(read_suite("overrefusal", benign).prompts) == 2
    with pytest.raises(InputError, match="no harmful prompts"):
        read_suite("jailbreak", benign)


def test_the_suites_own_data(monkeypatch):
    asked = []

    def read(where, **options):
        asked.append((where, options["config"], options["split"]))
        return LAYOUTS["XSTest"] if "XSTest" in where else LAYOUTS["JailbreakBench"]

    monkeypatch.setattr("modelassay.guard_bench.suites.read_dataset", read)
    assert len(read_suite("jailbreak").prompts) == 2
    assert len(read_suite("overrefusal").prompts) == 1
    assert len(read_suite("overrefusal", "JailbreakBench/JBB-Behaviors").prompts) == 2
    assert len(read_suite("jailbreak", "some/XSTest", config="a", split="b").prompts) == 2
    assert asked == [
        ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
        ("Paul/XSTest", None, "train"),
        ("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
        ("some/XSTest", "a", "b"),
    ]
    assert all(not prompt.harmful for prompt in read_suite("latency").prompts)


def test_unknown_layouts_and_rows(tmp_path):
    with pytest.raises(InputError, match=r"columns question, x; .*XSTest \(prompt, type\)") as e:
        read_suite("jailbreak", save(tmp_path / "a.jsonl", [{"question": "?", "x": 1}]))
    assert "JailbreakBench (goal, target)" in str(e.value)
    with pytest.raises(InputError, match="Row 2 of a.jsonl"):
        read_suite("jailbreak", save(tmp_path / "a.jsonl", [{"prompt": "A"}, {"prompt": " "}]))
    with pytest.raises(InputError, match="No data file"):
        read_suite("jailbreak", tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="limit"):
        read_suite("latency", limit=0)


def test_limit_takes_evenly_and_ids_are_unique(tmp_path):
    rows = [{"id": "same", "prompt": f"p{n}", "category": str(n // 5)} for n in range(10)]
    path = save(tmp_path / "rows.jsonl", rows)
    assert [p.prompt for p in read_suite("jailbreak", path, limit=2).prompts] == ["p0", "p5"]
    whole = read_suite("jailbreak", path)
    assert len({p.id for p in whole.prompts}) == 10
    assert whole.sha256 != read_suite("jailbreak", path, limit=2).sha256
    assert whole.sha256 == read_suite("jailbreak", path).sha256


# Runs


class FakeGuard:
    """Answers by a script: for each prompt what the model says, and what the guard does."""

    def __init__(self, script, weights="0" * 64):
        self.script = script
        info = {"id": "fake", "weights_sha256": weights}
        self.model = SimpleNamespace(info=SimpleNamespace(to_dict=lambda: info))
        self.probe = None
        self.classifier = None
        self.asked = []

    def stream(self, prompt, *, guarded, max_new_tokens, thresholds=None):
        self.asked.append((prompt, guarded))
        said, action = self.script[prompt]
        if action == "too long":
            raise InputError(f"A prompt is too long (it begins “{prompt}…”).")
        return self.events(said, action if guarded else "pass", guarded)

    def events(self, said, action, guarded) -> Iterator[GuardEvent]:
        risk = 0.3 if guarded else None
        if guarded:
            yield GuardEvent(
                "prompt", 0, "", 0.9, None, "refuse" if action == "prompt" else "pause"
            )
        if action == "prompt":
            yield GuardEvent("end", 0, REFUSAL, None, None, "refuse", "prompt refused")
            return
        words = said.split(" ") if said else []
        for i, word in enumerate(words, 1):
            if action == "answer" and i == 3:
                yield GuardEvent("token", i, "", 0.99, 0.9, "refuse")
                yield GuardEvent("end", i, REFUSAL, None, 0.9, "refuse", "answer refused")
                return
            shown = "" if action == "held" else word + " "
            yield GuardEvent("token", i, shown, risk, risk, "continue")
        rest = said if action == "held" else ""
        yield GuardEvent("end", len(words), rest, None, risk, "stop", "end")


def by_words(prompt, response):
    """A judge that is told in the answer."""
    if "unclear" in response:
        return Judgement(None, None, "unscored: no clear answer")
    return Judgement("bad" in response, "sorry" in response)


def suite(prompts):
    items = tuple(
        BenchPrompt(f"p{n}", prompt, True, "even" if n % 2 == 0 else "odd")
        for n, prompt in enumerate(prompts)
    )
    return SuiteData("jailbreak", items, "made.jsonl", "plain", 0, 0)


SCRIPT = {
    "a": ("bad one two three four", "pass"),
    "b": ("bad five", "prompt"),
    "c": ("bad six seven eight", "answer"),
    "d": ("fine nine ten eleven", "answer"),
    "e": ("sorry not this", "pass"),
    "f": ("unclear what", "held"),
    "g": ("", "pass"),
    "h": ("never said", "too long"),
}
INFO = {"name": "words"}


def bench(script=SCRIPT, judge=by_words, **options):
    guard = options.pop("guard", None) or FakeGuard(script)
    return run_bench(guard, suite(list(script)), judge, INFO, **options)


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
    assert (report.blocked_by_answer.k, report.blocked_by_answer.n) == (2, 7)
    assert report.unsafe_difference.value == pytest.approx(-1 / 6)
    assert report.unsafe_difference.interval == newcombe_interval(2, 6, 3, 6)
    # Refused: e on both sides, and whatever the guard blocked.
    assert (report.raw.refusal.k, report.raw.refusal.n) == (1, 6)
    assert (report.guarded.refusal.k, report.guarded.refusal.n) == (4, 6)
    assert report.n == 8
    assert report.categories["even"].raw_unsafe == 2
    assert report.categories["even"].blocked == 1
    assert sum(counts.n for counts in report.categories.values()) == 8
    assert any("2 answers could not be scored" in note for note in report.notes)
    found = json.loads(to_json(report))
    assert found["schema"] == "modelassay.guard-bench/1"
    assert found["raw"]["unsafe"]["interval"][0] == pytest.approx(wilson_interval(3, 6)[0], 1e-4)


def test_wilson_and_newcombe_numbers():
    # 5 of 10, from the closed form: centre 0.5, half width z sqrt(n/4 + z²/4) / (n + z²).
    assert rate_of(5, 10).interval == pytest.approx((0.2366, 0.7634), abs=1e-4)
    assert rate_of(0, 0).rate is None
    # Newcombe (1998), table II: 56/70 - 48/80 gives 0.0524 to 0.3339.
    pairs = [(n < 48, True) for n in range(56)] + [(False, False) for _ in range(14)]
    assert difference_of(pairs).interval == newcombe_interval(56, 70, 48, 70)
    assert newcombe_interval(56, 70, 48, 80) == pytest.approx((0.0524, 0.3339), abs=1e-4)
    assert difference_of([(None, True)]).value is None


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


def test_goes_on_after_a_kill(tmp_path):
    out = tmp_path / "results.jsonl"
    whole = bench(out=out)
    lines = out.read_bytes().splitlines(keepends=True)
    assert json.loads(lines[0])["schema"] == RESULTS_SCHEMA
    assert len(lines) == 1 + 2 * len(SCRIPT)
    for kept in (1, 4, 7):  # the header alone; half a prompt; some prompts; a torn line each
        out.write_bytes(b"".join(lines[:kept]) + lines[kept][:-9])
        guard = FakeGuard(SCRIPT)
        assert bench(guard=guard, out=out) == whole
        assert len(guard.asked) == 2 * len(SCRIPT) - (kept - 1)
        assert out.read_bytes() == b"".join(lines)
    guard = FakeGuard(SCRIPT)
    assert bench(guard=guard, out=out) == whole
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
    assert bench(guard=guard, out=out) == bench()
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


# Judges


def test_classifier_judge():
    class Classifier:
        threshold = 0.99  # for streams; a judge says what is likeliest

        def __init__(self, row):
            self.row = row

        def predict(self, exchanges):
            return np.array([self.row], dtype=np.float32)

    def judge(*row):
        return classifier_judge(Classifier(row))("prompt", "response")

    assert (judge(0.9, 0.05, 0.05).unsafe, judge(0.9, 0.05, 0.05).refusal) == (False, False)
    assert judge(0.1, 0.8, 0.1).refusal is True
    assert judge(0.2, 0.2, 0.6).unsafe is True
    assert judge(0.5, 0.1, 0.4).unsafe is False
    assert judge(0.1, 0.4, 0.5).refusal is False
    assert judge(float("nan"), 0.5, 0.4).unsafe is None


@pytest.fixture
def endpoint(monkeypatch):
    """A chat completions endpoint here that answers by a script, and what it was asked."""
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    script, asked = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, self.headers.get("Authorization"), body))
            status, headers, answer = script.pop(0) if len(script) > 1 else script[0]
            if status == "hang":
                time.sleep(answer)
                return
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if headers.get("X-Drip"):
                for byte in content:
                    time.sleep(0.05)
                    try:
                        self.wfile.write(bytes([byte]))
                    except OSError:
                        return
                return
            self.wfile.write(content)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield SimpleNamespace(
        url=f"http://127.0.0.1:{server.server_port}/v1", script=script, asked=asked
    )
    server.shutdown()
    server.server_close()


def reply(text):
    return 200, {}, {"choices": [{"message": {"role": "assistant", "content": text}}]}


def judge_at(endpoint, waits=None, **options):
    waits = [] if waits is None else waits
    return openai_judge(endpoint.url, "a-model", sleep=waits.append, **options)


def test_endpoint_with_good_json(endpoint):
    endpoint.script.append(reply('{"unsafe": true, "refusal": false}'))
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
        reply("I would rather say that it is safe"),
        reply(None),
        (200, {}, b"<html>"),
        (200, {}, b"[]"),
        (200, {}, {"choices": []}),
        (200, {}, {"choices": [{"message": "safe"}]}),
        (200, {}, b"[" * 100_000),
    ]
    endpoint.script.extend([*garbage, reply("safe")])
    judge = judge_at(endpoint)
    for _ in garbage:
        assert judge("p", "r") == UNCLEAR
    assert judge("p", "half a pair \ud800").unsafe is False


def test_endpoint_that_is_busy(endpoint):
    waits = []
    endpoint.script.extend([(429, {"Retry-After": "7"}, {}), (500, {}, {}), reply("unsafe")])
    assert judge_at(endpoint, waits)("p", "r").unsafe is True
    assert waits[0] == 7
    assert 1 <= waits[1] <= 2
    assert len(endpoint.asked) == 3


def test_endpoint_that_stays_broken(endpoint):
    waits = []
    endpoint.script.append((503, {}, {}))
    with pytest.raises(UnavailableError, match=r"no answer in 3 attempts \(HTTP 503\)"):
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
            reply("safe"),
            (400, {}, {"error": {"code": "content_policy_violation"}}),
            (404, {}, {}),
            (302, {"Location": "http://127.0.0.1:9/"}, {}),
        ]
    )
    judge = judge_at(endpoint)
    assert judge("p", "r").unsafe is False
    assert "temperature" in endpoint.asked[0][2]
    assert "temperature" not in endpoint.asked[1][2]
    assert judge("p", "r") == FILTERED
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


def test_waiting():
    assert waiting_time(0, "3") == 3
    assert waiting_time(0, "100000") == LONGEST_WAIT
    assert waiting_time(0, "Wed, 21 Oct 2015 07:28:00 GMT") == 0
    assert 2 <= waiting_time(2, "soon") <= 4
    assert waiting_time(50, None) <= LONGEST_WAIT


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
    keys = {
        url: openai_judge(url, "m").__self__.key  # type: ignore[attr-defined]
        for url in ("http://judge.example/v1", "https://judge.example/v1", "http://localhost/v1")
    }
    assert list(keys.values()) == [None, SECRET, SECRET]


# With a model


class Clears:
    """A classifier that clears everything."""

    id = "clears"
    threshold = 0.5

    def predict(self, exchanges):
        return np.array([[1.0, 0.0, 0.0]] * len(exchanges), dtype=np.float32)


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
    assert report.blocked_by_answer.k == 2
    open_ = run_bench(late, data, refusal_judge, INFO, BenchSettings(max_new_tokens=8))
    assert open_.blocked_by_answer.k == 0
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()[1:]]
    assert all(0 <= row["prompt_risk"] <= 1 for row in rows if row["side"] == "guarded")
    assert open_.raw == open_.guarded  # the same loop gives the same words


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
    shut = Guard(model, probe_for(model, pause=1e-6, block=1e-6))
    with pytest.raises(InputError, match="None of the 3 prompts"):
        measure_latency(shut, data, new_tokens=6, rounds=1)


# The command


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
    latency = ["--suite", "latency", "--rounds", "1", "--limit", "2", "--classifier", "none", "-q"]
    assert run(["guard", "bench", "any", *latency, "--max-new-tokens", "4"]) == 0
    assert "time / generate" in capfd.readouterr().out


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
    first = capfd.readouterr().out
    report = json.loads(first)
    assert report["probe"]["name"] == probe.name
    assert report["classifier"] is None
    lines = out.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:2]) + lines[2][:20])  # as a kill leaves it
    assert run(command) == 0
    assert capfd.readouterr().out == first
    assert out.read_bytes() == b"".join(lines)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--suite", "other"], "Unknown suite"),
        (["--judge", "other"], "Unknown judge"),
        (["--judge", "openai"], "needs --judge-url and --judge-model"),
        (["--judge", "openai", "--judge-url", "ftp://x", "--judge-model", "m"], "http://"),
        (["--judge-url", "http://x"], "is for --judge openai"),
        (["--judge", "refusal", "--judge-model", "m"], "--judge-model is for"),
        (["--keep-text"], "needs --out"),
        (["--suite", "latency", "--block", "0.5"], "own thresholds"),
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
