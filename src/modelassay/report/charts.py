"""The charts of a scan, for the HTML report and the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelassay.measures.separation import Separation
from modelassay.probes import LayerScore
from modelassay.scan.report import ScanReport
from modelassay.scan.verdict import SELECTIVITY_PASS, SEPARATION_PASS, SEPARATION_WARNING
from modelassay.verify.report import VerificationReport

# Colour-blind safe (Okabe & Ito 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
POSITIVE, NEGATIVE, NULL = "#D55E00", "#0072B2", "#999999"


def new_figure(title: str, x_title: str, y_title: str) -> Any:
    """An empty figure in the style of all charts."""
    import plotly.graph_objects as go

    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 15}},
        xaxis_title=x_title,
        yaxis_title=y_title,
        template="plotly_white",
        height=360,
        margin={"l": 60, "r": 20, "t": 50, "b": 90},
        legend={"orientation": "h", "y": -0.28, "yanchor": "top"},
        font={"family": "system-ui, sans-serif"},
    )
    return figure


def separation_by_layer(report: ScanReport) -> Any:
    """Held-out separation at each block with its interval, and what 1 in 20 label swaps reach."""
    figure = new_figure("Held-out separation by block", "block", "separation (σ)")
    for i, (name, result) in enumerate(report.concepts.items()):
        colour = PALETTE[i % len(PALETTE)]
        curve, null = result.separation.by_layer, result.separation.null_by_layer
        intervals = result.separation.interval_by_layer
        figure.add_scatter(
            x=list(curve),
            y=list(curve.values()),
            name=name,
            line={"color": colour, "width": 2.5},
            error_y={
                "symmetric": False,
                "array": [intervals[layer][1] - value for layer, value in curve.items()],
                "arrayminus": [value - intervals[layer][0] for layer, value in curve.items()],
                "thickness": 1,
                "width": 0,
            },
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
        figure.add_hline(y=level, line={"color": "#bbbbbb", "width": 1, "dash": "dash"})
        figure.add_annotation(
            x=1, xref="paper", y=level, text=f"{text} {level}σ", showarrow=False, yshift=8,
            font={"size": 10, "color": "#777777"}, xanchor="right",
        )  # fmt: skip
    return figure


def similarity_by_layer(report: VerificationReport) -> Any | None:
    """Cosine of each concept's direction with the baseline's, and likeness of the signatures."""
    found = report.differences
    if found is None or not found.same_tokens:
        return None
    figure = new_figure("Likeness to the baseline by block", "block", "1 = the same")
    for i, (name, values) in enumerate(found.cosines.items()):
        figure.add_scatter(
            x=list(values),
            y=list(values.values()),
            name=f"{name}: cosine",
            line={"color": PALETTE[i % len(PALETTE)], "width": 2.5},
        )
    figure.add_scatter(
        x=list(found.distances),
        y=[1 - distance for distance in found.distances.values()],
        name="signature: 1 - distance",
        mode="lines+markers",
        line={"color": PALETTE[-1], "dash": "dot"},
    )
    figure.update_yaxes(range=[min(-0.05, *(1 - d for d in found.distances.values())), 1.05])
    return figure


def weight_change_by_block(report: VerificationReport) -> Any | None:
    """How much each block's weights differ from the baseline's, those with an ablation's mark."""
    found = report.differences
    if found is None or found.weights is None:
        return None
    weights = found.weights
    marked = set(weights.mark.blocks) if weights.mark else set()
    figure = new_figure("Change of the weights by block", "block", "relative change")
    for name, colour, shown in (
        ("changed", PALETTE[0], weights.by_block.keys() - marked),
        ("changed as ablation does", PALETTE[1], marked),
    ):
        if shown:
            blocks = sorted(shown)
            values = [weights.by_block[block] for block in blocks]
            figure.add_bar(x=blocks, y=values, name=name, marker={"color": colour})
    figure.update_yaxes(tickformat=".1%", rangemode="tozero")
    figure.update_layout(showlegend=True)
    return figure


def auroc_by_layer(scores: Sequence[LayerScore]) -> Any:
    """Held-out AUROC of a probe of each block, with its interval."""
    figure = new_figure("Probe of each block, held-out prompts", "block", "AUROC")
    values = [each.metrics.auroc for each in scores]
    figure.add_scatter(
        x=[each.layer for each in scores],
        y=values,
        name="AUROC",
        line={"color": PALETTE[0], "width": 2.5},
        error_y={
            "symmetric": False,
            "array": [e.metrics.interval[1] - v for e, v in zip(scores, values, strict=True)],
            "arrayminus": [v - e.metrics.interval[0] for e, v in zip(scores, values, strict=True)],
            "thickness": 1,
            "width": 0,
        },
    )
    figure.add_hline(y=0.5, line={"color": NULL, "width": 1, "dash": "dash"})
    return figure


def projections(name: str, separation: Separation) -> Any:
    """Held-out projections of both classes of one concept."""
    figure = new_figure(
        f"{name}: held-out projections (block {separation.layer})", "projection (σ)", "prompts"
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


def null_distribution(name: str, separation: Separation) -> Any:
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


def refusal_rates(report: ScanReport) -> Any | None:
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
    figure.add_hline(y=SELECTIVITY_PASS, line={"color": "#bbbbbb", "width": 1, "dash": "dash"})
    figure.update_yaxes(range=[min(-0.1, refusal.interval[0] - 0.05), 1.05])
    return figure


def all_charts(report: ScanReport) -> list[Any]:
    """Every chart of a report, in reading order."""
    charts = [separation_by_layer(report)]
    rates = refusal_rates(report)
    charts += [rates] if rates is not None else []
    for name, result in report.concepts.items():
        charts += [projections(name, result.separation), null_distribution(name, result.separation)]
    return charts
