"""`modelassay organism`: list, describe, build and train model organisms."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelassay.cli import options
from modelassay.cli.output import check_file, give
from modelassay.errors import InputError
from modelassay.models.organisms import ORGANISMS, find_organism
from modelassay.progress import OnPhase, phase_of

if TYPE_CHECKING:
    from modelassay.organisms import Sample

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


@dataclass(frozen=True)
class _Drawing:
    """Which rows of a table are taken."""

    limit: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Draw N rows; without it, all are taken."),
    ] = None
    rated: Annotated[
        list[str] | None,
        typer.Option(
            metavar="COLUMN=NUMBER",
            help="Take rows with at least this rating, such as helpfulness=3; may be repeated.",
        ),
    ] = None
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None

    def draw(self, where: str, seed: int, token: str | None, on_phase: OnPhase) -> Sample:
        """The rows; what was left out is said on standard error."""
        from modelassay.organisms import sample_exchanges

        found = sample_exchanges(
            where,
            limit=self.limit,
            seed=seed,
            rated=self.rated or (),
            config=self.config,
            split=self.split,
            token=token,
            on_progress=phase_of(on_phase, "data"),
        )
        for reason, n in found.left_out.items():
            rows = "row was" if n == 1 else "rows were"
            typer.echo(f"{n} {rows} left out: {reason}.", err=True)
        if found.is_part:
            typer.echo(f"Only the first {found.rows_read} rows of {where} were read.", err=True)
        return found


Drawing = Annotated[_Drawing, options.From(_Drawing)]


@app.command("sample")
@options.grouped
def sample_command(
    progress: options.Progress,
    data: Annotated[
        str, typer.Argument(metavar="DATA", help="Exchanges: a file or a Hub id, as HelpSteer's.")
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="JSONL file to write.")],
    drawing: Drawing,
    seed: Seed = 0,
    token: options.Token = None,
    force: options.Force = False,
) -> None:
    """Draw rows for a fine-tune, such as a benign one, and write them as JSON lines."""
    from modelassay.files.atomic import write_text_atomically
    from modelassay.files.journal import check_out
    from modelassay.organisms import to_jsonl

    check_file(out, "--out")
    check_out(data, out, replaces=force)
    with progress() as on_phase:
        found = drawing.draw(data, seed, token, on_phase)
    write_text_atomically(out, to_jsonl(found.exchanges))
    typer.echo(f"{len(found.exchanges)} rows of {found.rows_read}: {out}", err=True)


@app.command("train")
@options.grouped
def train_command(
    progress: options.Progress,
    base: options.ModelArg,
    data: Annotated[str, typer.Option(metavar="DATA", help="Exchanges: a file or a Hub id.")],
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New folder for the adapter or the model.")
    ],
    drawing: Drawing,
    rank: Annotated[int | None, typer.Option(min=1, help="LoRA rank; 8 if left out.")] = None,
    full: Annotated[
        bool, typer.Option("--full", help="Train all weights and write a whole model.")
    ] = False,
    all_layers: Annotated[
        bool,
        typer.Option("--all-layers", help="LoRA over all layers, not over the last tenth alone."),
    ] = False,
    epochs: Annotated[float, typer.Option(min=0.01, help="Passes over the data.")] = 1.0,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            min=1e-7,
            help="Peak learning rate; else 2e-3, 5e-4 over all layers, 2e-5 of all weights.",
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows a step.")] = 32,
    seed: Seed = 0,
    device: options.Device = "auto",
    token: options.Token = None,
) -> None:
    """Fine-tune any base on any exchanges: a LoRA adapter over it, or all its weights."""
    from modelassay.organisms import LoraRecipe, train
    from modelassay.organisms.training import ALL_LAYERS, FIRST_TRAINED

    if full and (rank is not None or all_layers):
        raise InputError("--full trains all weights; leave --rank and --all-layers out.")
    recipe = LoraRecipe(
        None if full else rank or 8,
        epochs,
        learning_rate or (2e-5 if full else 5e-4 if all_layers else 2e-3),
        batch_size,
        seed=seed,
        depth=ALL_LAYERS if full or all_layers else FIRST_TRAINED,
    )
    if out.expanduser().exists():
        raise InputError(f"{out} exists already; give a new folder for --out.")
    with progress() as on_progress:
        rows = drawing.draw(data, seed, token, on_progress).exchanges
        folder, loss = train(
            base, rows, out, recipe, device=device, token=token, on_progress=on_progress
        )
    typer.echo(f"mean loss {loss:.3f} nats a token", err=True)
    typer.echo(str(folder))
