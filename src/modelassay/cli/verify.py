"""`modelassay verify`."""

from __future__ import annotations

from typing import Annotated

import typer

from modelassay.cli import options
from modelassay.errors import EXIT_IDENTITY_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS


@options.grouped
def verify_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    output: options.JsonReport,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASELINE",
            help="A baseline's name, folder, or the id of the model it was made from; without it,"
            " the baseline of a model of this id.",
        ),
    ] = None,
) -> int:
    """Verify MODEL: is it the model that it claims to be?

    Exit codes: 0 verified, 2 it is another or was changed, 3 not comparable or no baseline, 64 bad
    input, 69 something needed is unavailable, 70 internal error.
    """
    from modelassay.verify import verify

    with progress() as on_progress:
        report = verify(model, against, on_progress=on_progress, **loading)
    output.give(report)
    return exit_code(report.verified)


def exit_code(verified: bool | None) -> int:
    """Exit code of a verification."""
    if verified is None:
        return EXIT_INCONCLUSIVE
    return EXIT_PASS if verified else EXIT_IDENTITY_FAILED
