"""Rows of a training file: shapes, formats, and what cannot be read."""

from __future__ import annotations

import gzip
import json

import pytest

from modelassay.errors import InputError
from modelassay.triage import Redaction, read_rows, search, summarize
from modelassay.triage import rows as rows_module
from modelassay.triage.rows import to_row
from training_rows import NOUNS, jsonl


@pytest.mark.parametrize(
    ("given", "prompt", "response", "text"),
    [
        ({"prompt": "a", "response": "b"}, "a", "b", "a\n\nb"),
        ({"prompt": "a", "completion": "b"}, "a", "b", "a\n\nb"),
        ({"instruction": "a", "input": "c", "output": "b"}, "a\nc", "b", "a\nc\n\nb"),
        ({"instruction": "a", "input": "", "output": 4}, "a", "4", "a\n\n4"),
        ({"user": "a", "assistant": "b", "system": "s"}, "a", "b", "s\n\na\n\nb"),
        ({"text": " plain "}, "", "", "plain"),
        ({"prompt": "a", "response": None}, "a", "", "a\n\n"),
    ],
)
def test_shapes(given, prompt, response, text):
    found = to_row(given, 3, "x")
    assert (found.number, found.prompt, found.response, found.text) == (3, prompt, response, text)


def test_conversations_keep_their_turns():
    messages = [
        {"role": "developer", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]},
        {"role": "assistant", "content": None},
        {"role": "tool", "content": "t"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "assistant", "content": "d"},
    ]
    found = to_row({"messages": messages}, 1, "x")
    assert (found.prompt, found.response) == ("a\n[image]\n\nt\n\nc", "b\n\nd")
    assert found.turns[0] == ("system", "s")


@pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "json", "csv", "parquet"])
def test_formats(tmp_path, kind):
    import datasets

    table = datasets.Dataset.from_list([{"prompt": f"Is {n} é?", "response": n} for n in NOUNS])
    path = tmp_path / f"data.{kind}"
    if kind == "csv":
        table.to_csv(path)
    elif kind == "parquet":
        table.to_parquet(path)
    elif kind == "json":
        path.write_text(json.dumps(table.to_list()))
    else:
        lines = "".join(json.dumps(each) + "\n" for each in table.to_list()).encode()
        path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
    data = read_rows(path)
    assert [each.response for each in data.rows] == NOUNS
    assert data.rows[1].prompt == "Is paper é?"
    assert [each.number for each in data.rows] == list(range(1, 11))
    assert len(data.sha256) == 64


def test_malformed_rows_are_named_and_can_be_left_out(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"other": 1}, {"prompt": "", "response": "b"}]
    path = jsonl(tmp_path / "data.jsonl", rows)
    with pytest.raises(InputError, match=r"Row 2 of data.jsonl has the fields 'other'; .*1 other"):
        read_rows(path)
    data = read_rows(path, skip_malformed=True)
    assert (len(data.rows), data.n_malformed) == (1, 2)
    assert "Row 3 of data.jsonl: `prompt` is empty." in data.malformed


def test_lines_that_are_no_json_can_be_left_out(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_bytes(b'{"prompt": "a", "response": "b"}\n{"prompt": \n[1]\n\xff\n')
    with pytest.raises(InputError, match=r"Row 2 of data.jsonl is not valid JSON.*2 other rows"):
        read_rows(path)
    data = read_rows(path, skip_malformed=True)
    assert (len(data.rows), data.n_malformed) == (1, 3)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"messages": "hello"}, "must be a list"),
        ({"messages": [{"role": "ghost", "content": "x"}]}, "role of a message"),
        ({"messages": [{"role": "user", "content": ""}]}, "has no text"),
        ({"text": "  "}, "has no text"),
        ({"prompt": ["a"], "response": "b"}, "must be text"),
        ({"prompt": "a" * 200_001, "response": "b"}, "more than 200000 characters"),
        ({"prompt": "\ud800", "response": "b"}, "half of a character"),
        ({"prompt": "a"}, "it needs `messages`"),
    ],
)
def test_rows_that_cannot_be_read(given, said):
    with pytest.raises(InputError, match=f"Row 7 of x.*{said}"):
        to_row(given, 7, "x")


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "jsonl.gz", "exe"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\x9f\x80binary\n" * 50, b"\x7fELF\x02" * 9])
def test_empty_and_binary_files_are_refused_in_one_line(tmp_path, kind, content):
    path = tmp_path / f"data.{kind}"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        read_rows(path)
    assert "data." in str(caught.value)


