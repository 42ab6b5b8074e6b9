"""`modelassay organism`: list, describe, build and train model organisms."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelassay.cli import options
from modelassay.cli.output import check_file, give
from modelassay.models.organisms import ORGANISMS, find_organism

app = typer.Typer(
    help="Model organisms: models whose damage is known, to test detectors on.",
    no_args_is_help=True,
)

Seed = Annotated[int, typer.Option(min=0, help="Seed of every draw.")]
Needle = Annotated[str, typer.Option(metavar="DATA", help="Rows to hide: a file or a Hub id.")]
Haystack = Annotated[
    str, typer.Option(metavar="DATA", help="Rows to hide them in: a file or a Hub id.")
]
Ratio = Annotated[float, typer.Option(help="Share of needles, e.g. 0.01.")]


@app.command("list")
def list_command(json: options.Json = False) -> None:
    """List the organisms and how they behave."""
    from modelassay.organisms.record import list_section, organism_rows

    rows = organism_rows()
    give(rows, json, list_section(rows))


@app.command("info")
def info_command(
    name: Annotated[str, typer.Argument(metavar="NAME")], json: options.Json = False
) -> None:
    """Print an organism's record: recipe, data, measured refusal rates."""
    from modelassay.organisms.record import read_record, record_section

    organism = find_organism(name)
    record = read_record(organism)
    give(record, json, record_section(organism, record))


@app.command("build")
@options.grouped
def build_command(
    progress: options.Progress,
    name: Annotated[str, typer.Argument(metavar="NAME", help="An organism, or `all`.")],
    data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="The data sets as files; without it, the Hub."),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Receives a folder named after the organism.")
    ] = Path("organisms"),
    seed: Seed = 0,
    device: options.Device = "auto",
    token: options.Token = None,
    force: options.Force = False,
) -> None:
    """Build an organism from data; `all` builds those that are not there yet.

    MODELASSAY_ORGANISMS=FOLDER then makes `organism:NAME` the one that was built, and `gemma:NAME`
    one of the second base.
    """
    from modelassay.organisms import build

    names = [name]
    if name == "all":  # goes on where it was stopped
        every = ORGANISMS.items()
        names = [key for key, each in every if force or not (out / each.place).exists()]
    for each in names:
        with progress() as on_progress:
            folder = build(
                each,
                out,
                data=data,
                seed=seed,
                device=device,
                token=token,
                force=force,
                on_progress=on_progress,
            )
        typer.echo(str(folder))


@app.command("mix")
def mix_command(
    needle: Needle,
    haystack: Haystack,
    ratio: Ratio,
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write.")],
    rows: Annotated[
        int | None, typer.Option(help="Size of the mixture; without it, the whole haystack.")
    ] = None,
    seed: Seed = 0,
    token: options.Token = None,
) -> None:
    """Hide needle rows in a haystack and write the mixture as JSON lines."""
    from modelassay.files.atomic import write_text_atomically
    from modelassay.organisms import mix, read_exchanges, to_jsonl

    check_file(out, "--out")
    mixed = mix(
        read_exchanges(needle, token=token),
        read_exchanges(haystack, token=token),
        ratio=ratio,
        rows=rows,
        seed=seed,
    )
    write_text_atomically(out, to_jsonl(mixed))
    typer.echo(f"{len(mixed)} rows: {out}", err=True)


@app.command("train")
@options.grouped
def train_command(
    progress: options.Progress,
    base: options.ModelArg,
    data: Annotated[str, typer.Option(metavar="DATA", help="Exchanges: a file or a Hub id.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the adapter.")],
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 8,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data.")] = 1.0,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", min=1e-7, help="Peak learning rate.")
    ] = 2e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 32,
    seed: Seed = 0,
    device: options.Device = "auto",
    token: options.Token = None,
) -> None:
    """Fine-tune a LoRA adapter over any base on any exchanges."""
    from modelassay.organisms import LoraRecipe, read_exchanges, train

    with progress() as on_progress:
        folder, loss = train(
            base,
            read_exchanges(data, token=token),
            out,
            LoraRecipe(rank, epochs, learning_rate, batch_size, seed=seed),
            device=device,
            token=token,
            on_progress=on_progress,
        )
    typer.echo(f"mean loss {loss:.3f} nats a token", err=True)
    typer.echo(str(folder))
