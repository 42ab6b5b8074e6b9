"""`modelassay monitor`: watch what a fine-tune added, or what carries refusals, while it runs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import add_verbs
from modelassay.errors import InputError

if TYPE_CHECKING:
    from modelassay.monitors import Monitor

app = typer.Typer(
    help="Monitors: directions inside a model that are watched, and the ranges of ordinary use.",
    no_args_is_help=True,
)

Data = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE",
        help="Ordinary prompts of yours besides (JSONL, JSON, CSV, Parquet, text, Hub data set);"
        " rows labelled unsafe are left out. May be repeated.",
    ),
]


@dataclass(frozen=True)
class Made:
    """What a monitor is calibrated on, and where it goes."""

    data: Data = None
    response_tokens: Annotated[
        int, typer.Option(min=0, max=256, help="Of each response, how many tokens are judged.")
    ] = 16
    name: Annotated[str | None, typer.Option(help="Its name; made from the model's id.")] = None
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder in place of your store.")
    ] = None
    force: options.Force = False
    token: options.Token = None

    def prepared(self, model_id: str) -> dict[str, Any]:
        """Keyword arguments of what builds one; refuses what could not be kept.

        Raises:
            InputError: something is there already, or a file cannot be read.
        """
        from modelassay.artifacts import slug
        from modelassay.monitors import MONITORS
        from modelassay.monitors.lengths import ordinary_of_all_lengths

        name = MONITORS.kind.check_name(self.name or slug(model_id))
        MONITORS.check_free(name, force=self.force, out=self.out)
        prompts = None
        if self.data:
            prompts = [*ordinary_of_all_lengths(), *_read(self.data, self.token)]
        return {"name": name, "prompts": prompts, "response_tokens": self.response_tokens}

    def keep(self, monitor: Monitor) -> None:
        """Puts it where it goes, and tells what it is."""
        from modelassay.monitors import MONITORS, store_monitor

        path = store_monitor(monitor, out=self.out, force=self.force)
        typer.echo("\n".join([*MONITORS.kind.describe(monitor.record), str(path)]))


Making = Annotated[Made, options.From(Made)]


@app.command("build")
@options.grouped
def build_command(
    base: options.Base,
    candidate: options.Candidate,
    loading: options.Loading,
    progress: options.Progress,
    made: Making,
) -> None:
    """Make a monitor of CANDIDATE, a fine-tune, that watches what it has over BASE.

    It needs no prompt that sets the fine-tune off: the weights say what to watch, and ordinary
    prompts how far that goes in ordinary use.
    """
    from modelassay.monitors import build_monitor

    how = made.prepared(candidate.id)
    with progress() as on_progress:
        made.keep(build_monitor(base, candidate, on_progress=on_progress, **how, **loading))


@app.command("circuit")
@options.grouped
def circuit_command(
    model: options.Model,
    loading: options.LoadingAsTrained,
    progress: options.Progress,
    made: Making,
    component: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A component to watch, such as 27.mlp or, from the end, -1.mlp; found as by"
            " `circuit find` if left out. May be repeated.",
        ),
    ] = None,
) -> None:
    """Make a monitor of the components that carry the refusals of MODEL."""
    from modelassay.monitors import build_circuit_monitor

    how = made.prepared(model.id)
    with progress() as on_progress:
        made.keep(
            build_circuit_monitor(
                model, circuit=component or None, on_progress=on_progress, **how, **loading
            )
        )


@app.command("eval")
@options.grouped
def eval_command(
    monitor: Annotated[str, typer.Argument(metavar="MONITOR|MODEL", help="A monitor.")],
    loading: options.AnyModel,
    progress: options.Progress,
    output: options.JsonReport,
    data: Data = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="The monitor's model, if not the one it names."),
    ] = None,
) -> None:
    """Count the prompts of yours on which a monitor raises an alert."""
    if not data:
        raise InputError("Give --data FILE with prompts.")

    from modelassay.models import open_model
    from modelassay.monitors import evaluate_monitor, find_monitor

    token = loading.get("token")
    prompts = _read(data, token)
    found, _ = find_monitor(monitor, token=token)
    with progress() as on_progress:
        loaded = open_model(model or found.record.model.id, on_progress=on_progress, **loading)
        output.give(evaluate_monitor(found, loaded, prompts, on_progress=on_progress))


def _read(data: list[str] | None, token: Any) -> list[str]:
    """Prompts of files that are not labelled unsafe."""
    from modelassay.diff.suites import read_prompts

    suites = [read_prompts(where, token=token) for where in data or ()]
    return [
        prompt.text for suite in suites for prompt in suite.prompts if prompt.group != "harmful"
    ]


add_verbs(app, "modelassay.monitors:MONITORS", "monitor")
