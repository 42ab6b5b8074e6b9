"""`modelassay verify` and `modelassay baseline`: measure a model once, verify others ever after."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import NAMED, add_verbs
from modelassay.cli.before import with_baselines_dir
from modelassay.cli.output import show_progress
from modelassay.errors import EXIT_IDENTITY_FAILED, EXIT_INCONCLUSIVE, EXIT_PASS, InputError


@with_baselines_dir
@options.grouped
def verify_command(
    model: options.Model,
    loading: options.LoadingAsTrained,
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


baseline_app = typer.Typer(
    help="Baselines: measured models that others are verified against.", no_args_is_help=True
)


@baseline_app.command("create")
@with_baselines_dir
@options.grouped
def create_command(
    model: options.Model,
    loading: options.LoadingAsTrained,
    progress: options.Progress,
    name: Annotated[
        str | None, typer.Option(help="Its name; made from the model's id if left out.")
    ] = None,
    model_id: Annotated[
        str | None, typer.Option(help="The id to publish when MODEL is a folder of yours.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder in place of your store.")
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            help="quick keeps what verifying goes by; standard and full also how often the model"
            " refuses, and more concepts."
        ),
    ] = "quick",
    batch_size: options.BatchSize = None,
    force: options.Force = False,
) -> None:
    """Measure MODEL and keep a baseline of it."""
    from modelassay.artifacts import public_id, slug
    from modelassay.verify import BASELINES, create_baseline, store_baseline

    BASELINES.check_free(name or slug(public_id(model_id or model.id)), force=force, out=out)
    with progress() as on_progress:
        baseline = create_baseline(
            model,
            name=name,
            model_id=model_id,
            mode=mode,
            batch_size=batch_size,
            on_progress=on_progress,
            **loading,
        )
        folder = store_baseline(baseline, force=force, out=out)
    typer.echo(str(folder))


@baseline_app.command("import")
@with_baselines_dir
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON that ams-scanner wrote.")],
    name: Annotated[
        str | None, typer.Option(help="Its name; made from the model's id if left out.")
    ] = None,
    force: options.Force = False,
) -> None:
    """Keep a baseline of ams-scanner in your store."""
    from modelassay.verify import import_baseline, store_baseline

    typer.echo(str(store_baseline(import_baseline(file, name=name), force=force)))


def _measure(model: str, quiet: bool, token: str | None, folder: Path) -> None:
    """Measures a model for `push`, where there is no baseline of that name."""
    from modelassay.verify import create_baseline, save_baseline

    with show_progress(quiet=quiet) as on_progress:
        save_baseline(create_baseline(model, on_progress=on_progress, token=token), folder)


def _with_options(verb: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a verb --baselines-dir, and `show` the option by which ams-scanner takes the model."""
    if verb.__name__ == "show_command":
        verb = options.with_groups(verb, reference=_shown)
    return with_baselines_dir(verb)


def _shown(
    reference: Annotated[str | None, typer.Argument(metavar="NAME", help=NAMED)] = None,
    model_id: Annotated[
        str | None, typer.Option(help="In place of NAME: the id of its model.")
    ] = None,
) -> str | None:
    if (reference is None) == (model_id is None):
        raise InputError("Give NAME or --model-id, one of them.")
    return reference or model_id


add_verbs(
    baseline_app,
    "modelassay.verify:BASELINES",
    "baseline",
    make=_measure,
    wrap=_with_options,
)
