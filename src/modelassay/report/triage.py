"""A triage in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from modelassay.triage import NeedleReport, RankedRow, Redaction, TrainingRow, TriageReport
from modelassay.triage.summary import Lengths

MAX_SHOWN = 300  # characters of a text


def print_triage(report: TriageReport, console: Console) -> None:
    """Prints what was asked for, one part after the other."""
    _print_facts(report, console)
    if report.sample:
        _print_rows("sample", [(None, row) for row in report.sample], report.redaction, console)
    if (found := report.search) is not None:
        title = f"{found.n_matches} rows match {found.pattern!r} in the {found.field}"
        if found.n_searched < found.n_rows:
            title += f"; out of time after {found.n_searched} of {found.n_rows} rows"
        places = [(f"at {match.start}", match.row) for match in found.matches]
        _print_rows(title, places, report.redaction, console)
    if (groups := report.duplicates) is not None:
        console.print(
            f"\n[bold]{len(groups.groups)} groups of near-duplicates, {groups.n_rows} rows[/]"
        )
        for group in groups.groups[: report.n_groups]:
            example = _shown(group.rows[0], report.redaction)
            numbers = ", ".join(str(row.number) for row in group.rows[:12])
            more = ", …" if len(group.rows) > 12 else ""
            console.print(f"  {len(group.rows)} rows, {group.n_exact} exact: {numbers}{more}")
            console.print(f"    {example}", soft_wrap=True)
    if report.ranking is not None:
        _print_ranking(report, report.ranking, console)


def _print_facts(report: TriageReport, console: Console) -> None:
    s, data = report.summary, report.data
    rows = [
        ["file", f"{data.name}" + (f", sha256 {data.sha256[:16]}…" if data.sha256 else "")],
        ["rows", f"{s.n_rows}, {s.n_duplicates} repeat another ({s.duplicate_share:.1%})"],
        ["prompts", f"{s.n_prompts} different; {s.n_system_prompts} different system prompts in"
                    f" {s.n_with_system} rows"],
        ["answers", f"{s.n_refusals} of {s.n_judged} refuse, {s.n_empty_answers} are empty;"
                    f" {s.n_several_turns} rows with several, {s.n_plain} of plain text"],
        ["characters", f"prompt {_lengths(s.prompt_characters)}; answer"
                       f" {_lengths(s.response_characters)}"],
    ]  # fmt: skip
    if s.tokens is not None:
        rows.append(["tokens", f"{_lengths(s.tokens)} a row, {s.tokens.total} in all"])
    if data.n_malformed:
        rows.append(["left out", f"{data.n_malformed} malformed rows: {data.malformed[0]}"])
    facts = Table(box=None, show_header=False, pad_edge=False)
    facts.add_column(style="dim", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, value in rows:
        facts.add_row(name, escape(value))
    console.print(facts)


def _lengths(found: Lengths) -> str:
    q = found.quantiles
    return f"{q['0.5']:.0f} ({q['0.05']:.0f} to {q['0.95']:.0f}, at most {q['1.0']:.0f})"


def _print_rows(
    title: str,
    rows: Sequence[tuple[str | None, TrainingRow]],
    redaction: Redaction,
    console: Console,
) -> None:
    console.print(f"\n[bold]{escape(title)}[/]")
    for place, row in rows:
        where = f", {place}" if place else ""
        console.print(f"  row {row.number}{where}: {_shown(row, redaction)}", soft_wrap=True)


def _print_ranking(report: TriageReport, ranking: NeedleReport, console: Console) -> None:
    names = [stream.name for stream in ranking.streams]
    console.print("\n[bold]rows to look at first[/] (score and, in brackets, place in each stream)")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    known = ["needle"] if ranking.n_needles is not None else []
    for column in ("place", "row", *names, *known):
        table.add_column(column, justify="right", no_wrap=True)
    for each in ranking.ranked[: report.top]:
        cells = [str(each.place), str(each.row.number), *(_cell(each, name) for name in names)]
        cells += ["yes" if each.needle else "" for _ in known]
        table.add_row(*cells)
    console.print(table)
    for stream in ranking.streams:
        models = " against ".join(model.adapter or model.id for model in reversed(stream.models))
        extra = f" ({models})" if models else ""
        console.print(f"  {stream.name}: {escape(stream.meaning + extra)}", soft_wrap=True)
        for note in stream.notes:
            console.print(f"    {escape(note)}", soft_wrap=True)
    first = [(None, each.row) for each in ranking.ranked[: report.top]]
    _print_rows("these rows", first, report.redaction, console)
    if ranking.quality is not None:
        _print_quality(report, ranking, console)


def _print_quality(report: TriageReport, ranking: NeedleReport, console: Console) -> None:
    missing = f"; {report.needles_missing} are not in the file" if report.needles_missing else ""
    console.print(
        f"\n[bold]{ranking.n_needles} needles in {len(ranking.ranked)} rows[/]"
        f" ({ranking.n_needle_groups} apart from near-duplicates{missing}); found in the first k"
        " rows (95%)",
        soft_wrap=True,
    )
    quality = list(ranking.quality or ())
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("stream", no_wrap=True)
    table.add_column("AUROC (95%)", justify="right")
    for recall in quality[0].recall:
        table.add_column(f"first {recall.k}", justify="right", no_wrap=True)
    for each in quality:
        span = "one group" if each.interval is None else "{:.2f} to {:.2f}".format(*each.interval)
        found = [f"{r.found} ({_percents(r.interval)})" for r in each.recall]
        table.add_row(each.name, f"{each.auroc:.2f} ({span})", *found)
    console.print(table)


def _cell(each: RankedRow, name: str) -> str:
    score, rank = each.scores[name], each.ranks[name]
    return "" if score is None or rank is None else f"{score:.2f} ({rank:.0f})"


def _percents(interval: tuple[float, float]) -> str:
    return "–".join(f"{end:.0%}" for end in interval)


def _shown(row: TrainingRow, redaction: Redaction) -> str:
    """Prompt and answer on one line, escaped for rich."""
    values = redaction.row(row)
    if row.plain:
        return _part(values["text"], MAX_SHOWN)
    return f"{_part(values['prompt'], MAX_SHOWN)} → {_part(values['response'], MAX_SHOWN)}"


def _part(value: Any, most: int) -> str:
    if isinstance(value, dict):
        return f"[dim]<{value['characters']} characters, {value['sha256'][:8]}>[/]"
    # Control characters of a stranger's text must not steer the terminal.
    line = "".join(c if c.isprintable() else " " for c in " ".join(value.split()))
    return escape(line if len(line) <= most else line[: most - 1] + "…")
