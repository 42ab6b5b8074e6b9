"""`modelassay mcp`: the tools of an audit for a client that speaks MCP.

Over standard input and output, or over HTTP with a token. The token is read from the environment
alone: a command line is seen by everybody on the machine.

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
from typing import Annotated

import typer

from modelassay.cli.audit_config import (
    CONFIG_VARIABLES,
    Profile,
    check_profile,
    given_config,
    load_audit_config,
)
from modelassay.cli.secrets import find_secret, how_to_set
from modelassay.errors import InputError

TOKEN_VARIABLES = ("MODELASSAY_MCP_TOKEN", "FT_AUDIT_HTTP_TOKEN")
DEFAULT_HOST, DEFAULT_PORT = "127.0.0.1", 8000
TRANSPORTS = ("stdio", "streamable-http")


def mcp_command(
    serve: Annotated[
        str | None, typer.Argument(hidden=True, help="`serve`, as in ft-audit-mcp serve.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            envvar=CONFIG_VARIABLES,
            help="What is audited, see docs/audit.md.",
        ),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(
            metavar="full|behavior-only",
            envvar="FT_AUDIT_PROFILE",
            help="Tools to offer, in place of the file's.",
        ),
    ] = None,
    blind: Annotated[
        bool,
        typer.Option("--blind", help="Call the models A, B, … and do not say which is which."),
    ] = False,
    http: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve streamable HTTP at http://HOST:PORT/mcp, not standard input and output;"
            " HOST is 127.0.0.1 if left out. Requests bear a token.",
        ),
    ] = None,
    token_env: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable that holds the token of --http; MODELASSAY_MCP_TOKEN if left"
            " out.",
        ),
    ] = None,
    transport: Annotated[
        str | None,
        typer.Option(
            metavar="stdio|streamable-http",
            help="streamable-http is --http with FASTMCP_HOST and FASTMCP_PORT.",
        ),
    ] = None,
    check_log: Annotated[
        Path | None,
        typer.Option(metavar="LOG", help="Check that a log is as it was written, and stop."),
    ] = None,
) -> None:
    """Serve the tools of an audit over MCP: standard input and output, or HTTP with a token."""
    if serve not in (None, "serve"):
        raise InputError(f"There is no argument {serve[:60]!r}; the config is --config FILE.")
    if check_log is not None:
        _check_log(check_log)
        return
    file, chosen = given_config(config), check_profile(profile)
    address = _address(http, transport)
    if address is None:
        if token_env is not None:
            raise InputError("--token-env goes with --http; standard input needs no token.")
        _over_stdio(file, chosen, blind)
    else:
        _over_http(file, chosen, blind, address, _token(token_env))


def _over_stdio(config: Path, profile: Profile | None, blind: bool) -> None:
    with own_stdio() as (reader, writer):
        from modelassay.audit import Audit
        from modelassay.audit.server import check_installed, serve

        check_installed()
        with Audit(load_audit_config(config, profile, blind=blind)) as audit:
            if audit.config.blind:
                _print_nothing()
            serve(audit, reader, writer)


def _over_http(
    config: Path, profile: Profile | None, blind: bool, address: tuple[str, int], token: str
) -> None:
    from modelassay.audit import Audit
    from modelassay.audit.server import HTTP_PATH, check_installed, serve_http
    from modelassay.hub.endpoint import is_this_machine
    from modelassay.hub.listening import address_of, listen

    check_installed()
    settings = load_audit_config(config, profile, blind=blind)
    host, port = address
    with listen(host, port) as listening, Audit(settings, secrets=(token,)) as audit:
        if not is_this_machine(host):
            typer.echo(
                f"modelassay: {host} is reached from other machines, and the token is sent as plain"
                " text; put TLS before it.",
                err=True,
            )
        typer.echo(f"Serving MCP at http://{address_of(listening, host)}{HTTP_PATH}", err=True)
        if audit.config.blind:
            _print_nothing()
        serve_http(audit, listening, token)


def _address(http: str | None, transport: str | None) -> tuple[str, int] | None:
    """Host and port to listen on; None for standard input and output.

    Raises:
        InputError: what is given is no address, or contradicts itself.
    """
    if transport not in (None, *TRANSPORTS):
        raise InputError(f"--transport is {' or '.join(TRANSPORTS)}, not {transport[:60]!r}.")
    if http is None and transport == "streamable-http":
        host = os.environ.get("FASTMCP_HOST", "").strip() or DEFAULT_HOST
        http = f"{host}:{os.environ.get('FASTMCP_PORT', '').strip() or DEFAULT_PORT}"
    if http is None:
        return None
    if transport == "stdio":
        raise InputError("--transport stdio and --http contradict each other; give one.")
    host, _, number = http.rpartition(":")
    if not number.isascii() or not number.isdigit() or not 0 <= int(number) <= 65_535:
        raise InputError(f"--http takes PORT or HOST:PORT, such as 127.0.0.1:8000, not {http!r}.")
    return host.strip("[]") or DEFAULT_HOST, int(number)


def _token(variable: str | None) -> str:
    """The token in an environment variable.

    Raises:
        InputError: there is none, or one that can be guessed or cannot stand in a header.
    """
    names = (variable,) if variable is not None else TOKEN_VARIABLES
    token = find_secret(names, "token")
    if token is None:
        raise InputError(
            f"--http needs a token in the environment variable {names[0]}: set it,"
            f" {how_to_set(names[0])}."
        )
    return token


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
