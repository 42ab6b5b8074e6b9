"""`modelassay probe`: train, compare, score, publish the probes that watch a model."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.errors import InputError
from modelassay.progress import phase_of

app = typer.Typer(
    help="Probes: readouts of a model's activations that tell harm as it is asked or answered.",
    no_args_is_help=True,
)

Force = Annotated[bool, typer.Option("--force", help="Replace one of the same name.")]
Reference = Annotated[
    str, typer.Argument(metavar="PROBE", help="A name, a folder, or owner/repo[:name][@revision].")
]
Data = Annotated[
    list[str] | None,
    typer.Option(metavar="FILE", help="Rows {prompt, response, label}: a file or a Hub data set."),
]
At = Annotated[str, typer.Option(metavar="prompt|answer", help="Where the probe reads.")]
Kind = Annotated[str, typer.Option(help="logistic, means or attention.")]
Layers = Annotated[
    str | None, typer.Option(metavar="I,J,…", help="Blocks to read; spread over the depth if not.")
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

    from modelassay.files.atomic import check_replaceable
    from modelassay.files.records import check_name
    from modelassay.models import open_model
    from modelassay.probes import make_probe, store_probe, train_head
    from modelassay.probes.recipe import train_default_heads
    from modelassay.probes.stores import FILES, local_folder
    from modelassay.verify.creating import slug

    name = check_name(name or slug(model.id), "probe")
    check_replaceable(out or local_folder() / name, FILES, "probe", force=force)
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
    _print_record(probe.record)
    typer.echo(str(path))


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
    """Score a probe of every single block, from one pass over the data."""
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
    from modelassay.probes import evaluate_probe, find_probe, probe_of
    from modelassay.probes.stores import FoundProbe, is_probe
    from modelassay.report import print_report

    rows = _read(data, place, config, split, token)
    found: FoundProbe | None = find_probe(probe, token=token) if is_probe(probe) else None
    model_id = model or (found.probe.record.model.id if found else probe)
    with progress() as on_phase:
        loaded = open_model(model_id, on_progress=on_phase, **loading)
        found = found or probe_of(loaded)
        if found is None:
            raise InputError(
                f"There is no probe for {model_id}; train one with `modelassay probe train`."
            )
        result = evaluate_probe(
            found.probe,
            loaded,
            rows,
            place,
            on_progress=phase_of(on_phase, "reading"),
        )
    if json:
        typer.echo(json_module.dumps(result.to_dict(), indent=2, ensure_ascii=False))
        return
    print_report(result, Console())


@app.command("info")
def info_command(
    reference: Reference, json: options.Json = False, token: options.Token = None
) -> None:
    """Print what a probe reads, what it was trained on, and how it scored."""
    from modelassay.probes import find_probe

    found = find_probe(reference, token=token)
    if json:
        values = found.probe.record.model_dump(mode="json", by_alias=True) | {"from": found.source}
        typer.echo(json_module.dumps(values, indent=2, ensure_ascii=False))
        return
    typer.echo(f"{found.probe.name} ({found.source})")
    _print_record(found.probe.record)


@app.command("list")
def list_command(json: options.Json = False) -> None:
    """List the probes on this machine."""
    from modelassay.probes import list_probes

    found = list_probes()
    if json:
        rows = [
            {"name": record.name, "source": source, "model": record.model.model_dump(mode="json")}
            for record, source in found
        ]
        typer.echo(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    for record, source in found:
        heads = ", ".join(
            f"{at} AUROC {head.metrics.auroc:.3f}" for at, head in record.heads.items()
        )
        typer.echo(f"{record.name} ({source}): {record.model.id}; {heads}")


@app.command("push")
def push_command(
    reference: Reference,
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Hub data set.")],
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it to somebody else's data set.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new data set private.")
    ] = False,
    token: options.Token = None,
) -> None:
    """Publish a probe in a Hub data set, or propose it to one."""
    from modelassay.probes import find_probe, push_probe

    probe = find_probe(reference, token=token).probe
    pushed = push_probe(probe, repo, create_pr=create_pr, private=private, token=token)
    typer.echo(pushed.pull_request or f"{pushed.repo_id}:{probe.name}@{pushed.commit}")


@app.command("pull")
def pull_command(
    reference: Annotated[str, typer.Argument(metavar="OWNER/REPO[:NAME][@REV]")],
    token: options.Token = None,
    force: Force = False,
) -> None:
    """Fetch a probe from the Hub, check it, and keep it in your store."""
    from modelassay.hub import REFERENCE
    from modelassay.probes import find_probe, store_probe

    if not REFERENCE.fullmatch(reference):
        raise InputError(f"{reference[:120]!r} is no Hub data set (owner/repo[:name][@revision]).")
    found = find_probe(reference, token=token)
    path = store_probe(found.probe.record, found.probe.heads, force=force)
    typer.echo(found.source, err=True)
    typer.echo(str(path))


def parse_layers(text: str | None) -> tuple[int, ...] | None:
    """`10,16,22` as block indices.

    Raises:
        InputError: it is no list of numbers.
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
    from modelassay.data.exchanges import read_labelled

    return [
        row
        for where in data or ()
        for row in read_labelled(where, at=at, config=config, split=split, token=token)
    ]


def _print_record(record: Any) -> None:
    from modelassay.probes.streams import BLOCK_RATE

    typer.echo(f"for {record.model.id}, weights sha256 {record.model.weights_sha256}")
    for at, head in record.heads.items():
        m = head.metrics
        typer.echo(
            f"{at}: {head.kind} over {'+'.join(head.poolings)} of blocks"
            f" {', '.join(map(str, head.layers))}; trained on {head.trained_on.n_unsafe} unsafe and"
            f" {head.trained_on.n_safe} safe rows"
        )
        typer.echo(
            f"  held out, n={m.n}: AUROC {m.auroc:.3f}"
            f" ({m.interval[0]:.3f} to {m.interval[1]:.3f});"
            f" at 1% false alarms finds {_share(m.tpr_at_fpr.get('0.01'))}; calibration error"
            f" {m.calibration_error:.3f}"
        )
        typer.echo(
            f"  blocks at {head.block:.3g}: {_rate(head.detected_rate, head.detected_interval)} of"
            f" unsafe and {_rate(head.block_rate, head.block_interval)} of safe rows; pauses at"
            f" {head.pause:.3g}: {head.held_rate:.1%} and {head.pause_rate:.1%}"
        )
        if head.trained_on.n_safe * BLOCK_RATE < 1:
            typer.echo(
                f"  {head.trained_on.n_safe} safe rows cannot tell a rate of {BLOCK_RATE:.1%}: the"
                " thresholds are guesses; train it on more"
            )
        worst = sorted(head.left_out.items(), key=lambda item: item[1].auroc)[:3]
        typer.echo(
            "  the sources that it ranks worst when it was not fitted on them:"
            if worst
            else "  leaving sources out was not measured (one source only, or a kind that is not)"
        )
        for source, row in worst:
            low, high = row.interval
            typer.echo(f"  without {source}: AUROC {row.auroc:.3f} ({low:.3f} to {high:.3f}) on it")


def _share(value: float | None) -> str:
    return "too few rows to tell" if value is None else f"{value:.1%}"


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.1%} ({interval[0]:.1%} to {interval[1]:.1%})"
