"""`modelassay verify`."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from modelassay.cli import options
from modelassay.errors import EXIT_IDENTITY_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS


def verify_command(
    model: options.ModelArg,
    against: Annotated[
        str | None,
        typer.Option(
            metavar="BASELINE",
            help="A baseline's name, folder, or the id of the model it was made from; without it,"
            " the baseline of a model of this id.",
        ),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the report as JSON only.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    adapter: options.Adapter = None,
    gguf_file: options.GgufFile = None,
    load_8bit: options.Load8bit = False,
    load_4bit: options.Load4bit = False,
    token: options.Token = None,
    trust_remote_code: options.TrustRemoteCode = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> int:
    """Verify MODEL: is it the model that it claims to be?

    Exit codes: 0 verified, 2 it is another or was changed, 3 not comparable or no baseline, 64 bad
    input, 69 something needed is unavailable, 70 internal error.
    """
    quantization = options.quantization(load_8bit, load_4bit)

    from rich.console import Console

    from modelassay.cli.progress import show_progress
    from modelassay.report import print_report, to_json
    from modelassay.verify import verify

    with show_progress(Console(stderr=True), quiet=quiet) as on_progress:
        report = verify(
            model,
            against,
            on_progress=on_progress,
            device=device,
            dtype=dtype,
            **options.load_options(
                revision=revision,
                adapter=adapter,
                gguf_file=gguf_file,
                quantization=quantization,
                token=token,
                trust_remote_code=trust_remote_code,
            ),
        )
    if json:
        sys.stdout.write(to_json(report))
    else:
        print_report(report, Console())
    return exit_code(report.verified)


def exit_code(verified: bool | None) -> int:
    """Exit code of a verification."""
    if verified is None:
        return EXIT_INCONCLUSIVE
    return EXIT_PASS if verified else EXIT_IDENTITY_FAILED
