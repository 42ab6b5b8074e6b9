"""`modelassay sae`: train, list and publish SAEs of a model's features."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options, sae_labels
from modelassay.cli.artifacts import add_verbs, renamed
from modelassay.errors import InputError
from modelassay.progress import phase_of

app = typer.Typer(
    help="SAEs: sparse autoencoders that take a model's activations apart into features.",
    no_args_is_help=True,
)


def _settings(
    layer: Annotated[int | None, typer.Option(help="Layer to take apart; near 2/3 if not.")] = None,
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
) -> dict[str, Any]:
    if kind not in ("batchtopk", "topk", "jumprelu", "matryoshka"):
        raise InputError(f"--kind is batchtopk, topk, jumprelu or matryoshka, not {kind!r}.")
    return {
        "layer": layer,
        "width": width,
        "k": k,
        "kind": kind,
        "tokens": tokens,
        "passes": passes,
        "batch": batch,
        "learning_rate": learning_rate,
        "window_tokens": window,
        "context": context,
        "seed": seed,
    }


@app.command("train")
@options.grouped
def train_command(
    model: options.Model,
    settings: Annotated[dict[str, Any], options.From(_settings)],
    loading: options.Loading,
    progress: options.Progress,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Text or exchanges: JSONL, CSV, Parquet, .txt or a Hub data set; may be repeated.",
        ),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of a row that holds the text.")] = None,
    storage: Annotated[
        str, typer.Option(metavar="bfloat16|float32", help="Precision of the file.")
    ] = "bfloat16",
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="New folder for the dictionary.")
    ] = Path("dictionary"),
    name: Annotated[str | None, typer.Option(help="Keep it under this name; no --out.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a folder that exists.")] = False,
) -> None:
    """Train an SAE of MODEL; a run that was stopped goes on when it is given again."""
    if not data:
        raise InputError("Give text to read with --data FILE or a Hub data set.")
    if storage not in ("bfloat16", "float32"):
        raise InputError(f"--storage is bfloat16 or float32, not {storage!r}.")

    from modelassay.models import open_model
    from modelassay.sae import SAES, Corpus, Settings, save_sae, train_sae
    from modelassay.sae.finding import check_installed

    token: Any = loading.get("token")
    check_installed()
    if name is not None:
        out = SAES.check_free(name, force=force)
    SAES.kind.check_name(out.name)
    SAES.check_free(out=out, force=force)
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        n_layers, hidden = len(loaded.layers), loaded.info.hidden_size
        usual: dict[str, Any] = {"layer": 2 * n_layers // 3, "width": 8 * hidden}
        given = {name: value for name, value in settings.items() if value is not None}
        chosen = Settings(**(usual | given))
        chosen.check(loaded)
        corpus = Corpus(loaded, data, field=field, token=token)
        held_out = corpus.held_out()
        state = out.with_name(out.name + ".training")
        trained = train_sae(
            loaded,
            corpus.train,
            chosen,
            state=state,
            on_progress=phase_of(on_phase, "learning"),
        )
        sae = save_sae(
            trained,
            loaded,
            chosen,
            held_out,
            out,
            name=out.name,
            data=[Path(source).name if Path(source).exists() else source for source in data],
            dtype=storage,  # type: ignore[arg-type]
            on_progress=phase_of(on_phase, "scoring"),
        )
    remove_state(state)
    assert sae.record is not None  # noqa: S101 (it was just written)
    typer.echo("\n".join([*SAES.kind.describe(sae.record), str(out)]))


@app.command("list")
def list_command(
    contains: Annotated[str, typer.Argument(metavar="[TEXT]", help="Part of RELEASE:SAE_ID.")] = "",
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Only those of this model.")
    ] = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="Those that cannot be used as well, with the reason.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """List SAEs: those that come with modelassay, and those that sae-lens knows."""
    from modelassay.sae import SAES, list_releases
    from modelassay.sae.finding import check_installed

    check_installed()
    own = [
        each
        for each in SAES.list()
        if contains.lower() in each.name.lower() and model in (None, each.model_id)
    ]
    found = [r for r in list_releases(contains, model=model) if all_of_them or r.refused is None]
    if json:
        rows = [each.row() for each in own]
        rows += [{"name": r.where, **asdict(r)} for r in found]
        typer.echo(json_module.dumps(rows, indent=1))
        return
    for each in own:
        what = SAES.kind.summary(each.record)
        typer.echo(f"{each.name}  {each.model_id}  {what}  ({each.origin.source})")
    for release in found:
        layer = "?" if release.layer is None else release.layer
        explained = "  explained on Neuronpedia" if release.neuronpedia_id else ""
        refused = f"  cannot be used: {release.refused}" if release.refused else ""
        typer.echo(
            f"{release.where}  {release.model}  layer {layer}  {release.width or '?'}"
            f"{explained}{refused}"
        )
    if not own and not found:
        raise InputError(
            "sae-lens knows no such SAE that can be used; --all shows the others, and"
            " `modelassay sae train` makes one."
        )


def remove_state(state: Path) -> None:
    """Drops the state of a training that ended."""
    import shutil

    shutil.rmtree(state, ignore_errors=True)


app.command("show")(sae_labels.show_command)
app.command("info", hidden=True)(renamed("info", "show", sae_labels.show_command))
app.command("label")(sae_labels.label_command)
add_verbs(app, "modelassay.sae:SAES", "SAE", own=("list", "show"))
