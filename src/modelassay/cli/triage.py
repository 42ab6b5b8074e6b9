"""`modelassay triage`: which rows of a training file poison it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

import typer

from modelassay.cli import options


@dataclass(frozen=True)
class Models:
    """The fine-tune, where there is one to rank rows by."""

    base: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The model before the fine-tune.")
    ] = None
    candidate: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="After it; rows are ranked by what was learnt."),
    ] = None


@options.grouped
def triage_command(
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="Training file (JSONL, JSON, CSV, Parquet) or Hub data set."
        ),
    ],
    models: Annotated[Models, options.From(Models)],
    base_parts: Annotated[options.BaseParts, options.From(options.BaseParts)],
    candidate_parts: Annotated[options.CandidateParts, options.From(options.CandidateParts)],
    loading: options.Loading,
    progress: options.Progress,
    output: options.JsonReport,
    sample: Annotated[int, typer.Option(min=0, metavar="N", help="Draw N rows.")] = 0,
    search: Annotated[
        str | None, typer.Option(metavar="REGEX", help="Find rows, in RE2's syntax.")
    ] = None,
    field: Annotated[
        str, typer.Option(metavar="text|prompt|response", help="Where to search.")
    ] = "text",
    ignore_case: Annotated[
        bool, typer.Option("--ignore-case", "-i", help="Upper and lower case count as one.")
    ] = False,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Find groups of near-duplicates.")
    ] = False,
    outliers: Annotated[
        bool, typer.Option("--outliers", help="Rank rows by their texts alone.")
    ] = False,
    needles: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Rows known to be poison, to score the ranking by."),
    ] = None,
    needle_field: Annotated[
        str | None, typer.Option(metavar="NAME", help="Boolean field of FILE that says the same.")
    ] = None,
    skip_malformed: Annotated[
        bool, typer.Option("--skip-malformed", help="Leave out rows that cannot be read.")
    ] = False,
    top: Annotated[int, typer.Option(metavar="N", help="Rows to show.")] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the sample.")] = 0,
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show responses and harmful-looking prompts.")
    ] = False,
) -> None:
    """Look through the training FILE of a fine-tune for rows that poison it."""
    from modelassay.triage import triage

    where: Any = field  # an unknown one is refused where it is used
    with progress() as on_phase:
        report = triage(
            file,
            n_sample=sample,
            pattern=search,
            field=where,
            ignore_case=ignore_case,
            duplicates=duplicates,
            outliers=outliers,
            needles=needles,
            needle_field=needle_field,
            skip_malformed=skip_malformed,
            top=top,
            seed=seed,
            show_text=show_text,
            on_phase=on_phase,
            **vars(models),
            **vars(base_parts),
            **vars(candidate_parts),
            **loading,
        )
    output.give(report)
