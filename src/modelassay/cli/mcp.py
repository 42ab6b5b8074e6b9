"""`modelassay mcp`: the tools of an audit for a client that speaks MCP.

Standard output belongs to the protocol alone: before anything large is imported it is put aside,
and what libraries print goes to standard error, or nowhere in a blind audit, where it could name a
model.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.errors import InputError


def mcp_command(
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="What is audited, see docs/audit.md.")
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="full|behavior-only", help="Tools to offer, in place of the file's."),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Call the models A and B and do not say which is which.")
    ] = False,
    check_log: Annotated[
        Path | None,
        typer.Option(metavar="LOG", help="Check that a log is as it was written, and stop."),
    ] = None,
) -> None:
    """Serve the tools of an audit over MCP on standard input and output."""
    if check_log is not None:
        _check_log(check_log)
        return
    if config is None:
        raise InputError("Give what is audited with --config FILE.")
    if profile not in (None, "full", "behavior-only"):
        raise InputError(f"--profile is full or behavior-only, not {profile!r}.")

    chosen: Any = profile
    with own_stdio() as (reader, writer):
        from modelassay.audit import Audit, load_config
        from modelassay.audit.server import check_installed, serve

        check_installed()
        with Audit(load_config(config, profile=chosen, blind=blind or None)) as audit:
            if audit.config.blind:
                _print_nothing()
            serve(audit, reader, writer)


@contextmanager
def own_stdio() -> Iterator[tuple[TextIOWrapper, TextIOWrapper]]:
    """Takes standard input and output away from everybody else.

    Yields:
        What to read from and what to write to, as UTF-8.
    """
    sys.stdout.flush()
    kept, stdout = [os.dup(number) for number in (0, 1, 2)], sys.stdout
    reader = TextIOWrapper(os.fdopen(os.dup(0), "rb"), encoding="utf-8", errors="replace")
    writer = TextIOWrapper(os.fdopen(os.dup(1), "wb"), encoding="utf-8")
    try:
        nowhere = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nowhere, 0)
        os.close(nowhere)
        os.dup2(2, 1)
        sys.stdout = sys.stderr
        yield reader, writer
    finally:
        sys.stdout = stdout
        for number, handle in enumerate(kept):
            os.dup2(handle, number)
            os.close(handle)


def _print_nothing() -> None:
    sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    os.close(nowhere)


def _check_log(path: Path) -> None:
    from modelassay.audit import verify_log

    if not path.is_file():
        raise InputError(f"There is no log {path}.")
    check = verify_log(path)
    if check.problem is not None:
        raise InputError(f"{path} is not as it was written: {check.problem}.")
    typer.echo(f"{check.n} lines, sha256 of the last {check.last}")
