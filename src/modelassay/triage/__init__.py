"""Finding the rows of a training file that poison it."""

from modelassay.triage.duplicates import near_duplicates
from modelassay.triage.looking import sample, search, summarize
from modelassay.triage.needles import NeedleReport, mark_needles, rank_needles
from modelassay.triage.redaction import Redaction, redaction_for
from modelassay.triage.report import TriageReport, duplicates_dict, ranking_dict
from modelassay.triage.rows import TrainingData, TrainingRow, read_rows
from modelassay.triage.signals import Signal, score_rows
from modelassay.triage.triaging import triage

__all__ = [
    "NeedleReport",
    "Redaction",
    "Signal",
    "TrainingData",
    "TrainingRow",
    "TriageReport",
    "duplicates_dict",
    "mark_needles",
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
