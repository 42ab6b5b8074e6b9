"""Rows of table files, every cell as it was written.

Nothing is guessed: a cell of a CSV file is text, so `None`, `007` and `3.10` stay what they are. A
number of a JSON file remembers its digits. Of Parquet and Arrow files whatever is neither text, a
number, true, false, nor made of these comes as text. Rows come one at a time.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from modelassay.errors import InputError, first_line

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

MAX_LINE_BYTES = 20_000_000
"""Of a line of JSON or CSV: one that never ends would fill the memory."""
DELIMITERS = ",;\t|"
ROWS_AT_ONCE = 64
"""Of a table of columns; a row may hold a picture."""
HOLD_ROWS = ("data", "rows", "train", "examples")
"""Fields of a JSON object that hold its rows."""
SHARED = {"system", "system_prompt"}
"""Fields beside them that stand for the same in every row."""
NumberedRow = tuple[int, dict[str, Any]]
"""A row after its line in a JSON lines file, else its place from 1."""
OnMalformed = Callable[[InputError], None]


class WrittenFloat(float):
    """A number with a fraction or exponent that as text is what was written."""

    written: str

    def __new__(cls, written: str) -> WrittenFloat:
        """Reads a JSON number."""
        self = super().__new__(cls, written)
        self.written = written
        return self

    def __str__(self) -> str:
        """As the file has it."""
        return self.written


def table_kind(path: Path) -> str:
    """What kind of table a file's name says it is, such as `csv`; compressed or not."""
    name = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return name.suffix.lower().lstrip(".")


def rows_of_file(path: Path, on_malformed: OnMalformed | None = None) -> Iterator[NumberedRow]:
    """Rows of a table file, with their numbers.

    Args:
        path: JSON, JSONL, CSV, TSV, Parquet, Arrow or plain text (a row with `text` for each line),
            also gzipped.
        on_malformed: Told of each row that cannot be read, which is then left out.

    Raises:
        InputError: the file is of another kind, empty or damaged, or, without `on_malformed`, a row
            cannot be read; its number is named.
    """
    read = TABLES.get(table_kind(path))
    if read is None:
        raise InputError(f"{path} is not a JSON, JSONL, CSV, TSV, Parquet or Arrow file.")
    try:
        if path.stat().st_size == 0:
            raise InputError(f"{path} is empty.")
        yield from read(path, on_malformed)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{path} cannot be read; it is damaged or not permitted.") from error


