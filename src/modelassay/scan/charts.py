"""The charts of a scan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from modelassay.report.charts import LINE, NEGATIVE, NULL, PALETTE, POSITIVE, error_bars, new_figure
from modelassay.scan.verdict import SELECTIVITY_PASS, SEPARATION_PASS, SEPARATION_WARNING

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from modelassay.measures.separation import Separation
    from modelassay.scan.report import ScanReport


def separation_by_layer(report: ScanReport) -> Figure:
    """Held-out separation at each layer with its interval, and what 1 in 20 label swaps reach."""
    figure = new_figure("Held-out separation by layer", "layer", "separation (σ)")
    for i, (name, result) in enumerate(report.concepts.items()):
        colour = PALETTE[i % len(PALETTE)]
        curve, null = result.separation.by_layer, result.separation.null_by_layer
        intervals = result.separation.interval_by_layer
        figure.add_scatter(
            x=list(curve),
            y=list(curve.values()),
            name=name,
            line={"color": colour, "width": 2.5},
            error_y=error_bars(list(curve.values()), [intervals[layer] for layer in curve]),
        )
        figure.add_scatter(
            x=list(null),
            y=list(null.values()),
            name=f"{name}: 95% of label swaps",
            line={"color": colour, "dash": "dot", "width": 1},
            showlegend=False,
            hovertemplate="95% of swaps below %{y:.2f}σ",
        )
    for level, text in ((SEPARATION_WARNING, "AMS warning"), (SEPARATION_PASS, "AMS pass")):
        figure.add_hline(y=level, line=LINE)
        figure.add_annotation(
            x=1, xref="paper", y=level, text=f"{text} {level}σ", showarrow=False, yshift=8,
            font={"size": 10, "color": "#777777"}, xanchor="right",
        )  # fmt: skip
    return figure


def projections(name: str, separation: Separation) -> Figure:
    """Held-out projections of both classes of one concept."""
    figure = new_figure(
        f"{name}: held-out projections (layer {separation.layer})", "projection (σ)", "prompts"
    )
    for label, scores, colour in (
        ("positive", separation.positive_scores, POSITIVE),
        ("negative", separation.negative_scores, NEGATIVE),
    ):
        figure.add_histogram(
            x=list(scores), name=label, marker_color=colour, opacity=0.6, nbinsx=30
        )
    figure.update_layout(barmode="overlay")
    return figure


def null_distribution(name: str, separation: Separation) -> Figure:
    """Separation under label swaps, and the observed one."""
    figure = new_figure(
        f"{name}: against label swaps (p = {separation.p_value:.2g})",
        "separation (σ)",
        "swaps",
    )
    figure.add_histogram(x=list(separation.null), name="label swaps", marker_color=NULL, nbinsx=40)
    figure.add_vline(x=separation.separation, line={"color": POSITIVE, "width": 3})
    figure.add_annotation(
        x=separation.separation, y=1, yref="paper", text="observed", showarrow=False, yshift=8
    )
    return figure


def refusal_rates(report: ScanReport) -> Figure | None:
    """Refusal rates on harmful and harmless prompts and their difference, with intervals."""
    refusal = report.refusal
    if refusal is None:
        return None
    figure = new_figure("Refusal of short answers", "", "share refused")
    bars = (
        ("harmful", refusal.harmful_rate, refusal.harmful_interval, POSITIVE),
        ("benign and borderline", refusal.benign_rate, refusal.benign_interval, NEGATIVE),
        ("selectivity", refusal.selectivity, refusal.interval, "#009E73"),
    )
    for name, value, (low, high), colour in bars:
        error = {"type": "data", "array": [high - value], "arrayminus": [value - low]}
        figure.add_bar(x=[name], y=[value], error_y=error, marker_color=colour, showlegend=False)
    figure.add_hline(y=SELECTIVITY_PASS, line=LINE)
    figure.update_yaxes(range=[min(-0.1, refusal.interval[0] - 0.05), 1.05])
    return figure
