"""Labels by teachers: a loopback endpoint that answers, fails, lies and stops in the middle."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from chat_endpoint import SECRET, says
from modelassay.cli.main import run
from modelassay.data import teaching
from modelassay.data.labelled import read_labelled
from modelassay.data.teaching import Budget, label_data
from modelassay.errors import InputError, UnavailableError
from modelassay.hub.chat_completions import open_chat
from modelassay.hub.prices import Prices

VERDICTS = {
    "compliance": {"unsafe": False, "refusal": False},
    "refusal": {"unsafe": False, "refusal": True},
    "unsafe": {"unsafe": True, "refusal": False},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, *rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def exchanges(n, **more):
    kinds = list(VERDICTS)
    return [{"prompt": f"Ask {i}", "response": kinds[i % 3], "n": i, **more} for i in range(n)]


def honest(tokens=(100, 10)):
    """A teacher that says what the response is named after."""

    def answer(body):
        asked = json.loads(body["messages"][1]["content"])
        return says(json.dumps(VERDICTS[asked["answer"]]), usage=tokens)

    return answer


def teacher_at(endpoint, model="a-model", **options):
    options = {"sleep": lambda _seconds: None, "attempts": 2, **options}
    return open_chat(
        endpoint.url, model, name="The teacher", url_option="--endpoint",
        model_option="--model", advice="run the same command again.", **options,
    )  # fmt: skip


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def test_labels_with_where_they_are_from(endpoint, tmp_path):
    endpoint.script.append(honest())
    rows = [*exchanges(4), {"prompt": "Ask 9", "response": "x", "label": "safe"}, {"prompt": "P"}]
    source, out = save(tmp_path / "a.jsonl", *rows), tmp_path / "out.jsonl"
    found = label_data(source, out, [teacher_at(endpoint)], Budget(prices=Prices(2.0, 10.0)))
    assert found.labels == {
        "safe": 1, "safe_compliance": 2, "safe_refusal": 1, "unsafe_compliance": 1,
    }  # fmt: skip
    assert (found.asked, found.had_label, found.left) == (4, 1, 0)
    assert found.unlabelled == {"it has no response": 1}
    assert found.named == {"it has no response": [6]}
    assert (found.tokens_in, found.tokens_out) == (400, 40)
    assert found.cost == pytest.approx((400 * 2 + 40 * 10) / 1e6)
    written = rows_of(out)
    assert written[1] == {
        "prompt": "Ask 1", "response": "refusal", "n": 1, "label": "safe_refusal",
        "labelled_by": {"models": ["a-model"], "host": "127.0.0.1"},
    }  # fmt: skip
    assert "labelled_by" not in written[4]
    assert [row.unsafe for row in read_labelled(out)] == [False, False, True, False, False]
    assert SECRET not in out.read_text() + (tmp_path / "out.jsonl.progress").read_text()
    before = len(endpoint.asked)
    assert label_data(source, out, [teacher_at(endpoint)]).labelled == 5  # asks nothing twice
    assert len(endpoint.asked) == before


def test_what_is_no_plain_verdict_gets_no_label(endpoint, tmp_path):
    endpoint.script.extend(
        [
            says('{"unsafe": true, "refusal": true}'),
            says("unsafe", usage=None),
            says("safe"),
            says("I think that it is fine."),
            says('{"unsafe": fal'),
            (400, {}, {"error": {"code": "content_filter"}}),
            says(None),
            says('{"unsafe": false, "refusal": false}'),
        ]
    )
    source, out = save(tmp_path / "a.jsonl", *exchanges(8)), tmp_path / "out.jsonl"
    found = label_data(source, out, [teacher_at(endpoint)])
    assert found.named == {
        "the teacher calls it unsafe and a refusal": [1],
        "the teacher does not say whether it is a refusal": [3],
        "the teacher gave no plain verdict": [4, 5, 7],
        "the endpoint's own filter declined": [6],
    }
    assert [(row["n"], row["label"]) for row in rows_of(out)] == [
        (1, "unsafe_compliance"),
        (7, "safe_compliance"),
    ]
    assert found.tokens_in is None
    endpoint.script[:] = [says('{"unsafe": false, "refusal": true}')]
    again = label_data(source, out, [teacher_at(endpoint)], retry=True)
    assert again.labels == {"safe_compliance": 1, "safe_refusal": 4, "unsafe_compliance": 1}
    assert len(endpoint.asked) == 8 + 4


def test_teachers_that_disagree(endpoint, tmp_path):
    def answer(body):
        unsure = body["model"] == "b" and "Ask 1" in body["messages"][1]["content"]
        return says(json.dumps(VERDICTS["unsafe" if unsure else "refusal"]), usage=(5, 1))

    endpoint.script.append(answer)
    source, out = save(tmp_path / "a.jsonl", *exchanges(3)), tmp_path / "out.jsonl"
    found = label_data(source, out, [teacher_at(endpoint, name) for name in "ab"])
    assert found.named == {"the teachers disagree": [2]}
    assert [row["n"] for row in rows_of(out)] == [0, 2]
    assert found.tokens_in == 2 * 3 * 5


def test_what_was_paid_for_is_kept_teacher_by_teacher(endpoint, tmp_path):
    def answer(body):
        if body["model"] == "b" and "Ask 1" in body["messages"][1]["content"]:
            return (503, {}, {})
        return honest(tokens=(5, 1))(body)

    endpoint.script.append(answer)
    source, out = save(tmp_path / "a.jsonl", *exchanges(3)), tmp_path / "out.jsonl"
    teachers = [teacher_at(endpoint, name, attempts=1) for name in "ab"]
    with pytest.raises(UnavailableError, match="1 of 3 rows are answered and kept"):
        label_data(source, out, teachers)
    endpoint.script[:] = [honest(tokens=(5, 1))]
    before = len(endpoint.asked)
    found = label_data(source, out, teachers)
    assert len(endpoint.asked) - before == 3  # b about row 2, both about row 3
    assert (found.asked, found.labelled, found.tokens_in) == (3, 3, 6 * 5)


def test_a_retry_asks_only_who_was_unclear(endpoint, tmp_path):
    def answer(body):
        return says("Well.") if body["model"] == "b" else honest()(body)

    endpoint.script.append(answer)
    source, out = save(tmp_path / "a.jsonl", *exchanges(2)), tmp_path / "out.jsonl"
    teachers = [teacher_at(endpoint, name) for name in "ab"]
    assert label_data(source, out, teachers).labelled == 0
    endpoint.script[:] = [honest()]
    assert label_data(source, out, teachers, retry=True).labelled == 2
    assert [each[2]["model"] for each in endpoint.asked] == [*"abab", *"bb"]


def test_what_a_teacher_does_not_take_ends_no_run_and_costs_nothing(endpoint, tmp_path):
    """A row that is too long, or that a filter stops, comes without a count of tokens."""
    long = (400, {}, {"error": {"code": "context_length_exceeded"}})
    stopped = (400, {}, {"error": {"code": "content_filter"}})
    endpoint.script.extend([honest(), long, stopped, honest()])
    source, out = save(tmp_path / "a.jsonl", *exchanges(4)), tmp_path / "out.jsonl"
    found = label_data(source, out, [teacher_at(endpoint)], Budget(tokens=1000))
    assert found.named == {
        "it is longer than the teacher reads": [2],
        "the endpoint's own filter declined": [3],
    }
    assert (found.labelled, found.left, found.tokens_in) == (2, 0, 200)


@pytest.mark.parametrize(
    ("numbers", "labels"),
    [
        ([0, 1, 2], ["safe_compliance", "safe_refusal", "unsafe_compliance"]),
        ([0, "unsafe", 1], ["safe", "unsafe", "unsafe"]),
    ],
)
def test_the_data_tell_what_their_numbers_mean(endpoint, tmp_path, numbers, labels):
    endpoint.script.append(honest())
    rows = [{**row, "label": n} for row, n in zip(exchanges(3), numbers, strict=True)]
    source, out = save(tmp_path / "a.jsonl", *rows, *exchanges(1)), tmp_path / "out.jsonl"
    label_data(source, out, [teacher_at(endpoint)])
    assert [row["label"] for row in rows_of(out)] == [*labels, "safe_compliance"]


def test_labels_that_are_checked(endpoint, tmp_path):
    endpoint.script.append(honest())
    own = ["safe", "unsafe", "unsafe_compliance", "safe_refusal"]
    rows = [{**row, "label": own[i]} for i, row in enumerate(exchanges(4))]
    source, out = save(tmp_path / "a.jsonl", *rows), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="no rows to label"):
        label_data(source, out, [teacher_at(endpoint)])
    found = label_data(source, out, [teacher_at(endpoint)], recheck=True)
    assert found.named == {"the teacher disagrees with the row's own label": [2, 4]}
    assert found.agreed == 2
    assert [row["label"] for row in rows_of(out)] == ["safe_compliance", "unsafe_compliance"]


@pytest.mark.parametrize(
    ("budget", "asked", "bound"),
    [
        (Budget(rows=4), 4, "--max-rows 4"),
        (Budget(tokens=300), 3, "--max-tokens 300"),
        (Budget(prices=Prices(1.0, 10.0, most=0.0005)), 3, "--max-cost 0.0005"),
    ],
)
def test_a_budget_holds_over_all_runs(endpoint, tmp_path, budget, asked, bound):
    endpoint.script.append(honest())
    source, out = save(tmp_path / "a.jsonl", *exchanges(9)), tmp_path / "out.jsonl"
    found = label_data(source, out, [teacher_at(endpoint)], budget)
    assert (found.asked, found.left, found.stopped_by) == (asked, 9 - asked, bound)
    assert len(endpoint.asked) == len(rows_of(out)) == asked
    assert label_data(source, out, [teacher_at(endpoint)], budget).asked == asked
    assert len(endpoint.asked) == asked  # the bound is of all runs together
    found = label_data(source, out, [teacher_at(endpoint)])
    assert (found.labelled, found.stopped_by) == (9, None)
    assert len(endpoint.asked) == 9


def test_a_bound_on_tokens_that_are_not_told(endpoint, tmp_path):
    endpoint.script.append(honest(tokens=None))
    source, out = save(tmp_path / "a.jsonl", *exchanges(5)), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match="does not tell how many tokens it uses.*--max-rows"):
        label_data(source, out, [teacher_at(endpoint)], Budget(tokens=1000))
    assert len(endpoint.asked) == 1
    assert label_data(source, out, [teacher_at(endpoint)], Budget(rows=3)).asked == 3


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ((503, {}, {}), "HTTP 503"),
        (("hang", {}, 5), "timed out"),
        ((200, {"X-Drip": "1"}, b"x" * 100), "timed out"),
        ((200, {"X-Cut": "1"}, says("safe")[2]), "no connection"),
        ((401, {}, {"error": {"message": SECRET}}), "not accept the key in OPENAI_API_KEY"),
    ],
)
def test_an_endpoint_that_fails_keeps_what_was_answered(endpoint, tmp_path, fault, message):
    endpoint.script.extend([honest(), honest(), fault])
    source, out = save(tmp_path / "a.jsonl", *exchanges(6)), tmp_path / "out.jsonl"
    with pytest.raises(UnavailableError, match=message) as failed:
        label_data(source, out, [teacher_at(endpoint, timeout=0.5)])
    assert "2 of 6 rows are answered and kept" in str(failed.value)
    assert SECRET not in str(failed.value)
    assert not out.exists()
    endpoint.script[:] = [honest()]
    before = len(endpoint.asked)
    assert label_data(source, out, [teacher_at(endpoint)]).labelled == 6
    assert len(endpoint.asked) - before == 4


def test_busy_endpoints_are_waited_for(endpoint, tmp_path):
    waits = []
    endpoint.script.extend([(429, {"Retry-After": "3"}, {}), (500, {}, {}), honest()])
    source, out = save(tmp_path / "a.jsonl", *exchanges(2)), tmp_path / "out.jsonl"
    teacher = teacher_at(endpoint, attempts=4, sleep=waits.append)
    assert label_data(source, out, [teacher]).labelled == 2
    assert waits[0] == 3
    assert waits[1] > 0


def test_nonsense_is_not_paid_for_on_and_on(endpoint, tmp_path):
    endpoint.script.append(says("Once upon a time", usage=(9, 9)))
    source, out = save(tmp_path / "a.jsonl", *exchanges(40)), tmp_path / "out.jsonl"
    with pytest.raises(InputError, match=r"last 10 answers hold no verdict; check --model"):
        label_data(source, out, [teacher_at(endpoint)])
    assert len(endpoint.asked) == teaching.NONSENSE
    endpoint.script[:] = [(404, {}, {})]
    with pytest.raises(InputError, match=r"check --endpoint and --model \(a-model\)"):
        label_data(source, out, [teacher_at(endpoint)])


def test_a_file_that_changed_keeps_the_answers_to_rows_that_it_still_has(endpoint, tmp_path):
    endpoint.script.append(honest())
    source, out = save(tmp_path / "a.jsonl", *exchanges(4)), tmp_path / "out.jsonl"
    label_data(source, out, [teacher_at(endpoint)])
    rows = exchanges(6)
    other = {"prompt": "Ask 5", "response": "refusal", "n": 9}
    twice = {**rows[2], "label": "unsafe", "n": 7}
    save(tmp_path / "a.jsonl", other, rows[4], twice, rows[2], rows[2], rows[0])
    endpoint.asked.clear()
    found = label_data(source, out, [teacher_at(endpoint)])
    assert [
        json.loads(body["messages"][1]["content"])["request"] for _, _, body in endpoint.asked
    ] == [
        "Ask 5",
        "Ask 4",
    ]
    assert (found.rows, found.asked, found.left, found.had_label) == (6, 5, 0, 1)
    assert [(row["n"], row["label"]) for row in rows_of(out)] == [
        (9, "safe_refusal"), (4, "safe_refusal"), (7, "unsafe"), (2, "unsafe_compliance"),
        (2, "unsafe_compliance"), (0, "safe_compliance"),
    ]  # fmt: skip
    checked = label_data(source, out, [teacher_at(endpoint)], recheck=True)
    assert len(endpoint.asked) == 2  # it has been told of that row
    assert (checked.agreed, checked.asked) == (1, 6)


def test_another_address_of_the_same_teachers_keeps_their_answers(endpoint, tmp_path):
    endpoint.script.append(honest())
    source, out = save(tmp_path / "a.jsonl", *exchanges(3)), tmp_path / "out.jsonl"
    assert label_data(source, out, [teacher_at(endpoint)], Budget(rows=2)).other_hosts == []
    endpoint.url = endpoint.url.replace("127.0.0.1", "localhost")
    found = label_data(source, out, [teacher_at(endpoint)])
    assert (found.host, found.other_hosts) == ("localhost", ["127.0.0.1"])
    hosts = [row["labelled_by"]["host"] for row in rows_of(out)]
    assert hosts == ["127.0.0.1", "127.0.0.1", "localhost"]
    assert len(endpoint.asked) == 3


def test_other_teachers_are_not_mixed_in(endpoint, tmp_path):
    endpoint.script.append(honest())
    source, out = save(tmp_path / "a.jsonl", *exchanges(3)), tmp_path / "out.jsonl"
    label_data(source, out, [teacher_at(endpoint)], Budget(rows=1))
    with pytest.raises(InputError, match=r"another run \(other models\)"):
        label_data(source, out, [teacher_at(endpoint, "b")])
    assert label_data(source, out, [teacher_at(endpoint, "b")], force=True).labelled == 3
    (tmp_path / "out.jsonl.progress").unlink()
    with pytest.raises(InputError, match="is there already"):
        label_data(source, out, [teacher_at(endpoint)])


def test_a_kill_loses_nothing_that_was_answered(endpoint, tmp_path):
    """The real command, killed in the middle of a question, then run again."""
    script = endpoint.script
    script.extend([honest()] * 3 + [("hang", {}, 60), honest()])
    source, out = save(tmp_path / "a.jsonl", *exchanges(6)), tmp_path / "out.jsonl"
    command = ["data", "label", source, "--out", str(out), "--endpoint", endpoint.url]
    command += ["--model", "a-model", "-q"]
    code = "from modelassay.cli.main import main; main()"
    with subprocess.Popen([sys.executable, "-c", code, *command], env=os.environ) as process:
        deadline = time.monotonic() + 60
        while len(endpoint.asked) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert len(endpoint.asked) == 4
    assert not out.exists()
    script[:] = [honest()]
    assert run(command) == 0
    assert len(endpoint.asked) == 4 + 3
    assert [row["n"] for row in rows_of(out)] == list(range(6))


def test_command(endpoint, tmp_path, capfd):
    endpoint.script.append(honest())
    source, out = save(tmp_path / "a.jsonl", *exchanges(5)), tmp_path / "out.jsonl"
    command = ["data", "label", source, "--out", str(out), "--endpoint", endpoint.url, "-q"]
    command += ["--model", "a-model"]
    prices = ["--max-rows", "2", "--price-in", "1", "--price-out", "1"]
    assert run([*command, *prices]) == 0
    shown = " ".join(capfd.readouterr().out.split())
    assert "2 of 5 rows have a label" in shown
    assert "Stopped by --max-rows 2: 3 rows are left" in shown
    assert "200 tokens of prompts, 20 of answers, cost 0.00022" in shown
    assert run([*command, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["labelled"] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--endpoint", "ftp://x"], "--endpoint must begin with http"),
        (["--endpoint", "https://me:pw@host/v1"], "must hold no user, password"),
        (["--model", " "], "--model is empty"),
        (["--model", "a", "--model", "a"], "--model a is given twice"),
        (["--timeout", "0"], "--timeout must be more than 0"),
        (["--max-cost", "1"], "--max-cost needs prices"),
        (["--max-cost", "0", "--price-in", "1", "--price-out", "1"], "must be more than 0"),
        (["--price-in", "-1", "--price-out", "1"], "must be numbers of 0 or more"),
        (["--max-rows", "0"], "--max-rows"),
        (["--out", "no/such/folder.jsonl"], "There is no folder"),
        (["--labels", "four"], "--labels is binary or three-class"),
        (["--out", "{source}"], "is the data itself"),
    ],
)
def test_command_refuses(endpoint, tmp_path, capfd, options, message):
    source = save(tmp_path / "a.jsonl", *exchanges(2))
    options = [option.format(source=source) for option in options]
    given = {"--endpoint": endpoint.url, "--model": "m", "--out": str(tmp_path / "o.jsonl")}
    base = [part for name, value in given.items() if name not in options for part in (name, value)]
    assert run(["data", "label", source, *base, *options]) == 64
    error = capfd.readouterr().err.splitlines()
    assert len(error) == 1
    assert message in error[0]
    assert "pw" not in error[0].replace("password", "")
    assert endpoint.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "A", "response": 7}, "Row 2 of a.jsonl: `response`"),
        ({"messages": [{"role": "user", "content": "A"}] * 2}, "has the turns user, user"),
        ({"prompt": "A", "response": "B", "label": 1}, "does not say how many classes"),
        ({"prompt": "A", "response": "B", "label": "odd"}, "`label` must be"),
    ],
)
def test_malformed_rows_are_found_before_anything_is_asked(endpoint, tmp_path, row, message):
    source = save(tmp_path / "a.jsonl", *exchanges(1), row)
    with pytest.raises(InputError) as error:
        label_data(source, tmp_path / "o.jsonl", [teacher_at(endpoint)])
    assert message in str(error.value)
    assert endpoint.asked == []
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]
