"""Rows of tables: files of the user, or data sets on the Hub."""

from __future__ import annotations

import gzip
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, UnavailableError, first_line
from modelassay.hub.errors import DATA_ELSEWHERE, REPO_ID, answered, hub_errors, offline

# Suffixes of tables, and the reader in `datasets` for each.
TABLES = {"json": "json", "jsonl": "json", "csv": "csv", "parquet": "parquet"}
MAX_LINE_BYTES = 20_000_000
"""Of a line of JSON: one that never ends would fill the memory."""


def read_lines(
    path: Path, on_malformed: Callable[[InputError], None] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Rows of a JSON lines file, which may be gzipped, with their line numbers.

    Args:
        path: The file.
        on_malformed: Told of each line that is not a JSON object, which is then left out.

    Raises:
        InputError: a line is too long or, without `on_malformed`, no JSON object; its number is
            named.
    """
    number = 0
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            while line := file.readline(MAX_LINE_BYTES + 1):
                number += 1
                if len(line) > MAX_LINE_BYTES:
                    raise InputError(f"Row {number} of {path.name} is too long to be read.")
                if not line.strip():
                    continue
                try:
                    row = _row(line, number, path.name)
                except InputError as error:
                    if on_malformed is None:
                        raise
                    on_malformed(error)
                    continue
                yield number, row
    except (OSError, EOFError) as error:
        raise InputError(f"{path.name} cannot be read after line {number}.") from error


def _row(line: bytes, number: int, name: str) -> dict[str, Any]:
    try:
        # Editors on Windows put a byte order mark before the first line.
        row = json.loads(line.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"Row {number} of {name} is not UTF-8 text.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"Row {number} of {name} is not valid JSON.") from error
    if not isinstance(row, dict):
        raise InputError(f"Row {number} of {name} is not a JSON object.")
    return row


def stream_dataset(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    token: str | bool | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a table one after the other, without holding it: for data that fill no memory.

    Args:
        where: Path of a JSONL, CSV, Parquet or plain text file (also gzipped; of a plain text each
            line is a row with a `text`), or `owner/name`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such file or data set, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        kinds = {**TABLES, "txt": "text"}
        return _rows_of_file(path, kinds, "JSON, JSONL, CSV, Parquet or text", streaming=True)
    return _rows_of_hub(where, config, split=split, token=token, streaming=True)


def read_dataset(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    data_files: str | None = None,
    token: str | bool | None = None,
) -> list[dict[str, Any]]:
    """Rows of a table: a local JSON, JSONL, CSV or Parquet file (also gzipped), or a Hub data set.

    Args:
        where: Path of a file, or `owner/name`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        data_files: One file of a Hub data set, where it has no configurations.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such file or data set, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        return list(_rows_of_file(path, TABLES, "JSON, JSONL, CSV or Parquet"))
    return list(_rows_of_hub(where, config, split=split, data_files=data_files, token=token))


def _rows_of_hub(where: str | Path, config: str | None, **options: Any) -> Iterator[dict[str, Any]]:
    """Rows of a Hub data set, as `load_dataset` opens it with these options."""
    check_table(where)
    import datasets
    from datasets import exceptions

    _quieten_datasets()
    with hub_errors(str(where), elsewhere=DATA_ELSEWHERE):
        try:
            yield from map(dict, datasets.load_dataset(str(where), config, **options))
        except exceptions.DatasetNotFoundError as error:
            raise InputError(
                f"No data set {str(where)!r} on the Hub that you may see: check the spelling, or"
                " pass a token if it is private or gated."
            ) from error
        except FileNotFoundError as error:  # so it says whatever went wrong on the way to the Hub
            if (answer := _http_cause(error)) is not None:
                raise answered(str(where), answer) from error
            raise offline(str(where), DATA_ELSEWHERE) from error
        except (ValueError, exceptions.DatasetsError) as error:
            raise InputError(f"Cannot read the data set {where}: {first_line(error)}") from error


def check_table(where: str | Path) -> None:
    """Refuses what is neither a file nor the id of a data set, without opening anything.

    Raises:
        InputError: it is neither.
    """
    path = Path(where)
    if path.is_file():
        return
    if path.is_dir():
        raise InputError(f"{where} is a folder; give a data file in it.")
    if path.suffix.lstrip(".") in (*TABLES, "gz", "txt") or path.is_absolute() or path.exists():
        raise InputError(f"No data file at {where}; give a JSON, JSONL, CSV or Parquet file.")
    if not REPO_ID.fullmatch(str(where)) or "/" not in str(where):
        raise InputError(f"{str(where)!r} is neither a data file nor a Hub data set (owner/name).")


def _http_cause(error: BaseException | None) -> Any | None:
    """The Hub's own answer behind an error, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _rows_of_file(
    path: Path, kinds: Mapping[str, str], named: str, *, streaming: bool = False
) -> Iterator[dict[str, Any]]:
    """Rows of a file.

    Args:
        path: The file.
        kinds: The reader in `datasets` for each suffix.
        named: What an error calls these kinds.
        streaming: Whether the rows are not to be held.
    """
    import datasets
    from datasets import exceptions

    _quieten_datasets()
    suffix = path.with_suffix("").suffix if path.suffix == ".gz" else path.suffix
    kind = kinds.get(suffix.lstrip("."))
    if kind is None:
        raise InputError(f"{path} is not a {named} file.")
    if path.stat().st_size == 0:
        raise InputError(f"{path} is empty.")
    if kind == "json":
        yield from _json_rows(path)
        return
    with tempfile.TemporaryDirectory() as scratch:  # its cache would outlive changes of the file
        try:
            yield from map(
                dict,
                datasets.load_dataset(
                    kind,
                    data_files=str(path),
                    split="train",
                    cache_dir=scratch,
                    streaming=streaming,
                ),
            )
        except (OSError, ValueError, TypeError, StopIteration, exceptions.DatasetsError) as error:
            if isinstance(error, OSError) and not streaming:  # such as a full disk
                raise UnavailableError(f"{path} cannot be read: {first_line(error)}") from error
            cause = error.__cause__ or error
            raise InputError(f"{path} cannot be parsed: {first_line(cause)}") from error


def _json_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a JSON file: an array, or an object a line.

    Not by `datasets`: pyarrow, which it asks, dies of deeply nested values, and names no line.
    """
    if ".jsonl" not in path.suffixes[-2:]:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
                value = json.loads(file.read().decode("utf-8-sig"))
        except (OSError, EOFError) as error:
            raise InputError(f"{path} cannot be read; it is damaged or not permitted.") from error
        except RecursionError as error:
            raise InputError(f"{path} cannot be parsed: its values are nested too deep.") from error
        except ValueError:
            value = None  # not one value, so perhaps one a line
        if isinstance(value, list):
            for number, row in enumerate(value, 1):
                if not isinstance(row, dict | str):
                    raise InputError(f"Row {number} of {path.name} is not a JSON object.")
                yield {"text": row} if isinstance(row, str) else row
            return
        if isinstance(value, dict):
            yield value
            return
    yield from (row for _, row in read_lines(path))


def _quieten_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
