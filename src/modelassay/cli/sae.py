"""`modelassay sae`: train and describe dictionaries of a model's features."""

from __future__ import annotations

import json as json_module
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.errors import InputError, UnavailableError
from modelassay.untrusted import NAME

app = typer.Typer(
    help="Dictionaries: sparse autoencoders that take a model's activations apart into features.",
    no_args_is_help=True,
)


@app.command("train")
def train_command(
    model: options.ModelArg,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Text or exchanges: JSONL, CSV, Parquet, .txt or a Hub data set; may be repeated.",
        ),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of a row that holds the text.")] = None,
    layer: Annotated[int | None, typer.Option(help="Block to take apart; near 2/3 if not.")] = None,
    width: Annotated[int | None, typer.Option(help="Features; eight a dimension if not.")] = None,
    k: Annotated[int, typer.Option(help="Features active on a token.")] = 48,
    kind: Annotated[
        str, typer.Option(help="batchtopk, topk, jumprelu or matryoshka.")
    ] = "batchtopk",
    tokens: Annotated[int, typer.Option(help="Activations to read.")] = 1_000_000,
    passes: Annotated[int, typer.Option(help="Times that each is used.")] = 1,
    batch: Annotated[int, typer.Option(help="Activations a step.")] = 2048,
    learning_rate: Annotated[float, typer.Option(help="Peak learning rate.")] = 4e-4,
    window: Annotated[int, typer.Option(help="Activations in memory together.")] = 100_000,
    context: Annotated[int, typer.Option(help="Tokens of a text read together.")] = 128,
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0,
    storage: Annotated[
        str, typer.Option(metavar="bfloat16|float32", help="Numbers of the file.")
    ] = "bfloat16",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New folder for the dictionary.")
    ] = Path("dictionary"),
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that exists.")] = False,
    device: options.Device = "auto",
    dtype: options.Dtype = "auto",
    revision: options.Revision = None,
    token: options.Token = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress.")] = False,
) -> None:
    """Train a dictionary of MODEL; a run that was stopped goes on when it is given again."""
    if not data:
        raise InputError("Give text to read with --data FILE or a Hub data set.")
    if kind not in ("batchtopk", "topk", "jumprelu", "matryoshka"):
        raise InputError(f"--kind is batchtopk, topk, jumprelu or matryoshka, not {kind!r}.")
    if storage not in ("bfloat16", "float32"):
        raise InputError(f"--storage is bfloat16 or float32, not {storage!r}.")
    check_installed()

    from modelassay.cache import check_replaceable
    from modelassay.cli.progress import loaded_model
    from modelassay.sae import Corpus, Settings, save_dictionary, train_sae
    from modelassay.sae.dictionary import FILES

    check_replaceable(out, FILES, "dictionary", force=force)
    if not re.fullmatch(NAME, out.name):
        raise InputError(f"A dictionary cannot be named {out.name[:60]!r}: letters, digits, - _ .")
    with loaded_model(model, quiet, device, dtype, revision, token) as (loaded, on_phase):
        n_layers, hidden = len(loaded.blocks), loaded.info.hidden_size
        settings = Settings(
            layer=2 * n_layers // 3 if layer is None else layer,
            width=8 * hidden if width is None else width,
            k=k,
            kind=kind,  # type: ignore[arg-type]
            tokens=tokens,
            passes=passes,
            batch=batch,
            learning_rate=learning_rate,
            window_tokens=window,
            context=context,
            seed=seed,
        )
        settings.check(loaded)
        corpus = Corpus(loaded, data, field=field, token=token)
        held_out = corpus.held_out()
        state = out.with_name(out.name + ".training")
        sae = train_sae(
            loaded,
            corpus.train,
            settings,
            state=state,
            on_progress=lambda done, total: on_phase("learning", done, total),
        )
        dictionary = save_dictionary(
            sae,
            loaded,
            settings,
            held_out,
            out,
            name=out.name,
            data=[Path(source).name if Path(source).exists() else source for source in data],
            dtype=storage,  # type: ignore[arg-type]
            on_progress=lambda done, total: on_phase("scoring", done, total),
        )
    remove_state(state)
    print_record(dictionary.record)
    typer.echo(str(out))


@app.command("info")
def info_command(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A trained dictionary.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Print which model and block a dictionary belongs to, and how good it is."""
    from modelassay.sae.record import read_record

    record = read_record(folder)
    if json:
        values = record.model_dump(mode="json", by_alias=True)
        typer.echo(json_module.dumps(values, indent=2, ensure_ascii=False))
        return
    print_record(record)


def check_installed() -> None:
    """Refuses to go on without sae-lens."""
    from importlib.util import find_spec

    if find_spec("sae_lens") is None:
        raise UnavailableError("Dictionaries need sae-lens: pip install 'modelassay[sae]'")


def print_record(record: Any) -> None:
    """A dictionary's record in a few lines."""
    m = record.metrics
    typer.echo(
        f"{record.name}: {record.width} features of block {record.layer} of {record.model.id}"
        f" ({record.kind}, k {record.k}); trained on {record.tokens} activations,"
        f" {record.passes} times each"
    )
    typer.echo(
        f"  held out, n={m.n_tokens} tokens: explains {m.explained_variance:.1%} of the variance"
        f" with {m.l0:.1f} features a token; {m.dead_share:.1%} never fire"
    )
    typer.echo(
        f"  in the block's place it adds {m.loss_added:.3f} nats to a loss of {m.loss:.3f}"
        f" ({m.loss_recovered:.1%} of the damage of its absence undone)"
    )


def remove_state(state: Path) -> None:
    """Drops the state of a training that ended."""
    import shutil

    shutil.rmtree(state, ignore_errors=True)
