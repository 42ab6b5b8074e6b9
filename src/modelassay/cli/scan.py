"""`modelassay scan`."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from modelassay.cli import options
from modelassay.cli.before import with_baselines_dir
from modelassay.errors import (
    EXIT_IDENTITY_FAILED,
    EXIT_INCONCLUSIVE,
    EXIT_PASS,
    EXIT_SCAN_FAILED,
)


class FailOn(str, Enum):
    """The mildest verdict that makes the command fail."""

    warning = "warning"
    critical = "critical"


class Thoughts(str, Enum):
    """How a model that thinks is asked."""

    auto = "auto"
    on = "on"


@with_baselines_dir
@options.grouped
def scan_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    output: options.Reported,
    mode: Annotated[str, typer.Option(help="quick, standard or full.")] = "standard",
    concepts: options.ConceptsFile = None,
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare",
            "-C",
            metavar="MODEL",
            help="Scan this model too and compare; or a baseline of yours, which is not scanned.",
        ),
    ] = None,
    verify: Annotated[
        str | None,
        typer.Option(
            "--verify", "-V", metavar="BASELINE", help="Also verify it against this baseline."
        ),
    ] = None,
    batch_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens in a batch; lower it to save memory.")
    ] = None,
    batch_size: options.BatchSize = None,
    response_tokens: Annotated[
        int,
        typer.Option(
            min=1, help="Length at which an answer is cut; a thought before it gets 1000 more."
        ),
    ] = 100,
    ask_all: Annotated[
        bool, typer.Option("--all", help="Ask every prompt, also where the verdict is sure before.")
    ] = False,
    thinking: Annotated[
        Thoughts,
        typer.Option(help="Have a model that thinks answer at once, or ask as its template does."),
    ] = Thoughts.auto,
    fail_on: Annotated[
        FailOn, typer.Option(help="The mildest verdict that gives exit code 1.")
    ] = FailOn.warning,
) -> int:
    """Scan MODEL: is its safety training intact?

    Exit codes: 0 pass, 1 failed, 2 not the model of the baseline (--verify), 3 inconclusive, 64 bad
    input, 69 something needed is unavailable, 70 internal error.
    """
    from modelassay.scan import scan

    with progress() as on_progress:
        report = scan(
            model,
            mode=mode,
            concepts=concepts,
            compare=compare,
            verify=verify,
            response_tokens=response_tokens,
            thinking="on" if thinking is Thoughts.on else "auto",
            batch_tokens=batch_tokens,
            batch_size=batch_size,
            ask_all=ask_all,
            on_progress=on_progress,
            **loading,
        )
    output.give(report)
    if report.verification is not None and report.verification.verified is False:
        return EXIT_IDENTITY_FAILED
    unknown = report.verification is not None and report.verification.verified is None
    code = exit_code(report.verdict.value, fail_on.value)
    return EXIT_INCONCLUSIVE if unknown and code == EXIT_PASS else code


def exit_code(verdict: str, fail_on: str) -> int:
    """Exit code of a scan with this verdict."""
    if verdict == "INCONCLUSIVE":
        return EXIT_INCONCLUSIVE
    failing = {"warning": ("WARNING", "CRITICAL"), "critical": ("CRITICAL",)}[fail_on]
    return EXIT_SCAN_FAILED if verdict in failing else EXIT_PASS
