"""Rows of tables: files of the user, or data sets on the Hub. Every reader of tables comes here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.files.tables import (
    ROWS_AT_ONCE,
    TABLES,
    NumberedRow,
    OnMalformed,
    plain_row,
    plain_rows,
    read_csv,
    readable_columns,
    rows_of_file,
    table_kind,
)
from modelassay.hub.errors import DATA_ELSEWHERE, REPO_ID, answered, gated, hub_errors, offline


def open_rows(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    data_files: str | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    on_malformed: OnMalformed | None = None,
    stream: bool = True,
) -> Iterator[NumberedRow]:
    """Rows of a table one after the other, with their numbers.

    Args:
        where: Path of a JSON, JSONL, CSV, TSV, Parquet or Arrow file (also gzipped), or
            `owner/name`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        data_files: One file of a Hub data set, where it has no configurations.
        revision: Branch, tag or commit of a Hub data set.
        token: Hub token, None for the stored one.
        on_malformed: Told of each row of a file that cannot be read, which is then left out.
        stream: Read a Hub data set as it comes, without keeping it.

    Raises:
        InputError: no such file, data set, configuration or split, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached, or the data set is gated.
    """
    path = Path(where)
    if path.is_file():
        if table_kind(path) == "txt":
            raise InputError(f"{path} is not a JSON, JSONL, CSV or Parquet file.")
        return rows_of_file(path, on_malformed)
    rows = _rows_of_hub(
        where,
        config,
        split=split,
        data_files=data_files,
        revision=revision,
        token=token,
        stream=stream,
    )
    return enumerate(rows, 1)


def stream_dataset(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    token: str | bool | None = None,
) -> Iterator[dict[str, Any]]:
    """Rows of a table one after the other, without holding it: for data that fill no memory.

    Args:
        where: As in `open_rows`, or a plain text, of which each line is a row with a `text`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such file or data set, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    path = Path(where)
    if path.is_file():
        numbered = rows_of_file(path)
    else:
        numbered = open_rows(where, config=config, split=split, token=token)
    return (row for _, row in numbered)


def read_dataset(
    where: str | Path,
    *,
    config: str | None = None,
    split: str = "train",
    data_files: str | None = None,
    token: str | bool | None = None,
) -> list[dict[str, Any]]:
    """Rows of a table: a local file, or a Hub data set.

    Args:
        where: As in `open_rows`.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        data_files: One file of a Hub data set, where it has no configurations.
        token: Hub token, None for the stored one.

    Raises:
        InputError: no such file or data set, or one that cannot be parsed.
        UnavailableError: the Hub cannot be reached.
    """
    numbered = open_rows(
        where, config=config, split=split, data_files=data_files, token=token, stream=False
    )
    return [row for _, row in numbered]


def _rows_of_hub(
    where: str | Path, config: str | None, *, split: str, stream: bool, token: Any, **source: Any
) -> Iterator[dict[str, Any]]:
    """Rows of a Hub data set; cells of its CSV files are text."""
    check_table(where)
    import datasets
    from datasets import exceptions

    _quieten_datasets()
    with hub_errors(str(where), elsewhere=DATA_ELSEWHERE):
        try:
            builder = datasets.load_dataset_builder(str(where), config, token=token, **source)
            _check_split(builder, split, where)
            if files := _csv_files(builder, split):
                fetch = datasets.DownloadManager(
                    download_config=datasets.DownloadConfig(token=token)
                )
                for file in files:
                    here = Path(str(fetch.download_and_extract(file)))
                    name = f"{where} ({file.rpartition('/')[2]})"
                    yield from (row for _, row in read_csv(here, name=name))
                return
            if not stream:
                builder.download_and_prepare()
            data: Any = builder.as_streaming_dataset(split) if stream else builder.as_dataset(split)
            if data.features is None:  # JSON, each file of which has types of its own
                yield from (plain_row(row) for row in data)
                return
            names: list[str] | None = None
            for table in data.with_format("arrow").iter(ROWS_AT_ONCE):
                names = names or readable_columns(table.schema, str(where))
                yield from plain_rows(table.select(names))
        except exceptions.DatasetNotFoundError as error:
            if "is a gated dataset" in str(error):  # its cause is not kept
                raise gated(str(where)) from error
            raise InputError(
                f"No data set {str(where)!r} on the Hub that you may see: check the spelling, or"
                " pass a token if it is private or gated."
            ) from error
        except FileNotFoundError as error:  # so it says whatever went wrong on the way to the Hub
            if (answer := _http_cause(error)) is not None:
                raise answered(str(where), answer) from error
            raise offline(str(where), DATA_ELSEWHERE) from error
        except (ValueError, exceptions.DatasetsError) as error:
            if (known := _known_configs(error)) is not None:
                if config is None:
                    says = f"has several configurations, and one must be named: {known}."
                else:
                    says = f"has no configuration {config[:60]!r}; it has {known}."
                raise InputError(f"{where} {says}") from error
            raise InputError(f"Cannot read the data set {where}: {first_line(error)}") from error


def _known_configs(error: BaseException) -> str | None:
    """The configurations that an error of `datasets` lists, if it is about these."""
    text = str(error)
    if not text.startswith(("Config name is missing", "BuilderConfig")):
        return None
    _, _, listed = text.partition("[")
    return ", ".join(re.findall(r"'([^']+)'", listed.partition("]")[0])) or None


def _check_split(builder: Any, split: str, where: str | Path) -> None:
    """Refuses a split that is not there, before anything of the data is fetched."""
    there = [str(name) for name in builder.config.data_files or {}]
    wanted = [part.partition("[")[0].strip() for part in split.split("+")]
    if there and any(name not in there for name in wanted):
        raise InputError(f"{where} has no split {split[:60]!r}; it has {', '.join(there)}.")


def _csv_files(builder: Any, split: str) -> list[str]:
    """Addresses of the CSV files of a data set, of which `datasets` would guess what cells mean.

    Of data in another form, or with settings of their own, there are none.
    """
    from datasets.packaged_modules.csv.csv import Csv

    config = builder.config
    if not isinstance(builder, Csv) or config.header != "infer" or config.skiprows is not None:
        return []
    if config.names is not None or config.column_names is not None:
        return []
    return list((config.data_files or {}).get(split, ()))


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
    if table_kind(path) in (*TABLES, "gz") or path.is_absolute() or path.exists():
        raise InputError(f"No data file at {where}; give a JSON, JSONL, CSV or Parquet file.")
    if not REPO_ID.fullmatch(str(where)) or "/" not in str(where):
        raise InputError(f"{str(where)!r} is neither a data file nor a Hub data set (owner/name).")


def check_place(where: str | Path, config: str | None, split: str | None) -> None:
    """Refuses a configuration or split of a file, which would be passed over.

    Raises:
        InputError: says so.
    """
    if (config or split) and Path(where).is_file():
        raise InputError("--config and --split are of a data set on the Hub, not of a file.")


def _http_cause(error: BaseException | None) -> Any | None:
    """The Hub's own answer behind an error, if there was one."""
    from huggingface_hub.errors import HfHubHTTPError

    while error is not None:
        if isinstance(error, HfHubHTTPError) and error.response is not None:
            return error
        error = error.__cause__ or error.__context__
    return None


def _quieten_datasets() -> None:
    import datasets

    datasets.disable_progress_bars()
    datasets.logging.set_verbosity_error()
