"""What a triage found, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from modelassay.triage.duplicates import NearDuplicates
from modelassay.triage.looking import SearchResult
from modelassay.triage.needles import NeedleReport
from modelassay.triage.redaction import Redaction
from modelassay.triage.rows import TrainingData, TrainingRow
from modelassay.triage.summary import Summary

SCHEMA = "modelassay.triage/1"
SHOWN_IN_GROUP = 3
"""Rows of a group of near-duplicates that a report shows."""
LISTED_IN_GROUP = 100
"""Row numbers of it that a report lists."""


@dataclass(frozen=True)
class TriageReport:
    """One look at a training file. Parts that were not asked for are None or empty."""

    data: TrainingData
    """All rows; a report shows few of them."""
    summary: Summary
    sample: tuple[TrainingRow, ...] = ()
    search: SearchResult | None = None
    duplicates: NearDuplicates | None = None
    ranking: NeedleReport | None = None
    needles_missing: int = 0
    """Known needles that are not in the file."""
    top: int = 20
    """Rows of the ranking that are shown."""
    n_groups: int = 10
    """Groups of near-duplicates that are shown."""
    redaction: Redaction = field(default_factory=Redaction)
    """Which texts are shown."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """JSON values, schema `modelassay.triage/1`."""
        return {
            "schema": SCHEMA,
            "file": {
                "name": self.data.name,
                "sha256": self.data.sha256,
                "malformed": {"rows": self.data.n_malformed, "first": list(self.data.malformed)},
            },
            "text_shown": self.redaction.show_text,
            "summary": self.summary.to_dict(),
            "sample": [self.redaction.row(row) for row in self.sample],
            "search": None if self.search is None else search_dict(self.search, self.redaction),
            "duplicates": None
            if self.duplicates is None
            else duplicates_dict(self.duplicates, self.redaction, n_groups=self.n_groups),
            "needles": None
            if self.ranking is None
            else {
                **ranking_dict(self.ranking, self.redaction, top=self.top),
                "missing": self.needles_missing,
            },
            "provenance": self.provenance,
        }


def search_dict(found: SearchResult, redaction: Redaction) -> dict[str, Any]:
    """A search as JSON values."""
    return {
        "pattern": found.pattern,
        "field": found.field,
        "n_matches": found.n_matches,
        "n_searched": found.n_searched,
        "n_rows": found.n_rows,
        "matches": [
            {**redaction.row(match.row), "start": match.start, "end": match.end}
            for match in found.matches
        ],
    }


def duplicates_dict(
    found: NearDuplicates, redaction: Redaction, *, n_groups: int = 10
) -> dict[str, Any]:
    """Groups of near-duplicates as JSON values, the largest ones."""
    return {
        "n_groups": len(found.groups),
        "n_rows": found.n_rows,
        "groups": [
            {
                "n_rows": len(group.rows),
                "n_exact": group.n_exact,
                "numbers": [row.number for row in group.rows[:LISTED_IN_GROUP]],
                "rows": [redaction.row(row) for row in group.rows[:SHOWN_IN_GROUP]],
            }
            for group in found.groups[:n_groups]
        ],
    }


def ranking_dict(found: NeedleReport, redaction: Redaction, *, top: int = 20) -> dict[str, Any]:
    """The first rows of a ranking as JSON values."""
    return {
        "n_rows": len(found.ranked),
        "streams": [
            {
                "name": stream.name,
                "meaning": stream.meaning,
                "models": [model.to_dict() for model in stream.models],
                "notes": list(stream.notes),
            }
            for stream in found.streams
        ],
        "rows": [
            {
                "place": each.place,
                **redaction.row(each.row),
                "suspicion": each.suspicion,
                "scores": each.scores,
                "ranks": each.ranks,
                "parts": each.parts,
                "needle": each.needle,
            }
            for each in found.ranked[:top]
        ],
        "n_needles": found.n_needles,
        "n_needle_groups": found.n_needle_groups,
        "quality": None if found.quality is None else [asdict(each) for each in found.quality],
    }
