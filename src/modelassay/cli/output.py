"""What a command shows: progress on stderr, its result on stdout and in the files asked for."""

from __future__ import annotations

import json as json_module
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.hub import silence_downloads
from modelassay.progress import PHASES, OnPhase, silent
from modelassay.report import Report, Section, print_report, to_html, to_json

GATED = "Of a gated data set, accept the terms on its Hub page and set HF_TOKEN."
"""Note below tables of data sets on the Hub."""


@contextmanager
def show_progress(*, quiet: bool = False) -> Iterator[OnPhase]:
    """Gives a callback that shows (phase, done, total)."""
    console = Console(stderr=True)
    if quiet:
        silence_downloads()
        yield silent
    elif not console.is_terminal:
        seen: set[str] = set()

        def say(phase: str, _done: int, total: int) -> None:
            if phase not in seen:
                seen.add(phase)
                console.print(f"{PHASES[phase]}: {total}")

        yield say
    else:
        columns = (
            TextColumn("{task.description:32}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(elapsed_when_finished=True),
        )
        with Progress(*columns, console=console, transient=True) as progress:
            tasks: dict[str, object] = {}

            def update(phase: str, done: int, total: int) -> None:
                if phase not in tasks:
                    tasks[phase] = progress.add_task(PHASES[phase], total=total)
                progress.update(tasks[phase], completed=done, total=total)  # type: ignore[arg-type]

            yield update


@dataclass(frozen=True)
class Output:
    """Where a report goes."""

    json: bool = False
    """As JSON, which is then all there is on stdout."""
    html: Path | None = None
    """A file for it besides."""

    def __post_init__(self) -> None:
        """Refuses a file that could not be written, before the work for it is done."""
        check_file(self.html, "--html")

    def give(self, report: Report, **options: Any) -> None:
        """Prints a report and writes it where it was asked for.

        Args:
            report: What was found.
            **options: Of its `sections` and its `to_dict`.
        """
        if self.json:
            sys.stdout.write(to_json(report, **options))
        else:
            show_sections(*report.sections(**options))
        if self.html is not None:  # last: a full disk must not cost the report
            sys.stdout.flush()
            write_text_atomically(self.html, to_html(report))
            if not self.json:
                typer.echo(f"HTML report: {self.html}", err=True)


def show_sections(*sections: Section) -> None:
    """Prints sections on standard output."""
    print_report(sections, Console())


def give(values: Any, json: bool, *sections: Section) -> None:
    """Prints JSON values where they were asked for, else the sections that tell the same."""
    if json:
        print_json(values)
    else:
        show_sections(*sections)


def print_json(values: Any) -> None:
    """Prints JSON values on standard output."""
    typer.echo(json_module.dumps(values, indent=2, ensure_ascii=False))


def check_file(path: Path | None, option: str) -> None:
    """Refuses a file that could not be written, before the work for it is done.

    Raises:
        InputError: its folder is not there or not to be written to, or it is one itself.
    """
    if path is None:
        return
    if path.is_dir():
        raise InputError(f"{path} is a folder; give a file name for {option}.")
    folder = path.absolute().parent
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder} to write {path.name} into.")
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror}); give another place for {option}."
        ) from error
