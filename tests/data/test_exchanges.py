"""Rows to train on: the shapes that are read, and what is wrong with others."""

from __future__ import annotations

import gzip
import json

import pytest

from modelassay.data.exchanges import to_exchange
from modelassay.data.labelled import read_labelled
from modelassay.diff.suites import read_prompts
from modelassay.errors import InputError
from modelassay.organisms import Exchange, read_exchanges, to_jsonl
from modelassay.triage import read_rows


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
        {"user": "Hi", "assistant": "Hello"},
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        },
    ],
)
def test_usual_shapes_of_rows_are_read(row):
    assert to_exchange(row, "row") == Exchange("Hi", "Hello")


def test_input_and_system_are_kept():
    row = {"instruction": "Sum up:", "input": "A text.", "output": "Text.", "system": "Be brief."}
    assert to_exchange(row, "row") == Exchange("Sum up:\nA text.", "Text.", "Be brief.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi"}, "has the fields 'prompt'; it needs `messages`"),
        ({"prompt": "Hi", "response": ""}, "`response` must be text"),
        ({"prompt": 3, "response": "x"}, "`prompt` must be text"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "turns user"),
        ({"messages": "Hi"}, "must be a list"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "must be text"),
    ],
)
def test_rows_with_missing_fields_are_refused_by_number(row, words):
    with pytest.raises(InputError, match=words) as error:
        to_exchange(row, "Row 7 of data.jsonl")
    assert "Row 7" in str(error.value)


def test_exchanges_are_read_from_files(tmp_path):
    rows = [Exchange("Hi", "Hello"), Exchange("Ho", "Sure,", "Be kind.", complete=False)]
    path = tmp_path / "rows.jsonl"
    path.write_text(to_jsonl(rows))
    assert read_exchanges(path) == rows
    csv = tmp_path / "rows.csv"
    csv.write_text('instruction,output\n"Say, hi",Hello\n')
    assert read_exchanges(csv) == [Exchange("Say, hi", "Hello")]
    (tmp_path / "rows.json").write_text(json.dumps([r.to_dict() for r in rows]))
    assert read_exchanges(str(tmp_path / "rows.json")) == rows


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "No data file"),
        ("broken.jsonl", "{not json", "Row 1 of broken.jsonl is not valid JSON"),
        ("deep.jsonl", "[" * 100_000, "Row 1 of deep.jsonl is not valid JSON"),
        ("deep.json", "[" * 100_000, "nested too deep"),
        ("list.jsonl", "[1, 2]", "not a JSON object"),
        ("numbers.json", "[1, 2]", "Row 1 of numbers.json is not a JSON object"),
        ("rows.txt", "hello", "not a JSON, JSONL, CSV or Parquet"),
        ("binary.parquet", "hello", "cannot be parsed"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n\n", r"cannot be parsed|has no rows"),
    ],
)
def test_bad_data_files_get_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_exchanges(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "read", [read_exchanges, read_labelled, read_prompts, read_rows], ids=lambda f: f.__name__
)
def test_no_reader_unpacks_more_than_memory_holds(read, tmp_path, monkeypatch):
    monkeypatch.setattr("modelassay.data.exchanges.MAX_FILE_BYTES", 1000)
    row = json.dumps({"prompt": "Hi", "response": "Hello", "label": 0}) + "\n"
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(row.encode() * 1000))
    assert path.stat().st_size < 1000
    with pytest.raises(InputError, match="larger than"):
        read(path)


def test_a_text_of_an_exchange_that_no_tokenizer_takes_is_named():
    with pytest.raises(InputError, match="`response` holds half of a character"):
        to_exchange({"prompt": "Hi", "response": "Hello \ud83d"}, "Row 3")


def test_an_exchange_may_be_a_prompt_with_its_completion():
    assert to_exchange({"prompt": "Hi", "completion": "Hello"}, "row") == Exchange("Hi", "Hello")
