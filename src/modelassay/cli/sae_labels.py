"""`modelassay sae show` and `sae label`: what an SAE is, and what its features are about."""

from __future__ import annotations

import json as json_module
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.artifacts import show_sections
from modelassay.errors import InputError
from modelassay.progress import phase_of

Where = Annotated[
    str,
    typer.Argument(
        metavar="SAE",
        help="A folder, the name of a shipped one, RELEASE:SAE_ID of sae-lens, or owner/repo:name.",
    ),
]
Online = Annotated[
    bool, typer.Option("--neuronpedia", help="Ask Neuronpedia, if it knows the dictionary.")
]
Export = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Neuronpedia's export (.jsonl, .jsonl.gz), or a folder."),
]


def show_command(
    where: Where,
    feature: Annotated[int | None, typer.Option(help="Show this feature.")] = None,
    neuronpedia: Online = False,
    export: Export = None,
    revision: options.Revision = None,
    token: options.Token = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Print what an SAE is and how good, or what one of its features is about."""
    from modelassay.sae import find_sae, open_labels
    from modelassay.sae.report import dictionary_section, feature_section

    sae = find_sae(where, token=token, revision=revision)
    asked = [] if feature is None else [feature]
    labels = open_labels(sae, asked, neuronpedia=neuronpedia, export=export)
    if feature is not None and not json:
        show_sections(feature_section(labels, feature))
        return
    if feature is not None:
        near = labels.neighbours(feature)
        rows = [{**asdict(neighbour), "label": text} for neighbour, text in near]
        found = {**labels.of(feature).to_dict(), "neighbours": rows, "note": labels.note}
        typer.echo(json_module.dumps(found, indent=2, ensure_ascii=False))
        return
    own = labels.own.record if labels.own is not None else None
    if json:
        values = _plain_values(sae)
        values["labels"] = None if own is None else own.model_dump(mode="json", by_alias=True)
        values["explained"] = len(labels.explanations)
        typer.echo(json_module.dumps(values, indent=2, ensure_ascii=False))
        return
    show_sections(dictionary_section(sae, labels))


@options.grouped
def label_command(
    where: Where,
    loading: options.AnyModel,
    progress: options.Progress,
    model: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Whose activations to read; the SAE's if not."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Text to read, as for `sae train`; may be repeated."),
    ] = None,
    field: Annotated[str | None, typer.Option(help="Field of a row that holds the text.")] = None,
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
    json: Annotated[bool, typer.Option("--json", help="Print JSON only.")] = False,
) -> None:
    """Label an SAE's features by what they fire on, and say how far to believe it.

    With --neuronpedia or --export, explanations are taken into the cache; --data is then not
    needed.
    """
    from modelassay.models import open_model
    from modelassay.sae import Corpus, find_sae, label_features
    from modelassay.sae.labels import kept_folder, save_labels
    from modelassay.sae.report import labels_line

    if not data and not neuronpedia and export is None:
        raise InputError("Give text to read with --data FILE, or --neuronpedia, or --export FILE.")
    token: Any = loading.get("token")
    sae = find_sae(where, token=token)
    explained = _import_explanations(sae, neuronpedia, export)
    result: dict[str, Any] = {"explained": explained}
    if data:
        name = model or (sae.record.model.id if sae.record else None)
        if name is None:
            raise InputError("Give the model whose features these are with --model.")
        with progress() as on_phase:
            loaded = open_model(name, on_progress=on_phase, **loading)
            sae.check_belongs_to(loaded)
            sae.module.to(loaded.device)
            corpus = Corpus(loaded, data, field=field, token=token)
            labels = label_features(
                loaded,
                sae,
                corpus.train(),
                corpus.held_out(),
                data=[Path(each).name if Path(each).exists() else each for each in data],
                tokens=tokens,
                context=context,
                contexts=not no_contexts,
                on_progress=phase_of(on_phase, "labelling"),
            )
        local = sae.folder if _is_folder(where) else None
        folder = out or local or kept_folder(sae)
        record = save_labels(labels, folder).record
        result |= record.model_dump(mode="json", by_alias=True) | {"folder": str(folder)}
        if not json:
            typer.echo(f"{labels_line(record)}\n{folder}")
    if json:
        typer.echo(json_module.dumps(result, indent=2, ensure_ascii=False))
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
        import_export(export, known)
    if online:
        fetch_explanations(known, range(sae.width))
    return len(cached_explanations(known))


def _plain_values(sae: Any) -> dict[str, Any]:
    if sae.record is not None:
        values = sae.record.model_dump(mode="json", by_alias=True)
        return values | {"origin": sae.origin.to_dict()}
    names = ("name", "layer", "hidden_size", "width", "neuronpedia_id")
    return {name: getattr(sae, name) for name in names}


def _is_folder(where: str) -> bool:
    try:
        return Path(where).expanduser().is_dir()
    except (OSError, RuntimeError):
        return False
