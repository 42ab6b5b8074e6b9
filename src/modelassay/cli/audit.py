"""`modelassay audit`: an audit of a fine-tune from the command line."""

from __future__ import annotations

import json as json_module
import math
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelassay.cli import options
from modelassay.cli.audit_config import CONFIG_VARIABLES, load_audit_config
from modelassay.cli.audit_run import run_command
from modelassay.cli.output import check_file, give
from modelassay.errors import EXIT_BAD_INPUT, EXIT_PASS, EXIT_SCAN_FAILED, InputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from modelassay.audit.checking import Check
    from modelassay.report import Section

app = typer.Typer(
    no_args_is_help=True,
    help="Audit a fine-tune against its base: check a config, score a suite, try it all out, or"
    " have an agent investigate"
    " (`modelassay mcp` serves the tools of an audit).",
)
app.command("run")(run_command)


@app.command("validate")
def validate_command(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", envvar=CONFIG_VARIABLES, help="What is audited.")
    ],
    json: options.Json = False,
) -> int:
    """Check a config and everything that it names, without loading weights.

    Models, adapters, SAEs, suites, training data, calibration and folder. Exit codes: 0 all is
    there, 64 something is not.
    """
    from modelassay.audit import load_config
    from modelassay.audit.checking import check_config

    found = check_config(load_config(config))
    give(found.to_dict(), json, *_sections(found.checks, config.name, found.notes))
    return EXIT_PASS if found.ok else EXIT_BAD_INPUT


@app.command("benchmark")
def benchmark_command(
    config: Annotated[
        Path, typer.Option(metavar="FILE", envvar=CONFIG_VARIABLES, help="What is audited.")
    ],
    suite: Annotated[
        str,
        typer.Option(
            metavar="FILE|NAME",
            help="What the models are asked: a YAML file, or a suite of the config's or a shipped"
            " one by its name.",
        ),
    ] = "default",
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Where the result goes, as JSON; benchmark.json in the audit's folder if left"
            " out.",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(help="Score from which a candidate is flagged, in place of the verdict."),
    ] = None,
    responses: Annotated[
        int,
        typer.Option(min=0, max=512, metavar="N", help="Length of responses, as in `diff`."),
    ] = 100,
    no_weights: Annotated[
        bool, typer.Option("--no-weights", help="Leave the weights' spectra out.")
    ] = False,
    no_triggers: Annotated[
        bool, typer.Option("--no-triggers", help="Leave the search for triggers out.")
    ] = False,
    show_responses: Annotated[
        bool, typer.Option("--show-responses", help="Give responses as text, not as hashes.")
    ] = False,
    force: options.Force = False,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Ask base and candidates a suite, score each candidate as `diff` does, write one result file.

    Reports are kept as they come, in a file beside the result: the same command goes on after a
    stop, and asks only those candidates again that failed. Exit codes: 0 the result is written, 1
    it is, without the candidates that failed; 64 bad input, 69 something needed is unavailable.
    """
    from modelassay.audit.benchmark import benchmark
    from modelassay.cli.output import show_progress
    from modelassay.diff import Depth
    from modelassay.files.atomic import write_text_atomically

    settings = load_audit_config(config)
    place = out or Path(settings.folder) / "benchmark.json"
    parts = place.with_name(f"{place.name}.progress")
    if threshold is not None and not math.isfinite(threshold):
        raise InputError("--threshold must be a number.")
    if place.parent.exists():  # else it is made when there is something to write
        check_file(place, "--out")
    if place.exists() and not force and not parts.exists():
        raise InputError(f"{place} exists already; pass --force to replace it.")
    with show_progress(quiet=quiet) as on_progress:
        found = benchmark(
            settings,
            suite,
            depth=Depth(responses, not no_weights, not no_triggers, causal=False),
            threshold=threshold,
            show_responses=show_responses,
            keep=parts,
            force=force,
            on_progress=on_progress,
        )
    for note in found.suite.notes:
        typer.echo(f"modelassay: {note}", err=True)
    values = found.to_dict()
    text = json_module.dumps(values, indent=1, ensure_ascii=False, allow_nan=False)
    write_text_atomically(place, text + "\n")
    give(values, json, *found.sections())
    typer.echo(f"Result: {place}", err=True)
    if found.failed:
        names = ", ".join(found.failed)
        typer.echo(
            f"modelassay: {names} could not be compared; the same command tries again and keeps the"
            " other reports.",
            err=True,
        )
        return EXIT_SCAN_FAILED
    return EXIT_PASS


@app.command("smoke")
def smoke_command(
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Keep the log and the report there; else they are not kept."
        ),
    ] = None,
    quiet: options.Quiet = False,
    json: options.Json = False,
) -> int:
    """Try an audit out on real models that come with modelassay: no Hub, no mocks, some minutes.

    Exit codes: 0 all works, 1 something does not, 69 something needed is unavailable.
    """
    from modelassay.audit.checking import ConfigCheck
    from modelassay.audit.smoke import smoke, smoke_config
    from modelassay.cli.output import show_progress

    if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} is there already; give a new folder for --out.")
    with ExitStack() as stack:
        folder = out or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        with show_progress(quiet=quiet) as on_progress:
            checks = smoke(smoke_config(folder), on_progress)
    found = ConfigCheck(checks, ())
    give(found.to_dict(), json, *_sections(checks, "smoke test"))
    return EXIT_PASS if found.ok else EXIT_SCAN_FAILED


def _sections(checks: Sequence[Check], title: str, notes: Sequence[str] = ()) -> list[Section]:
    from modelassay.report import Section
    from modelassay.report.text import plain_line

    failed = sum(not check.ok for check in checks)
    result = f"{failed} of {len(checks)} are not as they must be." if failed else "All is well."
    lines = [
        f"{'ok' if check.ok else 'FAILED'}  {check.what}: {plain_line(check.told)}"
        for check in checks
    ]
    noted = [Section("notes", "notes", items=tuple(map(plain_line, notes)))] if notes else []
    return [Section("checks", title, items=tuple(lines), note=result), *noted]
