"""`modelassay audit`: audits of a fine-tune."""

from __future__ import annotations

import typer

from modelassay.cli.audit_run import run_command

app = typer.Typer(help="Audit a fine-tune with an agent.", no_args_is_help=True)
app.command("run")(run_command)


@app.callback()
def _root() -> None:
    pass  # keeps `run` a command of its own while it is the only one
