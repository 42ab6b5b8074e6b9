"""What a triage found, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from modelassay.report.base import Report
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import counted, cut
from modelassay.triage.duplicates import NearDuplicates
from modelassay.triage.looking import Lengths, SearchResult, Summary
from modelassay.triage.needles import NeedleReport, RankedRow
from modelassay.triage.redaction import Redaction
from modelassay.triage.rows import TrainingData, TrainingRow

SCHEMA = "modelassay.triage/1"
SHOWN_GROUPS = 10
"""Groups of near-duplicates that a report shows."""
SHOWN_IN_GROUP = 3
"""Rows of a group of near-duplicates that a report shows."""
LISTED_IN_GROUP = 100
"""Row numbers of it that the JSON lists."""
PRINTED_IN_GROUP = 12
"""Row numbers of it that a reader sees."""
MAX_SHOWN = 300  # characters of a text


@dataclass(frozen=True)
class TriageReport(Report):
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
            "sample": self.redaction.values(self.sample),
            "search": self.redaction.values(self.search),
            "duplicates": None
            if self.duplicates is None
            else duplicates_dict(self.duplicates, self.redaction),
            "needles": None
            if self.ranking is None
            else {
                **ranking_dict(self.ranking, self.redaction, top=self.top),
                "missing": self.needles_missing,
            },
            "provenance": self.provenance,
        }

    def sections(self) -> list[Section]:
        """What was asked for, one part after the other."""
        found = [Section("file", facts=self._facts())]
        if self.sample:
            found.append(self._rows("sample", "sample", ((None, row) for row in self.sample)))
        if (search := self.search) is not None:
            match = "matches" if search.n_matches == 1 else "match"
            title = (
                f"{counted(search.n_matches, 'row')} {match} {search.pattern!r} in the"
                f" {search.field}"
            )
            if search.n_searched < search.n_rows:
                title += f"; out of time after {search.n_searched} of {search.n_rows} rows"
            places = ((f"at {match.start}", match.row) for match in search.matches)
            found.append(self._rows("search", title, places))
        if (groups := self.duplicates) is not None:
            items = []
            for group in groups.groups[:SHOWN_GROUPS]:
                numbers = ", ".join(str(row.number) for row in group.rows[:PRINTED_IN_GROUP])
                more = ", …" if len(group.rows) > PRINTED_IN_GROUP else ""
                items += [
                    f"  {len(group.rows)} rows, {group.n_exact} exact: {numbers}{more}",
                    f"    {_shown(group.rows[0], self.redaction)}",
                ]
            n_groups = counted(len(groups.groups), "group")
            title = f"{n_groups} of near-duplicates, {counted(groups.n_rows, 'row')}"
            found.append(Section("duplicates", title, items=tuple(items)))
        if self.ranking is not None:
            found += self._ranking(self.ranking)
        return found

    def _facts(self) -> list[tuple[str, str]]:
        s, data = self.summary, self.data
        digest = f", sha256 {data.sha256[:16]}…" if data.sha256 else ""
        facts = [
            ("file", data.name + digest),
            ("rows", f"{s.n_rows}, {counted(s.n_duplicates, 'repeat')} of another"
                     f" ({s.duplicate_share:.1%})"),
            ("prompts", f"{s.n_prompts} different; {counted(s.n_system_prompts, 'system prompt')}"
                        f" in {counted(s.n_with_system, 'row')}"),
            ("responses", f"{s.n_refusals} of {s.n_judged} refuse, {s.n_empty_responses} empty;"
                          f" {counted(s.n_several_turns, 'row')} with several, {s.n_plain} of plain"
                          " text"),
            ("characters", f"prompt {_lengths(s.prompt_characters)}; response"
                           f" {_lengths(s.response_characters)}"),
        ]  # fmt: skip
        if s.tokens is not None:
            facts.append(("tokens", f"{_lengths(s.tokens)} a row, {s.tokens.total} in all"))
        if data.n_malformed:
            left = counted(data.n_malformed, "malformed row")
            facts.append(("left out", f"{left}: {data.malformed[0]}"))
        return facts

    def _rows(
        self, name: str, title: str, rows: Iterable[tuple[str | None, TrainingRow]]
    ) -> Section:
        items = []
        for place, row in rows:
            where = f", {place}" if place else ""
            items.append(f"  row {row.number}{where}: {_shown(row, self.redaction)}")
        return Section(name, title, items=tuple(items))

    def _ranking(self, ranking: NeedleReport) -> list[Section]:
        streams = [stream.name for stream in ranking.streams]
        known = ["needle"] if ranking.n_needles is not None else []
        shown = ranking.ranked[: self.top]
        names = ("place", "row", *streams, *known)
        table = Table(
            columns(*names, right=range(len(names))),
            [
                (
                    str(each.place),
                    str(each.row.number),
                    *(_score(each, name) for name in streams),
                    *("yes" if each.needle else "" for _ in known),
                )
                for each in shown
            ],
            records=lambda: [
                {"place": e.place, "row": e.row.number, "suspicion": e.suspicion}
                | {"needle": e.needle}
                | e.scores
                for e in ranking.ranked
            ],
        )
        items = []
        for stream in ranking.streams:
            models = " against ".join(
                model.adapter or model.id for model in reversed(stream.models)
            )
            items.append(f"  {stream.name}: {stream.meaning}" + (f" ({models})" if models else ""))
            items += [f"    {note}" for note in stream.notes]
        found = [
            Section(
                "ranking",
                "rows to look at first",
                table=table,
                note="Score and, in brackets, place in each stream.",
            ),
            Section("streams", "streams", items=tuple(items)),
            self._rows("rows", "these rows", ((None, each.row) for each in shown)),
        ]
        return [*found, self._quality(ranking)] if ranking.quality is not None else found

    def _quality(self, ranking: NeedleReport) -> Section:
        quality = list(ranking.quality or ())
        missing = f"; {self.needles_missing} not in the file" if self.needles_missing else ""
        ks = [f"first {recall.k}" for recall in quality[0].recall]
        rows = []
        for each in quality:
            ends = each.interval
            span = "one group" if ends is None else f"{ends[0]:.2f} to {ends[1]:.2f}"
            found = [f"{r.found} ({r.interval[0]:.0%}–{r.interval[1]:.0%})" for r in each.recall]
            rows.append((each.name, f"{each.auroc:.2f} ({span})", *found))
        return Section(
            "quality",
            f"{counted(ranking.n_needles or 0, 'needle')} in {counted(len(ranking.ranked), 'row')}"
            f" ({ranking.n_needle_groups} apart from near-duplicates{missing}); found in the first"
            " k rows (95%)",
            table=Table(
                columns("stream", "AUROC (95%)", *ks, right=range(1, 2 + len(ks))),
                rows,
                records=lambda: [
                    {
                        "stream": each.name,
                        "auroc": each.auroc,
                        **{f"found_in_{r.k}": r.found for r in each.recall},
                    }
                    for each in quality
                ],
            ),
        )


def _lengths(found: Lengths) -> str:
    q = found.quantiles
    return f"{q['0.5']:.0f} ({q['0.05']:.0f} to {q['0.95']:.0f}, at most {q['1.0']:.0f})"


def _score(each: RankedRow, name: str) -> str:
    score, rank = each.scores[name], each.ranks[name]
    return "" if score is None or rank is None else f"{score:.2f} ({rank:.0f})"


def _shown(row: TrainingRow, redaction: Redaction) -> str:
    """Prompt and response on one line."""
    values = redaction.row(row)
    if row.plain:
        return _part(values["text"])
    rejected = f" (not: {_part(values['rejected'])})" if row.rejected else ""
    return f"{_part(values['prompt'])} → {_part(values['response'])}{rejected}"


def _part(value: Any) -> str:
    if isinstance(value, dict):
        return f"<{value['characters']} characters, {value['sha256'][:8]}>"
    return cut(" ".join(value.split()), MAX_SHOWN)


def duplicates_dict(
    found: NearDuplicates, redaction: Redaction, *, n_groups: int = SHOWN_GROUPS
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
                "rows": redaction.values(group.rows[:SHOWN_IN_GROUP]),
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
        "rows": redaction.values(found.ranked[:top]),
        "n_needles": found.n_needles,
        "n_needle_groups": found.n_needle_groups,
        "quality": redaction.values(found.quality),
    }
