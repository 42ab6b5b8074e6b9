"""Harmless responses by a language model: a loopback endpoint that answers, refuses and fails."""

from __future__ import annotations

import json

import pytest

from chat_endpoint import says
from modelassay.cli.main import run


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def command(endpoint, tmp_path):
    def of(*rows):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        words = ["data", "answer", str(tmp_path / "a.jsonl"), "--out", str(tmp_path / "o.jsonl")]
        return [*words, "--endpoint", endpoint.url, "--model", "m", "-q", "--attempts", "1"]

    return of


def written(tmp_path):
    return [json.loads(line) for line in (tmp_path / "o.jsonl").read_text().splitlines()]


def test_prompts_are_answered_once_and_what_is_no_answer_is_counted(
    command, endpoint, tmp_path, capsys
):
    answers = {
        "Name a tree.": says("<think>Which?</think>\nAn oak.", usage=(10, 3)),
        "Pick a lock": says("I'm sorry, but I can't help with that.", usage=(10, 8)),
        "Say nothing": says(" ", usage=(10, 0)),
        "Too long": (400, {}, {"error": {"code": "context_length_exceeded"}}),
        "Filtered": (400, {}, {"error": {"code": "content_filter"}}),
    }
    endpoint.script.append(lambda body: answers[body["messages"][1]["content"]])
    rows = [{"prompt": prompt, "label": "safe", "id": i} for i, prompt in enumerate(answers)]
    rows += [{"prompt": "Name a tree.", "id": 9}, {"prompt": "Hi", "response": "Hello."}]
    words = command(*rows)
    assert run([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(endpoint.asked) == 5
    assert endpoint.asked[0][2]["max_tokens"] == 256
    assert (found["asked"], found["answered"], found["had_response"], found["left"]) == (5, 2, 1, 0)
    assert found["left_out"] == {
        "the answer is a refusal": 1,
        "the answer holds no text": 1,
        "it is longer than the model reads": 1,
        "the endpoint's own filter declined": 1,
    }
    assert (found["tokens_in"], found["tokens_out"]) == (30, 11)
    by = {"model": "m", "host": "127.0.0.1"}
    oak = {"prompt": "Name a tree.", "response": "An oak.", "answered_by": by}
    assert written(tmp_path) == [oak | {"id": 0}, oak | {"id": 9}, rows[-1]]
    assert run([*words, "--json"]) == 0  # asks nothing twice
    assert len(endpoint.asked) == 5


def test_a_run_that_ended_goes_on(command, endpoint, tmp_path, capsys):
    words = command(*({"prompt": f"Name tree {i}."} for i in range(5)))
    endpoint.script[:] = [says("Oak."), (503, {}, {})]
    assert run(words) == 69
    said = capsys.readouterr().err
    assert "1 of 5 prompts are answered and kept" in said
    assert len(said.splitlines()) == 1
    assert not (tmp_path / "o.jsonl").exists()
    endpoint.script[:] = [says("Elm.")]
    assert run([*words, "--max-rows", "3"]) == 0
    assert "Stopped by --max-rows 3: 2 rows are left" in " ".join(capsys.readouterr().out.split())
    assert run(words) == 0
    assert [row["response"] for row in written(tmp_path)] == ["Oak.", *["Elm."] * 4]
    assert len(endpoint.asked) == 2 + 4


@pytest.mark.parametrize(
    ("rows", "more", "said"),
    [
        ([{"prompt": "A", "response": "B"}], [], "no prompt without a response"),
        ([{"prompt": "A"}], ["--model", "n"], "give --model once"),
        ([{"prompt": 3}], [], "`prompt`"),
        ([{"prompt": "A"}], ["--max-cost", "1"], "needs prices"),
    ],
)
def test_what_cannot_be_answered_is_one_line(command, endpoint, tmp_path, capsys, rows, more, said):
    assert run([*command(*rows), *more]) == 64
    error = capsys.readouterr().err.splitlines()
    assert len(error) == 1
    assert said in error[0]
    assert endpoint.asked == []
    assert not list(tmp_path.glob("o.jsonl*"))


def test_a_model_without_words_is_not_paid_for_on_and_on(command, endpoint, capsys):
    endpoint.script.append(says(None))
    assert run(command(*({"prompt": f"Name tree {i}."} for i in range(30)))) == 64
    assert "hold no text; check --model" in capsys.readouterr().err
    assert len(endpoint.asked) == 10
