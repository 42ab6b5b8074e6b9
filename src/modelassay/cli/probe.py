"""`modelassay probe`: train, compare, score, publish the probes that watch a model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import Force, add_verbs
from modelassay.errors import InputError
from modelassay.progress import phase_of

app = typer.Typer(
    help="Probes: readouts of a model's activations that tell harm as it is asked or answered.",
    no_args_is_help=True,
)

Data = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Rows {prompt, response, label}: a file or a Hub data set."),
]
At = Annotated[str, typer.Option(metavar="prompt|answer", help="Where the probe reads.")]
Kind = Annotated[str, typer.Option(help="logistic, means or attention.")]
Layers = Annotated[
    str | None, typer.Option(metavar="I,J,…", help="Layers to read; spread over the depth if not.")
]
Config = Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")]
Split = Annotated[str, typer.Option(help="Split of a Hub data set.")]
Folder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Files of the shipped recipe's data sets."),
]


@app.command("train")
@options.grouped
def train_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    data: Data = None,
    config: Config = None,
    split: Split = "train",
    folder: Folder = None,
    at: Annotated[
        str, typer.Option(metavar="prompt|answer|both", help="Which heads to train.")
    ] = "both",
    kind: Kind = "logistic",
    layers: Layers = None,
    name: Annotated[str | None, typer.Option(help="Its name; made from the model's id.")] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="A new folder in place of your store.")
    ] = None,
    force: Force = False,
    token: options.Token = None,
) -> None:
    """Train a probe for MODEL, on data of yours or by the shipped recipe."""
    chosen = parse_layers(layers)
    if at not in ("prompt", "answer", "both"):
        raise InputError(f"--at is prompt, answer or both, not {at!r}.")
    if not data and folder is None:
        raise InputError(
            "Give --data FILE with rows {prompt, response, label}, or --folder FOLDER with the data"
            " sets of the shipped recipe (docs/guard.md lists them)."
        )
    if not data and (at, kind, layers) != ("both", "logistic", None):
        raise InputError("The shipped recipe trains both heads as it says; give --data to choose.")

    from modelassay.artifacts import slug
    from modelassay.models import open_model
    from modelassay.probes import PROBES, make_probe, store_probe, train_head
    from modelassay.probes.training import train_default_heads

    name = PROBES.kind.check_name(name or slug(model.id))
    PROBES.check_free(name, force=force, out=out)
    places: tuple[Any, ...] = ("prompt", "answer") if at == "both" else (at,)
    rows = {place: _read(data, place, config, split, token) for place in places} if data else {}
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        if data:
            heads = {
                place: train_head(
                    loaded,
                    rows[place],
                    place,
                    kind=kind,
                    layers=chosen,
                    on_progress=phase_of(on_phase, "reading"),
                )
                for place in places
            }
        else:
            assert folder is not None  # noqa: S101 (checked above)
            heads = train_default_heads(loaded, folder, token=token, on_phase=on_phase)
    probe = make_probe(loaded, name, heads)
    path = store_probe(probe.record, probe.heads, out=out, force=force)
    typer.echo("\n".join([*PROBES.kind.describe(probe.record), str(path)]))


@app.command("sweep")
@options.grouped
def sweep_command(
    model: options.Model,
    loading: options.Loading,
    progress: options.Progress,
    data: Data = None,
    config: Config = None,
    split: Split = "train",
    folder: Folder = None,
    at: At = "prompt",
    kind: Annotated[str, typer.Option(help="logistic or means.")] = "logistic",
    json: options.Json = False,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the plot here.")] = None,
    token: options.Token = None,
) -> None:
    """Score a probe of every single layer, from one pass over the data."""
    place = check_at(at)
    options.check_file(html, "--html")
    if not data and not (folder and place == "prompt"):
        raise InputError("Give --data FILE, or at the prompt --folder FOLDER.")

    from rich.console import Console

    from modelassay.data.training_data import prompt_head_rows
    from modelassay.files.atomic import write_text_atomically
    from modelassay.models import open_model
    from modelassay.probes import sweep_layers
    from modelassay.report import print_report, to_html

    rows = _read(data, place, config, split, token) if data else prompt_head_rows(folder, token)
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        sweep = sweep_layers(
            loaded,
            rows,
            place,
            kind=kind,
            on_progress=phase_of(on_phase, "reading"),
        )
    if html is not None:
        write_text_atomically(html, to_html(sweep))
    if json:
        typer.echo(json_module.dumps(sweep.to_dict()))
    else:
        print_report(sweep, Console())


@app.command("eval")
@options.grouped
def eval_command(
    probe: Annotated[
        str,
        typer.Argument(metavar="PROBE|MODEL", help="A probe, or a model that one is shipped for."),
    ],
    loading: options.AnyModel,
    progress: options.Progress,
    data: Data = None,
    config: Config = None,
    split: Split = "train",
    at: At = "prompt",
    model: Annotated[
        str | None, typer.Option(help="The probe's model, if not the one it names.")
    ] = None,
    json: options.Json = False,
    token: options.Token = None,
) -> None:
    """Score a probe on labelled data: AUROC, rates at its thresholds, source by source."""
    place = check_at(at)
    if not data:
        raise InputError("Give --data FILE with rows {prompt, response, label}.")

    from rich.console import Console

    from modelassay.models import open_model
    from modelassay.probes import Probe, evaluate_probe, find_probe, names_probe, probe_of
    from modelassay.report import print_report

    rows = _read(data, place, config, split, token)
    own: Probe | None = find_probe(probe, token=token)[0] if names_probe(probe) else None
    model_id = model or (own.record.model.id if own else probe)
    with progress() as on_phase:
        loaded = open_model(model_id, on_progress=on_phase, **loading)
        if own is None and (found := probe_of(loaded)) is not None:
            own = found[0]
        if own is None:
            raise InputError(
                f"There is no probe for {model_id}; train one with `modelassay probe train`."
            )
        result = evaluate_probe(
            own,
            loaded,
            rows,
            place,
            on_progress=phase_of(on_phase, "reading"),
        )
    if json:
        typer.echo(json_module.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    print_report(result, Console())


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`10,16,22` as block indices.

    Raises:
        InputError: it is not a list of numbers.
    """
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise InputError(f"--layers is a list such as 10,16,22, not {text[:60]!r}.") from error


def check_at(at: str) -> Any:
    """`prompt` or `answer`.

    Raises:
        InputError: it is neither.
    """
    if at not in ("prompt", "answer"):
        raise InputError(f"--at is prompt or answer, not {at!r}.")
    return at


def _read(
    data: list[str] | None, at: Any, config: str | None, split: str, token: str | None
) -> list[Any]:
    from modelassay.data.labelled import read_labelled

    return [
        row
        for where in data or ()
        for row in read_labelled(where, at=at, config=config, split=split, token=token)
    ]


add_verbs(app, "modelassay.probes:PROBES", "probe")
