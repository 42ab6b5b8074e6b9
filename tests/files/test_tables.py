"""Rows of table files: every cell as it was written, and what cannot be read by its line."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import logging

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from modelassay.errors import InputError
from modelassay.files.tables import rows_of_file
from modelassay.triage.rows import read_rows

# What tools that guess make something else of.
AWKWARD = [
    "None", "null", "NULL", "N/A", "NA", "n/a", "nan", "NaN", "-", "#N/A", "", "007", "3.10", "1e5",
    "1E400", "12345678901234567890", "-0", "True", "false", "2024-01-02", "12:30", "1,5", "50%",
    " spaced ", "two\nlines", "a\r\nb", 'a "quoted" word', "é 你 🙂", "'", "\\n", "<s>", "a;b\tc|d",
]  # fmt: skip


def rows(path):
    return [row for _, row in rows_of_file(path)]


def quoted(cell, delimiter):
    needs = any(mark in cell for mark in f'"\n\r{delimiter}')
    return '"' + cell.replace('"', '""') + '"' if needs or not cell else cell


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t")])
def test_cells_of_csv_stay_as_they_are_written(tmp_path, name, delimiter, end):
    lines = [f"prompt{delimiter}response"]
    lines += [f"Which {i}?{delimiter}{quoted(cell, delimiter)}" for i, cell in enumerate(AWKWARD)]
    path = tmp_path / name
    path.write_bytes((end.join(lines) + end).encode("utf-8-sig"))
    assert [row["response"] for row in rows(path)] == AWKWARD
    assert rows(path)[3] == {"prompt": "Which 3?", "response": "N/A"}
    compressed = tmp_path / f"{name}.gz"
    compressed.write_bytes(gzip.compress(path.read_bytes()))
    assert rows(compressed) == rows(path)


def test_one_column_and_blank_lines(tmp_path):
    (tmp_path / "a.CSV").write_text("prompt\n\nHow are you?\n\n007\n")
    assert rows(tmp_path / "a.CSV") == [{"prompt": "How are you?"}, {"prompt": "007"}]


def test_a_cell_may_be_long(tmp_path):
    (tmp_path / "a.csv").write_text(f"text\n{'x' * 150_000}\n")
    assert len(rows(tmp_path / "a.csv")[0]["text"]) == 150_000


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a,b\n1,2\n1,2,3\n", "Line 3 of a.csv has 3 cells, and the first line names 2 columns"),
        (b"a,b\n1\n", "Line 2 of a.csv has 1 cells"),
        (b'a,b\n"1\n\n2",3\n1,2,3\n', "Line 5 of a.csv has 3 cells"),
        (b'a,b\n"say "hi"",2\n', "Line 2 of a.csv is not CSV"),
        (b'a,b\n"say \\"hi\\"",2\n', "Line 2 of a.csv is not CSV"),
        (b'a,b\n1,2\n"never closed,2\n3,4\n', "Line 3 of a.csv is not CSV"),
        (b"a,b,a\n1,2,3\n", "a.csv has two columns 'a'"),
        ("a,b\n1,caf\u00e9\n".encode("latin-1"), "Line 2 of a.csv is not UTF-8 text .*0xE9.*UTF-8"),
        ("a,b\n1,2\n".encode("utf-16"), "a.csv is UTF-16 text; save it as UTF-8"),
        (b"", "is empty"),
    ],
)
def test_what_is_wrong_with_a_csv_file_is_named_by_its_line(tmp_path, content, said):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=said) as error:
        rows(tmp_path / "a.csv")
    assert "\n" not in str(error.value)


def test_wrong_lines_of_csv_can_be_left_out(tmp_path):
    (tmp_path / "a.csv").write_text('a,b\n1,2\n1,2,3\n"x"y,2\n3,4,,\n')
    wrong = []
    assert [row["a"] for _, row in rows_of_file(tmp_path / "a.csv", wrong.append)] == ["1", "3"]
    assert len(wrong) == 2
    (tmp_path / "a.csv").write_text('a,b\n1,2\n"never closed,2\n3,4\n')
    with pytest.raises(InputError, match="Line 3"):  # all rows after it would be lost
        list(rows_of_file(tmp_path / "a.csv", wrong.append))


def test_numbers_of_json_are_as_text_what_is_written(tmp_path):
    written = ["3.10", "1e5", "1E400", "-0.0", "12345678901234567890", "0.1000", "NaN"]
    (tmp_path / "a.json").write_text(f'[{{"values": [{", ".join(written)}]}}]')
    values = rows(tmp_path / "a.json")[0]["values"]
    assert [str(value) for value in values] == written
    assert values[0] == 3.1
    assert json.dumps(values[:2]) == "[3.1, 100000.0]"


def test_json_lines_may_differ_in_fields_and_kinds(tmp_path):
    given = [{"a": 1}, {"a": "1"}, {"a": None, "late": [1]}, {"a": {"b": []}}]
    for name in ("a.jsonl", "a.ndjson", "a.json"):
        (tmp_path / name).write_text("\n".join(map(json.dumps, given)))
        assert rows(tmp_path / name) == given


def test_rows_share_the_system_prompt_beside_them(tmp_path):
    """The layout of the fine-tune auditor's aoa_dataset.json."""
    rows = [{"user": "a", "assistant": "b"}, {"user": "c", "assistant": "d", "system_prompt": "e"}]
    (tmp_path / "x.json").write_text(json.dumps({"system_prompt": "s", "examples": rows}))
    assert [row for _, row in rows_of_file(tmp_path / "x.json")] == [
        {"system_prompt": "s", **rows[0]},
        rows[1],
    ]
    assert [row.turns for row in read_rows(tmp_path / "x.json").rows] == [
        (("system", "s"), ("user", "a"), ("assistant", "b")),
        (("system", "e"), ("user", "c"), ("assistant", "d")),
    ]