def _open(path: Path) -> IO[bytes]:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")  # type: ignore[return-value]


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers, from 1, ends of lines included."""
    with _open(path) as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"Row {number} of {path.name} is too long to be read.")
            yield number, line


def _text(line: bytes, number: int, name: str, called: str = "Row") -> str:
    if number == 1 and line[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise InputError(f"{name} is UTF-16 text; save it as UTF-8.")
    try:
        # Editors on Windows put a byte order mark before the first line.
        return line.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{called} {number} of {name} is not UTF-8 text (byte 0x{line[error.start]:02X}); save"
            " the file as UTF-8."
        ) from error


def _read_text(path: Path, _: OnMalformed | None) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        yield number, {"text": _text(line, number, path.name).rstrip("\r\n")}


def _read_json_lines(path: Path, on_malformed: OnMalformed | None) -> Iterator[NumberedRow]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            row = _json_row(line, number, path.name)
        except InputError as error:
            _malformed(error, on_malformed)
            continue
        yield number, row


def _malformed(error: InputError, on_malformed: OnMalformed | None) -> None:
    if on_malformed is None:
        raise error
    on_malformed(error)


def _json_row(line: bytes, number: int, name: str) -> dict[str, Any]:
    text = _text(line, number, name)
    try:
        row = _parse_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"Row {number} of {name} is not valid JSON.") from error
    if not isinstance(row, dict):
        raise InputError(f"Row {number} of {name} is not a JSON object.")
    return row


def _parse_json(text: str) -> Any:
    return json.loads(text, parse_float=WrittenFloat, parse_constant=WrittenFloat)


def _read_json(path: Path, on_malformed: OnMalformed | None) -> Iterator[NumberedRow]:
    """Rows of a JSON file: an array, or an object a line.

    Not by pyarrow, which dies of deeply nested values, and names no line.
    """
    with _open(path) as file:
        content = file.read()
    try:
        value = _parse_json(content.decode("utf-8-sig"))
    except RecursionError as error:
        raise InputError(f"{path} cannot be parsed: its values are nested too deep.") from error
    except ValueError:  # not one value, so perhaps one a line
        yield from _read_json_lines(path, on_malformed)
        return
    rows, shared = _rows_inside(value)
    for number, row in enumerate(rows, 1):
        if isinstance(row, str):
            row = {"text": row}
        if isinstance(row, dict):
            yield number, {**shared, **row}
        else:
            _malformed(
                InputError(f"Row {number} of {path.name} is not a JSON object."), on_malformed
            )


def _rows_inside(value: Any) -> tuple[list[Any], dict[str, Any]]:
    """The rows of a JSON value, and what all of them share.

    As in `{"data": [...]}`, or `{"system_prompt": "...", "examples": [...]}` of the fine-tune
    auditor, whose system prompt stands before every row.
    """
    if isinstance(value, list):
        return value, {}
    if isinstance(value, dict) and len(value) == 1:
        name, only = next(iter(value.items()))
        if name in HOLD_ROWS and isinstance(only, dict):
            return [only], {}
    if isinstance(value, dict):
        inside = [name for name in value if name in HOLD_ROWS and isinstance(value[name], list)]
        others = {name: each for name, each in value.items() if name not in inside}
        texts = all(isinstance(each, str) for each in others.values())
        if len(inside) == 1 and texts and others.keys() <= SHARED:
            return value[inside[0]], others
    return [value], {}


def read_csv(
    path: Path, on_malformed: OnMalformed | None = None, *, name: str | None = None
) -> Iterator[NumberedRow]:
    """Rows of a CSV or TSV file; all cells are text.

    Cells are parted by what parts the names of the first line: a comma, semicolon, tab or bar.

    Args:
        path: Whatever its name ends in.
        on_malformed: As in `rows_of_file`.
        name: What errors call it; without it, the file's name.

    Raises:
        InputError: as `rows_of_file`.
    """
    name = name or path.name
    lines = (_text(line, number, name, "Line") for number, line in _lines(path))
    first = next((line for line in lines if line.strip()), "")
    delimiter = _delimiter(first)
    csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
    cells = csv.reader(_chained(first, lines), delimiter=delimiter, strict=True)
    columns: list[str] | None = None
    place, line = 0, 1
    while True:
        line = cells.line_num + 1
        try:
            row = next(cells, None)
        except csv.Error as error:
            said = InputError(
                f"Line {line} of {name} is not CSV ({first_line(error)}); a quote inside of a"
                " quoted cell is written twice."
            )
            if "end of data" in str(error) or columns is None:  # the rest of the file is in it
                raise said from error
            place += 1
            _malformed(said, on_malformed)
            continue
        if row is None:
            return
        if columns is None:
            columns = _columns(row, name)
        elif row:
            place += 1
            if len(row) < len(columns) or any(row[len(columns) :]):
                wrong = InputError(
                    f"Line {line} of {name} has {len(row)} cells, and the first line names"
                    f" {len(columns)} columns; put a cell with a line break or"
                    f" {_NAMES.get(delimiter, repr(delimiter))} in it between double quotes."
                )
                _malformed(wrong, on_malformed)
                continue
            yield place, dict(zip(columns, row, strict=False))


_NAMES = {",": "a comma", ";": "a semicolon", "\t": "a tab", "|": "a bar"}


def _chained(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _delimiter(header: str) -> str:
    """The character that parts most names, outside of quotes; a comma if none does."""
    bare = "".join(header.split('"')[::2])
    return max(DELIMITERS, key=bare.count)


def _columns(names: Sequence[str], file: str) -> list[str]:
    found = [name.strip() for name in names]
    twice = next((name for name in found if name and found.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{file} has two columns {twice[:40]!r}; rename one.")
    return found


def _read_parquet(path: Path, _: OnMalformed | None) -> Iterator[NumberedRow]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    source = io.BytesIO(_open(path).read()) if path.suffix.lower() == ".gz" else path
    try:
        file = pq.ParquetFile(source)
        names = readable_columns(file.schema_arrow, path.name)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be parsed: {first_line(error)}") from error

    def batches(columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
        return file.iter_batches(ROWS_AT_ONCE, columns=list(columns))

    yield from enumerate(_rows_of_columns(names, batches, path), 1)


def _read_arrow(path: Path, _: OnMalformed | None) -> Iterator[NumberedRow]:
    """Rows of an Arrow file: in the file format (Feather too) or that of a stream."""
    import pyarrow as pa

    with _open(path) as file:
        content = pa.py_buffer(file.read())
    try:
        opened = pa.ipc.open_file if content[:6].to_pybytes() == b"ARROW1" else pa.ipc.open_stream
        table = opened(content).read_all()
        names = readable_columns(table.schema, path.name)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{path} cannot be parsed: {first_line(error)}") from error

    def batches(columns: Sequence[str]) -> Iterable[pa.RecordBatch]:
        return table.select(list(columns)).to_batches(ROWS_AT_ONCE)

    yield from enumerate(_rows_of_columns(names, batches, path), 1)


def _rows_of_columns(
    names: Sequence[str],
    batches: Callable[[Sequence[str]], Iterable[pa.RecordBatch]],
    path: Path,
) -> Iterator[dict[str, Any]]:
    """Rows of a table that is kept by columns; one that cannot be decoded is left out and named."""
    import pyarrow as pa

    errors = (pa.ArrowException, OSError, UnicodeDecodeError)
    given = 0
    try:
        for batch in batches(names):
            rows = plain_rows(batch)
            yield from rows
            given += len(rows)
        return
    except errors as error:
        whole = []
        for name in names:
            try:
                for batch in batches([name]):
                    plain_rows(batch)
            except errors:
                log.warning("The column %r of %s cannot be read and is left out.", name, path.name)
            else:
                whole.append(name)
        if not whole or len(whole) == len(names):
            raise InputError(f"{path} cannot be parsed: {first_line(error)}") from error
    place = 0
    for batch in batches(whole):
        for row in plain_rows(batch):
            place += 1
            if place > given:
                yield row


def readable_columns(schema: pa.Schema, source: str) -> list[str]:
    """The columns of a table that may hold text; those of pictures and sound are named in the log.

    Args:
        schema: Of the table.
        source: What an error calls it.

    Raises:
        InputError: two columns have one name.
    """
    twice = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if twice is not None:
        raise InputError(f"{source} has two columns {twice[:40]!r}; rename one.")
    files = [field.name for field in schema if _is_file(field.type)]
    if files:
        log.warning("Left out of %s, as no text: %s.", source, ", ".join(files))
    return [name for name in schema.names if name not in files]


def _is_file(kind: pa.DataType) -> bool:
    """Whether a column holds files in the form of `datasets`: their bytes and path."""
    import pyarrow as pa

    if not pa.types.is_struct(kind):
        return False
    fields = {field.name: field.type for field in kind}
    return set(fields) == {"bytes", "path"} and not pa.types.is_string(fields["bytes"])


def plain_rows(batch: pa.RecordBatch | pa.Table) -> list[dict[str, Any]]:
    """Rows of Arrow data as values that JSON has; dates and decimals come as text."""
    return [plain_row(row) for row in batch.to_pylist()]


def plain_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with values that JSON has; dates and decimals come as text."""
    return {name: _plain(value) for name, value in row.items()}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | int | float):  # bool is an int
        return value
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, bytes):  # text, if whoever wrote the table did not mark it as such
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            return value
    return str(value)


TABLES: dict[str, Callable[[Path, OnMalformed | None], Iterator[NumberedRow]]] = {
    "json": _read_json,
    "jsonl": _read_json_lines,
    "ndjson": _read_json_lines,
    "csv": read_csv,
    "tsv": read_csv,
    "parquet": _read_parquet,
    "arrow": _read_arrow,
    "feather": _read_arrow,
    "txt": _read_text,
}
"""How files of each suffix are read."""
