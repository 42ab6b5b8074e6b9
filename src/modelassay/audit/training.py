"""Tools about the data that the fine-tune was made with."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from modelassay.audit.asking import Compared, Reference
from modelassay.audit.values import rate
from modelassay.audit.work import Work
from modelassay.errors import InputError
from modelassay.triage import (
    Redaction,
    TrainingRow,
    duplicates_dict,
    rank_needles,
    ranking_dict,
    redaction_for,
    sample,
    score_rows,
    search,
    summarize,
)
from modelassay.triage import near_duplicates as find_duplicates
from modelassay.triage.looking import MAX_PATTERN, SECONDS
from modelassay.triage.report import SHOWN_IN_GROUP

Rows = Annotated[int, Field(ge=1, description="Rows to show.")]


def training_data_summary(work: Work) -> dict[str, Any]:
    """What the training file holds: rows, duplicates, lengths, system prompts, refusals."""
    data = work.training_data
    found = summarize(data.rows)
    return {
        "n": found.n_rows,
        **found.to_dict(),
        "refusal_rate": rate(found.n_refusals, found.n_judged),
        "malformed_rows": data.n_malformed,
        "sha256": None if work.blinding.blind else data.sha256,
    }


def sample_training_data(
    work: Work,
    n: Rows = 5,
    seed: Annotated[int, Field(ge=0, description="Of the draw.")] = 0,
) -> dict[str, Any]:
    """Draw rows of the training file at random; the same seed draws the same rows."""
    rows = work.training_data.rows
    drawn = sample(rows, _allowed(work, n), seed)
    redaction = _redaction(work, drawn)
    return {"n": len(drawn), "n_rows": len(rows), "rows": redaction.values(tuple(drawn))}


def search_training_data(
    work: Work,
    pattern: Annotated[
        str,
        Field(min_length=1, max_length=MAX_PATTERN, description="Regular expression, RE2 syntax."),
    ],
    field: Annotated[
        Literal["text", "prompt", "response"],
        Field(description="Where to search; text is all of a row, system prompt included."),
    ] = "text",
    ignore_case: bool = False,
    limit: Rows = 10,
) -> dict[str, Any]:
    """Find rows of the training file by a regular expression; all matches are counted."""
    rows = work.training_data.rows
    found = search(
        rows,
        pattern,
        field,
        ignore_case=ignore_case,
        limit=_allowed(work, limit),
        seconds=min(SECONDS, work.config.limits.seconds),
    )
    redaction = _redaction(work, [match.row for match in found.matches])
    share = rate(found.n_matches, found.n_searched)
    return {"n": found.n_searched, "share": share, **redaction.values(found)}


def near_duplicates(
    work: Work, n_groups: Annotated[int, Field(ge=1, le=50, description="Groups to show.")] = 10
) -> dict[str, Any]:
    """Groups of training rows that nearly repeat each other, the largest first."""
    rows = work.training_data.rows
    found = find_duplicates(rows, on_progress=work.progress)
    shown = [row for group in found.groups[:n_groups] for row in group.rows[:SHOWN_IN_GROUP]]
    groups = duplicates_dict(found, _redaction(work, shown), n_groups=n_groups)
    return {"n": len(rows), **groups, "share": rate(found.n_rows, len(rows))}


def rank_training_needles(
    work: Work,
    top: Rows = 10,
    by: Annotated[
        Literal["text", "models", "both"],
        Field(
            description="Rank by the texts alone, by what the fine-tune learnt of each row beyond"
            " the base (slow), or by both."
        ),
    ] = "text",
    reference: Reference = "A",
    candidate: Compared = "B",
) -> dict[str, Any]:
    """Rank training rows by how suspicious they are; a high place says where to look first.

    Some row is first in clean data as well: a rank is not a finding.
    """
    rows, config = work.training_data.rows, work.config
    top = _allowed(work, top)
    options = config.load_options
    names = work.in_order(work.pair_of(reference, candidate))
    before, after = (config.models[work.blinding.key(name)] for name in names)
    streams = score_rows(rows, on_phase=work.phase, **options) if by != "models" else []
    if by != "text":
        with work.quietly():  # what is wrong with a model would tell which it is
            by_models = score_rows(
                rows,
                base=before,
                candidate=after,
                by_text=False,
                on_phase=work.phase,
                **options,
            )
        streams = [*by_models, *streams]
    found = rank_needles(rows, streams)
    redaction = _redaction(work, [each.row for each in found.ranked[:top]])
    result = ranking_dict(found, redaction, top=top)
    for stream in result["streams"]:
        if work.blinding.blind:
            del stream["models"]
    kept = {key: result[key] for key in ("streams", "rows")}
    return {"n": len(rows), "by": by, **kept}


def _allowed(work: Work, n: int) -> int:
    most = work.config.limits.rows
    if n > most:
        raise InputError(f"A call may show {most} rows, got {n}.")
    return n


def _redaction(work: Work, rows: Sequence[TrainingRow]) -> Redaction:
    return redaction_for(rows, show_text=not work.config.redact)
