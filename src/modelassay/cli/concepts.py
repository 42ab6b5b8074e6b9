"""`modelassay concepts`: look at, export and check the contrasts a scan uses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from modelassay.cli import options
from modelassay.cli.output import check_file, give, print_json
from modelassay.data.concepts import (
    MODES,
    Concept,
    ConceptFormat,
    dump_concepts,
    load_concepts,
    shipped_concepts,
)
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.report.sections import Section, Table, columns

app = typer.Typer(help="List, show, export and validate concepts; alone, it lists them.")

SAMPLES = 3

Samples = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print three pairs of each concept.")
]


@app.callback(invoke_without_command=True)
def _alone(
    context: typer.Context,
    concepts: options.ConceptsFile = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print all concepts as ams-scanner's JSON.")
    ] = False,
    verbose: Samples = False,
) -> None:
    if context.invoked_subcommand is not None:
        if concepts or json or verbose:
            raise InputError(f"Give options after `{context.invoked_subcommand}`.")
    elif json:
        typer.echo(dump_concepts(_all(concepts).values(), "ams"), nl=False)
    else:
        list_command(concepts=concepts, verbose=verbose)


@app.command("list")
def list_command(
    concepts: options.ConceptsFile = None,
    json: options.Json = False,
    verbose: Samples = False,
) -> None:
    """List the concepts, their size and the modes that use them."""
    found = _all(concepts)
    rows = [
        {
            "name": concept.name,
            "pairs": len(concept.pairs),
            "version": concept.version,
            "modes": [mode for mode, names in MODES.items() if concept.name in names],
            "control": concept.control,
            "min_separation": concept.min_separation,
            "description": concept.description,
        }
        for concept in found.values()
    ]
    cells = [
        (row["name"], str(row["pairs"]), ", ".join(row["modes"]) or "-", row["description"])
        for row in rows
    ]
    names = ("concept", "pairs", "modes", "description")
    sections = [Section(table=Table(columns(*names, right=(1,)), cells))]
    for name, concept in found.items() if verbose else ():
        facts = [
            line
            for pair in concept.pairs[:SAMPLES]
            for line in ((concept.positive, pair.positive), (concept.negative, pair.negative))
        ]
        sections.append(Section(title=name, facts=facts))
    give(rows, json, *sections)


@app.command("show")
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME")],
    concepts: options.ConceptsFile = None,
    json: options.Json = False,
) -> None:
    """Print one concept with all its pairs."""
    typer.echo(dump_concepts([_one(name, concepts)], "json" if json else "yaml"), nl=False)


@app.command("export")
def export_command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="[NAME]...", help="All when none is named.")
    ] = None,
    concepts: options.ConceptsFile = None,
    format: Annotated[
        str | None, typer.Option(help="yaml, json or ams (ams-scanner's JSON).")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The same as --format json.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="Instead of stdout.")
    ] = None,
) -> None:
    """Write concepts to a file to edit and pass to `scan --concepts`."""
    if json and format not in (None, "json"):
        raise InputError(f"Give --json or --format {format}, not both.")
    format = format or ("json" if json else "yaml")
    if format not in get_args(ConceptFormat):
        raise InputError(f"Unknown format {format!r}; choose {', '.join(get_args(ConceptFormat))}.")
    chosen = [_one(name, concepts) for name in names] if names else list(_all(concepts).values())
    text = dump_concepts(chosen, format)  # type: ignore[arg-type]
    if output is None:
        typer.echo(text, nl=False)
    else:
        check_file(output, "--output")
        write_text_atomically(output, text)


@app.command("validate")
def validate_command(
    file: Annotated[Path, typer.Argument(metavar="FILE")],
    json: options.Json = False,
) -> None:
    """Check a concept file, and how much of its contrast a bag of words can read off.

    A contrast that shows in the words alone separates in any network, trained or not.
    """
    from modelassay.measures.bag_of_words import measure_bag_of_words
    from modelassay.measures.separation import too_few_pairs

    rows: list[dict[str, Any]] = []
    for name, concept in load_concepts(file).items():
        reason = too_few_pairs(len(concept.pairs))
        words = {"unscored": reason} if reason else measure_bag_of_words(concept).to_dict()
        rows.append({"name": name, "pairs": len(concept.pairs), **words})
    if json:
        print_json(rows)
        return
    for row in rows:
        if "unscored" in row:
            typer.echo(f"{row['name']}: valid, unscored: {row['unscored']}")
            continue
        typer.echo(
            f"{row['name']}: valid, {row['pairs']} pairs; from words alone: separation"
            f" {row['separation']:.2f}σ, AUROC {row['auroc']:.2f}, p {row['p_value']:.3f}"
        )
        if row["p_value"] < 0.05:
            typer.echo(
                "  The classes differ in their words: part of any separation will be vocabulary."
            )
        if row["uneven_lengths"]:
            typer.echo(f"  {row['uneven_lengths']} pairs differ by more than 2 words in length.")


def _all(overlay: Path | None) -> dict[str, Concept]:
    return shipped_concepts() | (load_concepts(overlay) if overlay else {})


def _one(name: str, overlay: Path | None) -> Concept:
    found = _all(overlay)
    if name not in found:
        raise InputError(f"No concept {name!r}; there are {', '.join(found)}.")
    return found[name]
