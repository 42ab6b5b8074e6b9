"""`modelassay calibration`: benign fine-tunes of a base, which `modelassay diff` measures by."""

from __future__ import annotations

import typer

from modelassay.cli.artifacts import add_verbs

app = typer.Typer(
    help="Calibrations: benign fine-tunes that `modelassay diff` holds others against;"
    " `modelassay diff calibrate` makes them.",
    no_args_is_help=True,
)
add_verbs(app, "modelassay.diff:CALIBRATIONS", "calibration")
