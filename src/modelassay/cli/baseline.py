"""`modelassay baseline`: measure a model once, compare others with it ever after."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import Annotated

import typer

from modelassay.cli import options

app = typer.Typer(
    help="Baselines: measured models that others are verified against.", no_args_is_help=True
)

Force = Annotated[bool, typer.Option("--force", help="Replace one of the same name.")]
Reference = Annotated[
    str, typer.Argument(metavar="BASELINE", help="A name, a folder, or a model's id.")
]


@app.command("create")
@options.grouped
def create_command(
    model: options.Model,
    loading: options.Loading,
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
    force: Force = False,
) -> None:
    """Measure MODEL and keep a baseline of it."""
    from modelassay.verify import create_baseline, store_baseline
    from modelassay.verify.stores import check_free

    check_free(model_id or model.id, name, force=force, out=out)
    with progress() as on_progress:
        baseline = create_baseline(
            model,
            name=name,
            model_id=model_id,
            on_progress=on_progress,
            **loading,
        )
        folder = store_baseline(baseline, force=force, out=out)
    typer.echo(str(folder))


@app.command("list")
def list_command(json: options.Json = False) -> None:
    """List the baselines on this machine."""
    from modelassay.verify import list_baselines

    found = list_baselines()
    if json:
        rows = [
            {
                "name": index.name,
                "source": origin.source,
                "model": index.model.model_dump(mode="json"),
                "created": index.created,
            }
            for index, origin in found
        ]
        typer.echo(json_module.dumps(rows, indent=2, ensure_ascii=False))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("name", "model", "architecture", "numbers", "store", "created"):
        table.add_column(column)
    for index, origin in found:
        model = index.model
        cells = (index.name, model.id, model.architecture, model.dtype, origin.source)
        table.add_row(*(escape(cell) for cell in cells), index.created[:10])
    Console().print(table)


@app.command("show")
def show_command(reference: Reference, json: options.Json = False) -> None:
    """Print what a baseline holds."""
    from modelassay.verify import find_baseline

    found = find_baseline(reference)
    assert found is not None  # noqa: S101 (it is required)
    index, origin = found[0].index, found[1]
    if json:
        values = index.model_dump(mode="json", by_alias=True) | {"origin": origin.to_dict()}
        typer.echo(json_module.dumps(values, indent=2, ensure_ascii=False))
        return
    model = index.model
    typer.echo(f"{index.name} ({origin.source}), {index.created}, by {index.instrument}")
    typer.echo(f"model: {model.id}" + (f" at {model.revision}" if model.revision else ""))
    typer.echo(f"architecture: {model.architecture}, {model.n_layers} blocks, {model.dtype}")
    for file, digest in index.files.weights.items() if index.files else ():
        typer.echo(f"sha256: {digest}  {file}")
    for name, concept in index.concepts.items():
        spread = "{:.2f} to {:.2f}".format(*concept.interval) if concept.interval else "in-sample"
        typer.echo(f"{name}: {concept.separation:.2f}σ ({spread}) at block {concept.layer}")
    if index.refusal is not None:
        r = index.refusal
        typer.echo(f"refuses harmful {r.harmful_rate:.0%}, harmless {r.benign_rate:.0%}")


@app.command("import")
def import_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="JSON that ams-scanner wrote.")],
    name: Annotated[
        str | None, typer.Option(help="Its name; made from the model's id if left out.")
    ] = None,
    force: Force = False,
) -> None:
    """Keep a baseline of ams-scanner in your store."""
    from modelassay.verify import import_baseline, store_baseline

    typer.echo(str(store_baseline(import_baseline(file, name=name), force=force)))


@app.command("delete")
def delete_command(name: Annotated[str, typer.Argument(metavar="NAME")]) -> None:
    """Delete a baseline from your store."""
    from modelassay.verify import delete_baseline

    typer.echo(f"deleted {delete_baseline(name)}", err=True)


@app.command("push")
@options.grouped
def push_command(
    progress: options.Progress,
    reference: Annotated[
        str,
        typer.Argument(metavar="MODEL_OR_BASELINE", help="A baseline, or a model to measure now."),
    ],
    repo: Annotated[str, typer.Option(metavar="OWNER/NAME", help="Hub data set.")],
    create_pr: Annotated[
        bool, typer.Option("--create-pr", help="Propose it to somebody else's data set.")
    ] = False,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new data set private.")
    ] = False,
    token: options.Token = None,
) -> None:
    """Publish a baseline as a Hub data set, or propose it to one."""
    from modelassay.hub import check_repo_id
    from modelassay.verify import create_baseline, find_local, push_baseline

    check_repo_id(repo)
    found = find_local(reference)
    if found is not None:
        baseline = found[0]
    else:
        with progress() as on_progress:
            baseline = create_baseline(reference, on_progress=on_progress, token=token)
    pushed = push_baseline(baseline, repo, create_pr=create_pr, private=private, token=token)
    typer.echo(pushed.pull_request or f"{pushed.repo_id}:{baseline.name}@{pushed.commit}")


@app.command("pull")
def pull_command(
    reference: Annotated[str, typer.Argument(metavar="OWNER/REPO[:NAME][@REV]")],
    revision: options.Revision = None,
    token: options.Token = None,
    force: Force = False,
) -> None:
    """Fetch a baseline from the Hub, check it, and keep it in your store."""
    from modelassay.verify import pull_baseline, store_baseline

    baseline, origin = pull_baseline(reference, revision=revision, token=token)
    folder = store_baseline(baseline, origin=origin, force=force)
    typer.echo(f"{origin.id}@{origin.revision} by {origin.author}", err=True)
    typer.echo(str(folder))


@app.command("search")
def search_command(
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Only baselines of this model.")
    ] = None,
    author: Annotated[str | None, typer.Option(help="Only those of this namespace.")] = None,
    token: options.Token = None,
    json: options.Json = False,
) -> None:
    """Find baselines on the Hub."""
    from modelassay.verify import search_baselines

    found = search_baselines(model=model, author=author, token=token)
    if json:
        typer.echo(json_module.dumps([vars(each) for each in found], indent=2))
        return
    from rich import box
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for column in ("data set", "models", "downloads", "updated", "commit"):
        table.add_column(column)
    for each in found:
        table.add_row(
            escape(each.repo_id),
            escape(", ".join(each.models[:4])),
            str(each.downloads),
            (each.updated or "")[:10],
            (each.revision or "")[:12],
        )
    Console().print(table)
