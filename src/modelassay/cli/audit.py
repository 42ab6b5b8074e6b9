"""`modelassay audit`: an audit of a fine-tune from the command line."""

from __future__ import annotations

import typer

app = typer.Typer(
    no_args_is_help=True,
    help="Audit a fine-tune against its base: check a config, score a suite, try it all out.",
)


@app.callback()
def _root() -> None:
    pass
