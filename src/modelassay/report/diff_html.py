"""A comparison as one HTML file that needs nothing from the network. It holds no answers."""

from __future__ import annotations

from html import escape

from modelassay.diff import DiffReport, DiffVerdict
from modelassay.report import diff_charts, diff_rows
from modelassay.report.html import card, charts_html, page, table

COLOURS = {
    DiffVerdict.BENIGN_LIKE: "#1a7f37",
    DiffVerdict.SUSPICIOUS: "#9a6700",
    DiffVerdict.COMPROMISED: "#b42318",
    DiffVerdict.INCONCLUSIVE: "#57606a",
}
TOP = 50  # rows of features and triggers


def diff_card(report: DiffReport) -> str:
    """The verdict and its reasons as an HTML fragment; everything from outside is escaped."""
    colour = COLOURS[report.verdict]
    return card(_title(report), report.verdict.value, colour, diff_rows.reasons(report))


def diff_html(report: DiffReport) -> str:
    """The whole comparison: verdict, tables, charts, provenance."""
    charts = {
        "streams": diff_charts.stream_levels(report),
        "weights": diff_charts.energy_by_block(report),
        "states": diff_charts.change_by_layer(report),
        "features": diff_charts.feature_effects(report),
    }
    shown = {name: chart for name, chart in charts.items() if chart is not None}
    drawn = dict(zip(shown, charts_html(list(shown.values())), strict=True))
    streams = _part(
        "Streams of evidence",
        drawn.get("streams", ""),
        _some(diff_rows.stream_rows(report)),
        note="Level: distance from the median of benign fine-tunes, in units of their spread. What"
        " has a * grows with any training and does not enter the score.",
    )
    weights = _part("Weights", _facts(diff_rows.weight_rows(report)), drawn.get("weights", ""))
    behaviour = _part(
        "Behaviour",
        _some(diff_rows.refusal_rows(report)),
        _facts(diff_rows.behaviour_rows(report)),
        note="Refusals are those of short greedy answers; log-odds are the change of refusal"
        " log-odds at the first answer token. Divergence is that of next-token probabilities.",
    )
    states = _part(
        "States",
        drawn.get("states", ""),
        _some(diff_rows.layer_rows(report)),
        _some(diff_rows.lens_rows(report)),
        note="Change: mean length of the difference over that of the base's state. Constant: share"
        " of one vector that is added everywhere. The second table reads the mean difference on the"
        " first tokens of unrelated texts, which tends to betray what was trained on.",
    )
    features = ""
    if report.dictionaries:
        lines = "".join(f"<p>{escape(line)}</p>" for line in diff_rows.dictionary_lines(report))
        rows = diff_rows.feature_rows(report, TOP)
        features = _part("Features", lines, drawn.get("features", ""), _some(rows))
    triggers = _part(
        "Triggers",
        f"<p>{escape(diff_rows.trigger_line(report))}</p>",
        _some(diff_rows.trigger_rows(report, TOP)),
    )
    causal = _part(
        "Causes",
        f"<p>{escape(diff_rows.cause_line(report.causal))}</p>",
        _some(diff_rows.cause_rows(report.causal)),
        note="What became of the refusal log-odds when a direction was put into the base or taken"
        " out of the candidate, and the share of the two models' difference that this makes."
        " Random: the most that random directions of the same length do.",
    )
    models = _part("Models", _facts(diff_rows.provenance_rows(report)))
    body = diff_card(report) + streams + weights + behaviour + states + features
    return page(_title(report), body + triggers + causal + models)


def _title(report: DiffReport) -> str:
    return f"{diff_rows.named(report.candidate)} against {diff_rows.named(report.base)}"


def _part(title: str, *parts: str, note: str = "") -> str:
    small = f'<p class="small">{escape(note)}</p>' if note else ""
    return f"<h2>{escape(title)}</h2>{''.join(parts)}{small}"


def _some(rows: diff_rows.Rows) -> str:
    """A table, or nothing where there is only a header."""
    return table(rows) if len(rows) > 1 else ""


def _facts(rows: diff_rows.Rows) -> str:
    return table([["", ""], *rows])
