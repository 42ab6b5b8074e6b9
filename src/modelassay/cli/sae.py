"""`modelassay sae`: train, list, label and publish SAEs of a model's features."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import add_old_info, add_verbs
from modelassay.cli.output import give, print_json
from modelassay.errors import InputError
from modelassay.progress import phase_of

if TYPE_CHECKING:
    from modelassay.models import LoadedModel
    from modelassay.sae import Corpus

app = typer.Typer(
    help="SAEs: sparse autoencoders that take a model's activations apart into features.",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class SettingsOptions:
    """As `sae.Settings`; what is None is made to suit the model."""

    layer: Annotated[
        int | None,
        typer.Option(help="Layer to take apart, -1 for the last; at 2/3 of the depth if not."),
    ] = None
    width: Annotated[int | None, typer.Option(help="Features; eight a dimension if not.")] = None
    k: Annotated[int, typer.Option(help="Features active on a token.")] = 48
    kind: Annotated[str, typer.Option(help="batchtopk, topk, jumprelu or matryoshka.")] = (
        "batchtopk"
    )
    tokens: Annotated[int, typer.Option(help="Activations to read.")] = 1_000_000
    passes: Annotated[int, typer.Option(help="Times that each is used.")] = 1
    batch: Annotated[int, typer.Option(help="Activations a step.")] = 2048
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", "--lr", help="Peak learning rate.")
    ] = 4e-4
    window_tokens: Annotated[
        int, typer.Option("--window", help="Activations in memory together.")
    ] = 100_000
    context: Annotated[int, typer.Option(help="Tokens of a text read together.")] = 128
    seed: Annotated[int, typer.Option(help="Seed of every draw.")] = 0

    def check(self) -> None:
        """Refuses, before a model is loaded, what suits none."""
        from modelassay.sae import Settings

        chosen: dict[str, Any] = {"layer": 0, "width": self.k + 1}
        chosen |= {name: value for name, value in vars(self).items() if value is not None}
        Settings(**chosen).check()

    def __post_init__(self) -> None:
        """Refuses an unknown kind before a model is loaded."""
        if self.kind not in ("batchtopk", "topk", "jumprelu", "matryoshka"):
            raise InputError(
                f"--kind is batchtopk, topk, jumprelu or matryoshka, not {self.kind!r}."
            )


@dataclass(frozen=True)
class TextOptions:
    """Text for a model to read; false where none was given."""

    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE",
            help="Text or exchanges: JSONL, CSV, Parquet, .txt or a Hub data set; may be repeated.",
        ),
    ] = None
    field: Annotated[str | None, typer.Option(help="Field of a row that holds the text.")] = None
    token: options.Token = None

    def __bool__(self) -> bool:
        return bool(self.data)

    def check(self) -> None:
        """Refuses text that cannot be read, before a model is loaded."""
        from modelassay.sae.corpus import check_sources

        check_sources(self.data or (), field=self.field, token=self.token)

    def read_by(self, model: LoadedModel) -> Corpus:
        """The texts as this model reads them."""
        from modelassay.sae import Corpus

        return Corpus(model, self.data or (), field=self.field, token=self.token)

    @property
    def names(self) -> list[str]:
        """What a record calls the data: no paths of this machine."""
        return [Path(each).name if Path(each).exists() else each for each in self.data or ()]


Texts = Annotated[TextOptions, options.From(TextOptions)]
Where = Annotated[
    str,
    typer.Argument(
        metavar="SAE",
        help="A folder, the name of a shipped one, RELEASE:SAE_ID of sae-lens, or owner/repo:name.",
    ),
]
Online = Annotated[
    bool, typer.Option("--neuronpedia", help="Ask Neuronpedia, if it knows the SAE.")
]
Export = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Neuronpedia's export (.jsonl, .jsonl.gz), or a folder."),
]


@app.command("train")
@options.grouped
def train_command(
    model: options.Model,
    settings: Annotated[SettingsOptions, options.From(SettingsOptions)],
    texts: Texts,
    loading: options.Loading,
    progress: options.Progress,
    storage: Annotated[
        str, typer.Option(metavar="bfloat16|float32", help="Precision of the file.")
    ] = "bfloat16",
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="New folder for the SAE.")] = Path(
        "sae"
    ),
    name: Annotated[str | None, typer.Option(help="Keep it under this name; no --out.")] = None,
    force: options.Force = False,
) -> None:
    """Train an SAE of MODEL; a run that was stopped goes on when it is given again."""
    if not texts:
        raise InputError("Give text to read with --data FILE or a Hub data set.")
    if storage not in ("bfloat16", "float32"):
        raise InputError(f"--storage is bfloat16 or float32, not {storage!r}.")

    from modelassay.models import open_model
    from modelassay.sae import SAES, Settings, save_sae, train_sae
    from modelassay.sae.finding import check_installed

    check_installed()
    if name is not None:
        out = SAES.check_free(name, force=force)
    SAES.kind.check_name(out.name)
    SAES.check_free(out=out, force=force)
    settings.check()
    texts.check()
    with progress() as on_phase:
        loaded = open_model(model, on_progress=on_phase, **loading)
        n_layers, hidden = len(loaded.layers), loaded.info.hidden_size
        usual: dict[str, Any] = {"layer": 2 * n_layers // 3, "width": 8 * hidden}
        given = {name: value for name, value in vars(settings).items() if value is not None}
        chosen = Settings(**(usual | given)).of(loaded)
        corpus = texts.read_by(loaded)
        held_out = corpus.held_out()
        state = out.with_name(out.name + ".training")
        learning = phase_of(on_phase, "learning")
        trained = train_sae(loaded, corpus.train, chosen, state=state, on_progress=learning)
        sae = save_sae(
            trained,
            loaded,
            chosen,
            held_out,
            out,
            name=out.name,
            data=texts.names,
            dtype=storage,  # type: ignore[arg-type]
            on_progress=phase_of(on_phase, "scoring"),
        )
    shutil.rmtree(state, ignore_errors=True)
    assert sae.record is not None  # noqa: S101 (it was just written)
    typer.echo("\n".join([*SAES.kind.describe(sae.record), str(out)]))


@app.command("list")
def list_command(
    contains: Annotated[str, typer.Argument(metavar="[TEXT]", help="Part of RELEASE:SAE_ID.")] = "",
    model: Annotated[
        str | None, typer.Option(metavar="ID", help="Only those of this model.")
    ] = None,
    all_of_them: Annotated[
        bool, typer.Option("--all", help="Those that cannot be used as well, with the reason.")
    ] = False,
    json: options.Json = False,
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
        print_json(rows)
        return
    for each in own:
        what = SAES.kind.summary(each.record)
        typer.echo(f"{each.name}  {each.model_id}  {what}  ({each.origin.source})")
    for release in found:
        layer = "?" if release.layer is None else release.layer
        explained = "  explained on Neuronpedia" if release.neuronpedia_id else ""
        refused = f"  cannot be used: {release.refused}" if release.refused else ""
        kind = "  transcoder" if release.transcoder else ""
        typer.echo(
            f"{release.where}  {release.model}  layer {layer}  {release.width or '?'}"
            f"{kind}{explained}{refused}"
        )
    if not own and not found:
        raise InputError(
            "sae-lens knows no such SAE that can be used; --all shows the others, and"
            " `modelassay sae train` makes one."
        )


@app.command("show")
def show_command(
    where: Where,
    feature: Annotated[int | None, typer.Option(help="Show this feature.")] = None,
    neuronpedia: Online = False,
    export: Export = None,
    revision: options.Revision = None,
    token: options.Token = None,
    json: options.Json = False,
) -> None:
    """Print what an SAE is and how good, or what one of its features is about."""
    from modelassay.sae import find_sae, open_labels
    from modelassay.sae.lookup import feature_section, sae_section

    sae = find_sae(where, token=token, revision=revision, transcoders=True)
    asked = [] if feature is None else [feature]
    labels = open_labels(sae, asked, neuronpedia=neuronpedia, export=export)
    if feature is not None:
        values = labels.of(feature).to_dict()
        near = labels.neighbours(feature)
        values["neighbours"] = [{**asdict(each), "label": text} for each, text in near]
        values["note"] = labels.note
        give(values, json, feature_section(labels, feature))
        return
    own = labels.own.record if labels.own is not None else None
    values = _plain_values(sae)
    values["labels"] = None if own is None else own.model_dump(mode="json", by_alias=True)
    values["explained"] = len(labels.explanations)
    give(values, json, sae_section(sae, labels))


@app.command("label")
@options.grouped
def label_command(
    where: Where,
    loading: options.AnyModel,
    progress: options.Progress,
    texts: Texts,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whose activations to read; the SAE's if not."),
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read.")] = 500_000,
    context: Annotated[int, typer.Option(help="Tokens of a text read together.")] = 128,
    no_contexts: Annotated[
        bool, typer.Option("--no-contexts", help="Keep single tokens, no text of the data.")
    ] = False,
    neuronpedia: Online = False,
    export: Export = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to; beside the SAE, or the cache."),
    ] = None,
    json: options.Json = False,
) -> None:
    """Label an SAE's features by what they fire on, and say how far to believe it.

    With --neuronpedia or --export, explanations are taken into the cache; --data is then not
    needed.
    """
    from modelassay.artifacts import is_folder
    from modelassay.models import open_model
    from modelassay.sae import find_sae, label_features
    from modelassay.sae.labels import kept_folder, save_labels
    from modelassay.sae.lookup import labels_line

    if not texts and not neuronpedia and export is None:
        raise InputError("Give text to read with --data FILE, or --neuronpedia, or --export FILE.")
    if tokens < 1 or context < 2:
        raise InputError("--tokens must be at least 1, and --context at least 2.")
    if out is not None and out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; give a folder for --out.")
    sae = find_sae(where, token=texts.token)
    texts.check()
    explained = _import_explanations(sae, neuronpedia, export)
    result: dict[str, Any] = {"explained": explained}
    if texts:
        name = model or (sae.record.model.id if sae.record else None)
        if name is None:
            raise InputError("Give the model whose features these are with --model.")
        with progress() as on_phase:
            loaded = open_model(name, on_progress=on_phase, **loading)
            sae.check_belongs_to(loaded)
            sae.module.to(loaded.device)
            corpus = texts.read_by(loaded)
            labels = label_features(
                loaded,
                sae,
                corpus.train(),
                corpus.held_out(),
                data=texts.names,
                tokens=tokens,
                context=context,
                contexts=not no_contexts,
                on_progress=phase_of(on_phase, "labelling"),
            )
        local = sae.folder if is_folder(where) else None
        folder = out or local or kept_folder(sae)
        record = save_labels(labels, folder).record
        result |= record.model_dump(mode="json", by_alias=True) | {"folder": str(folder)}
        if not json:
            typer.echo(f"{labels_line(record)}\n{folder}")
    if json:
        print_json(result)
    elif explained is not None:
        typer.echo(f"Neuronpedia explains {explained} features")


def _import_explanations(sae: Any, online: bool, export: Path | None) -> int | None:
    """How many features are explained now; None where that was not asked for."""
    from modelassay.sae.neuronpedia import cached_explanations, fetch_explanations, import_export

    if not online and export is None:
        return None
    known = sae.neuronpedia_id
    if known is None:
        raise InputError(f"Neuronpedia does not know {sae.name}; label it with --data.")
    if export is not None:
        import_export(export, known, sae.width)
    if online:
        fetch_explanations(known, range(sae.width))
    return len(cached_explanations(known))


def _plain_values(sae: Any) -> dict[str, Any]:
    if sae.record is not None:
        values = sae.record.model_dump(mode="json", by_alias=True)
        return values | {"origin": sae.origin.to_dict()}
    names = ("name", "layer", "hidden_size", "width", "neuronpedia_id")
    return {name: getattr(sae, name) for name in names}


add_old_info(app, "modelassay sae", show_command)
add_verbs(app, "modelassay.sae:SAES", "SAE", own=("list", "show"))
