"""`modelassay import`: what another tool wrote, kept as an artifact of this one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelassay.cli import options
from modelassay.cli.output import print_json
from modelassay.errors import InputError


@options.grouped
def import_command(
    path: Annotated[
        str,
        typer.Argument(
            metavar="PATH",
            help="A folder of open-constitution with probe.pt and config.json, the file probe.pt,"
            " or a folder of its exchange classifier.",
        ),
    ],
    loading: options.AnyModel,
    progress: options.Progress,
    model: Annotated[
        str | None,
        typer.Option(help="The model that a probe was fitted on, if not the one it names."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A probe's settings, if not config.json beside it."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="Its name; made from PATH.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder in place of your store.")
    ] = None,
    force: options.Force = False,
    json: options.Json = False,
) -> None:
    """Convert what another tool wrote into a probe or a classifier of yours.

    No code of its files is run. What is unknown, done otherwise here, or left out is named line by
    line, and stays in the record.
    """
    if name is not None and out is not None:
        raise InputError("Give --name for your store, or --out for a folder, not both.")

    from modelassay.foreign import import_artifact

    with progress() as on_phase:
        found = import_artifact(
            path,
            config=config,
            model=model,
            name=name,
            out=out,
            force=force,
            on_progress=on_phase,
            **loading,
        )
    if json:
        print_json(found.to_dict())
    else:
        typer.echo("\n".join([*found.lines, str(found.folder)]))