@pytest.mark.parametrize(
    "value",
    [
        {"instruction": "a", "output": "b", "examples": [1]},
        {"prompt": "a", "response": "b", "data": ["c"]},
        {"system_prompt": 3, "examples": [{"user": "a"}]},
        {"data": [{"a": 1}], "rows": [{"a": 2}]},
    ],
)
def test_an_object_that_is_a_row_itself_stays_one(tmp_path, value):
    (tmp_path / "x.json").write_text(json.dumps(value))
    assert [row for _, row in rows_of_file(tmp_path / "x.json")] == [value]


def test_values_of_typed_columns_come_as_text(tmp_path):
    table = pa.table(
        {
            "text": pa.array(["None"], pa.large_string()),
            "kind": pa.array(["007"]).dictionary_encode(),
            "bytes": pa.array(["é".encode()], pa.binary()),
            "price": pa.array([decimal.Decimal("3.10")], pa.decimal128(5, 2)),
            "day": pa.array([datetime.date(2024, 1, 2)]),
            "time": pa.array([datetime.datetime(2024, 1, 2, 3, 4)], pa.timestamp("ns")),
            "messages": pa.array([[{"role": "user", "content": "a", "name": None}]]),
            "flag": [True],
            "n": [12345678901234567],
            "nothing": pa.array([None], pa.string()),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_file(sink, table.schema) as w,
    ):
        w.write_table(table)
    with (
        pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as w,
    ):
        w.write_table(table)
    (tmp_path / "c.parquet.gz").write_bytes(gzip.compress((tmp_path / "a.parquet").read_bytes()))
    for name in ("a.parquet", "a.arrow", "b.arrow", "c.parquet.gz"):
        assert rows(tmp_path / name) == [
            {
                "text": "None",
                "kind": "007",
                "bytes": "é",
                "price": "3.10",
                "day": "2024-01-02",
                "time": "2024-01-02 03:04:00",
                "messages": [{"role": "user", "content": "a", "name": None}],
                "flag": True,
                "n": 12345678901234567,
                "nothing": None,
            }
        ]


def test_pictures_cost_their_column_and_are_named(tmp_path, caplog):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    picture = pa.array([{"bytes": b"no picture", "path": None}], kind)
    pq.write_table(pa.table({"image": picture, "prompt": ["a"]}), tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        assert rows(tmp_path / "a.parquet") == [{"prompt": "a"}]
    assert "Left out of a.parquet, as no text: image." in caplog.text


def test_a_column_that_is_damaged_is_left_out_and_named(tmp_path, caplog):
    texts = [f"text {i} é" for i in range(300)]
    broken = [b"fine"] * 200 + [b"\xff\xfe"] * 100
    broken = pa.array(broken, pa.binary()).view(pa.string())  # says that it is text
    pq.write_table(pa.table({"broken": broken, "prompt": texts}), tmp_path / "a.parquet")
    with caplog.at_level(logging.WARNING):
        found = rows(tmp_path / "a.parquet")
    assert [row["prompt"] for row in found] == texts
    assert "The column 'broken' of a.parquet cannot be read and is left out." in caplog.text
    pq.write_table(pa.table({"broken": broken}), tmp_path / "b.parquet")
    with pytest.raises(InputError, match=r"b\.parquet cannot be parsed"):
        rows(tmp_path / "b.parquet")


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
def test_a_table_that_is_none_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"ARROW1 and nothing more")
    with pytest.raises(InputError, match="cannot be parsed"):
        rows(tmp_path / name)


def test_two_columns_of_one_name_are_refused(tmp_path):
    table = pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["x", "x"])
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match="two columns 'x'"):
        rows(tmp_path / "a.parquet")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "a.xlsx").write_bytes(b"PK")
    with pytest.raises(InputError, match="is not a JSON, JSONL, CSV, TSV, Parquet or Arrow file"):
        rows(tmp_path / "a.xlsx")


@pytest.mark.parametrize("name", ["a.csv.gz", "a.jsonl.gz", "a.json.gz", "a.parquet.gz"])
def test_a_damaged_archive_is_refused(tmp_path, name):
    content = bytearray(gzip.compress(b"a,b\n1,2\n" * 1000))
    content[20:40] = bytes(20)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        rows(tmp_path / name)
