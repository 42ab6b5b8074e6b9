"""`triage()`: one look at a training file, with as many streams as what is given allows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.hub import check_table
from modelassay.models import ModelRef, PairOptions
from modelassay.models.finding import check_named
from modelassay.models.refs import take_pair
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.threads import sharing
from modelassay.triage.duplicates import near_duplicates
from modelassay.triage.looking import (
    Field,
    check_field,
    compile_search,
    sample,
    search,
    summarize,
)
from modelassay.triage.loss import model_tokenizer
from modelassay.triage.needles import (
    NeedleReport,
    check_truth,
    mark_needles,
    rank_needles,
)
from modelassay.triage.redaction import redaction_for
from modelassay.triage.report import SHOWN_GROUPS, SHOWN_IN_GROUP, TriageReport
from modelassay.triage.rows import TrainingRow, read_rows
from modelassay.triage.signals import score_rows

MAX_TOP = 1000


@sharing
def triage(
    where: str | Path,
    *,
    n_sample: int = 0,
    pattern: str | None = None,
    field: Field = "text",
    ignore_case: bool = False,
    duplicates: bool = False,
    outliers: bool = False,
    base: str | ModelRef | None = None,
    candidate: str | ModelRef | None = None,
    needles: str | Path | None = None,
    needle_field: str | None = None,
    skip_malformed: bool = False,
    top: int = 20,
    seed: int = 0,
    show_text: bool = False,
    on_phase: OnPhase = silent,
    **load_options: Unpack[PairOptions],
) -> TriageReport:
    """Looks through a training file for rows that poison it.

    Args:
        where: Training file, or a Hub data set; see `read_rows`.
        n_sample: Rows to draw; 0 draws none.
        pattern: Regular expression (RE2) to search for.
        field: Where to search: `text`, `prompt` or `response`.
        ignore_case: Upper and lower case count as one in the search.
        duplicates: Look for groups of near-duplicates.
        outliers: Rank rows by the streams that read texts alone.
        base: Model from before the fine-tune; with a candidate, rows are ranked by what was learnt.
        candidate: Model from after it.
        needles: File of rows that are known to be poison: the ranking is scored against them.
        needle_field: Boolean field of the file that says the same.
        skip_malformed: Leave out rows that cannot be read, in place of refusing the file.
        top: Rows to show of a ranking or a search.
        seed: Of the sample.
        show_text: Show responses and harmful-looking prompts in the report.
        on_phase: Told (phase, done, total).
        **load_options: Passed to `modelassay.load` for both models (the token fetches data sets as
            well); `base_adapter`, `candidate_revision` and the like for one of them.

    Raises:
        InputError: an option, the file or a model cannot be used.
        UnavailableError: something that is needed is not there now.
    """
    if not 1 <= top <= MAX_TOP:
        raise InputError(f"--top shows 1 to {MAX_TOP} rows, got {top}.")
    before, after, options = take_pair(base, candidate, load_options)
    token = options.get("token")
    scored = outliers or before is not None
    if needles is not None and needle_field is not None:
        raise InputError("Give the needles as a file or as a field, not both.")
    if (needles is not None or needle_field is not None) and not scored:
        raise InputError("Needles score a ranking; give --outliers, or --base and --candidate.")
    if n_sample < 0:
        raise InputError(f"A sample has no fewer than 0 rows, got {n_sample}.")
    check_field(field)
    if pattern is not None:
        compile_search(pattern, field, ignore_case=ignore_case, limit=top)
    check_table(where)
    if needles is not None:
        check_table(needles)
    for model in (before, after):
        if model is not None:
            check_named(model)
    on_phase("rows", 0, 1)
    data = read_rows(where, needle_field=needle_field, skip_malformed=skip_malformed, token=token)
    rows = data.rows
    truth, missing = _truth(rows, needles, needle_field, token)
    if truth is not None:
        check_truth(truth)
    on_phase("rows", 1, 1)
    drawn = sample(rows, n_sample, seed) if n_sample else []
    found = None
    if pattern is not None:
        found = search(rows, pattern, field, ignore_case=ignore_case, limit=top)
    groups = None
    if duplicates:
        groups = near_duplicates(rows, on_progress=phase_of(on_phase, "duplicates"))
    ranking: NeedleReport | None = None
    tokenizer = None
    if scored:
        streams = score_rows(
            rows,
            base=before,
            candidate=after,
            by_text=outliers,
            on_phase=on_phase,
            **options,
        )
        ranking = rank_needles(rows, streams, truth=truth)
        if after is not None:
            tokenizer = model_tokenizer(after, **options)
    shown = [*drawn]
    if found is not None:
        shown += [match.row for match in found.matches]
    if groups is not None:
        for group in groups.groups[:SHOWN_GROUPS]:
            shown += group.rows[:SHOWN_IN_GROUP]
    if ranking is not None:
        shown += [each.row for each in ranking.ranked[:top]]
    return TriageReport(
        data=data,
        summary=summarize(rows, tokenizer),
        sample=tuple(drawn),
        search=found,
        duplicates=groups,
        ranking=ranking,
        needles_missing=missing,
        top=top,
        redaction=redaction_for(shown, show_text=show_text),
        provenance={
            "time": utc_now(),
            "seed": seed,
            "versions": installed_versions("torch", "transformers"),
        },
    )


def _truth(
    rows: Sequence[TrainingRow],
    needles: str | Path | None,
    needle_field: str | None,
    token: str | bool | None,
) -> tuple[np.ndarray | None, int]:
    """Which rows are needles, and how many known needles are not in the file."""
    if needle_field is not None:
        return np.array([bool(row.needle) for row in rows]), 0
    if needles is None:
        return None, 0
    known = read_rows(needles, token=token).rows
    return mark_needles(rows, known), int((~mark_needles(known, rows)).sum())