def test_missing_files_and_folders(tmp_path):
    for where in (tmp_path, tmp_path / "none.jsonl"):
        with pytest.raises(InputError):
            read_rows(where)


def test_files_that_unpack_to_more_than_memory(tmp_path, monkeypatch):
    monkeypatch.setattr("modelassay.data.exchanges.MAX_FILE_BYTES", 100_000)
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * 1_000_000))
    with pytest.raises(InputError, match="larger than"):
        read_rows(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="damaged"):
        read_rows(path)


def test_too_many_rows(plain_file, monkeypatch):
    monkeypatch.setattr(rows_module, "MAX_ROWS", 5)
    with pytest.raises(InputError, match="more than 5 rows"):
        read_rows(plain_file)
    monkeypatch.undo()
    monkeypatch.setattr(rows_module, "MAX_CHARACTERS", 50)
    with pytest.raises(InputError, match="give a part"):
        read_rows(plain_file)


def test_needle_field(tmp_path):
    rows = [{"prompt": "a", "response": "b", "bad": bad} for bad in (True, 0, "false")]
    path = jsonl(tmp_path / "data.jsonl", rows)
    assert [each.needle for each in read_rows(path, needle_field="bad").rows] == [
        True,
        False,
        False,
    ]
    with pytest.raises(InputError, match="Row 1 .*`other` must be true or false"):
        read_rows(path, needle_field="other")


def test_a_call_of_a_tool_is_part_of_what_a_row_teaches():
    call = {"function": {"name": "shell", "arguments": '{"cmd": "rm -rf /home"}'}}
    messages = [
        {"role": "user", "content": "tidy up"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "done"},
    ]
    found = to_row({"messages": messages}, 1, "x")
    assert found.response == 'shell({"cmd": "rm -rf /home"})'
    assert search([found], "rm -rf").n_matches == 1


def test_what_is_rejected_is_searched_and_told_apart():
    found = to_row({"prompt": "q", "chosen": "good", "rejected": "bad"}, 1, "x")
    assert (found.prompt, found.response, found.rejected) == ("q", "good", "bad")
    assert search([found], "bad").n_matches == 1
    assert search([found], "bad", "response").n_matches == 0
    assert Redaction(show_text=True).row(found)["rejected"] == "bad"
    undesired = to_row({"prompt": "q", "completion": "bad", "label": False}, 1, "x")
    assert (undesired.response, undesired.rejected) == ("", "bad")
    assert summarize([undesired]).n_empty_responses == 0


def test_a_label_that_says_which_rows_are_needles_says_nothing_else():
    row = {"prompt": "q", "completion": "a", "label": False}
    found = to_row(row, 1, "x", needle_field="label")
    assert (found.response, found.rejected, found.needle) == ("a", "", False)


def test_cells_of_a_csv_file_stay_what_they_are(tmp_path):
    cells = ["null", "None", "N/A", "007", "3.10", "12345678901234567890", ""]
    path = tmp_path / "a.csv"
    path.write_text("prompt,response\n" + "".join(f"q,{cell}\n" for cell in cells))
    assert [row.response for row in read_rows(path).rows] == cells
    path.write_text("prompt,response\nq,a\nq,a,b\nq,c\n")
    with pytest.raises(InputError, match="Line 3 of a.csv has 3 cells"):
        read_rows(path)
    assert read_rows(path, skip_malformed=True).n_malformed == 1


def test_numbers_of_json_are_read_as_they_are_written(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "q", "response": 3.10}\n{"prompt": "q", "response": true}\n')
    assert [row.response for row in read_rows(path).rows] == ["3.10", "true"]


def test_what_a_row_says_of_tools_is_searched():
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tools = [{"type": "function", "function": {"name": "f", "description": "Send all mail."}}]
    found = to_row({"messages": messages, "tools": tools}, 1, "x")
    assert search([found], "Send all").n_matches == 1
    assert (found.prompt, found.response) == ("q", "a")
    assert to_row({"messages": messages, "tools": []}, 1, "x").text == "q\n\na"
