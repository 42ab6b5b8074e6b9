"""Finding the rows of a training file that poison it."""

from modelassay.triage.duplicates import DuplicateGroup, NearDuplicates, near_duplicates
from modelassay.triage.looking import Match, SearchResult, Summary, sample, search, summarize
from modelassay.triage.needles import (
    NeedleReport,
    RankedRow,
    RankingQuality,
    mark_needles,
    marked_by_field,
    rank_needles,
)
from modelassay.triage.redaction import Redaction, redaction_for
from modelassay.triage.report import (
    TriageReport,
    duplicates_dict,
    ranking_dict,
)
from modelassay.triage.rows import TrainingData, TrainingRow, read_rows
from modelassay.triage.signals import Signal, score_rows
from modelassay.triage.triaging import triage

__all__ = [
    "DuplicateGroup",
    "Match",
    "NearDuplicates",
    "NeedleReport",
    "RankedRow",
    "RankingQuality",
    "Redaction",
    "SearchResult",
    "Signal",
    "Summary",
    "TrainingData",
    "TrainingRow",
    "TriageReport",
    "duplicates_dict",
    "mark_needles",
    "marked_by_field",
    "near_duplicates",
    "rank_needles",
    "ranking_dict",
    "read_rows",
    "redaction_for",
    "sample",
    "score_rows",
    "search",
    "summarize",
    "triage",
]
