"""The charts of a comparison."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

import numpy as np

from modelassay.diff.features import Q_LEVEL
from modelassay.diff.verdict import BY_NAME, Level
from modelassay.report.charts import NEGATIVE, NULL, PALETTE, POSITIVE, error_bars, new_figure
from modelassay.report.text import cut, plain_line

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

    from modelassay.diff.report import DiffReport

TOP_FEATURES = 20
MAX_LABEL = 40  # characters


def energy_by_layer(report: DiffReport) -> Figure | None:
    """Share of the weights' change in each layer; None where no weight changed."""
    found = report.weights
    if found is None or not (found.energy_by_layer or found.energy_elsewhere):
        return None
    marked = set(found.mark.layers) if found.mark else set()
    chart = new_figure("Where the weights changed (‖ΔW‖²)", "layer", "share of all change")
    for name, colour, layers in (
        ("changed", PALETTE[0], [b for b in found.energy_by_layer if b not in marked]),
        ("changed as ablation does", PALETTE[1], [b for b in found.energy_by_layer if b in marked]),
    ):
        if layers:
            shares = [found.energy_by_layer[layer] for layer in layers]
            chart.add_bar(x=[str(b) for b in layers], y=shares, name=name, marker_color=colour)
    if found.energy_elsewhere:
        chart.add_bar(
            x=["elsewhere"],
            y=[found.energy_elsewhere],
            name="outside of layers",
            marker_color=NULL,
        )
    # Layers are names here, in their order, because "elsewhere" stands beside them.
    order = [str(layer) for layer in sorted(found.energy_by_layer)]
    chart.update_xaxes(type="category", categoryorder="array", categoryarray=[*order, "elsewhere"])
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    chart.update_layout(showlegend=True)
    return chart


def change_by_layer(report: DiffReport) -> Figure:
    """How much the activations of each layer changed, and how much of it is one constant vector."""
    layers = report.activations.layers
    indices = [layer.layer for layer in layers]
    chart = new_figure("How the activations changed", "layer", "share")
    for name, values, colour, dash in (
        ("relative change", [layer.relative for layer in layers], PALETTE[0], "solid"),
        ("share of one constant vector", [x.constant_share for x in layers], PALETTE[1], "dot"),
    ):
        chart.add_scatter(
            x=indices,
            y=values,
            name=name,
            mode="lines+markers",
            line={"color": colour, "width": 2.5, "dash": dash},
        )
    chart.update_yaxes(tickformat=".0%", rangemode="tozero")
    return chart


def feature_effects(report: DiffReport) -> Figure | None:
    """Effects of the features that changed most, with intervals; None without any."""
    changes = report.top_features(TOP_FEATURES)
    if not changes:
        return None
    names = []
    for change in changes:
        text = cut(plain_line(change.label or " ".join(change.tokens[:3])), MAX_LABEL)
        # The number keeps two features of one label apart; plotly reads some markup.
        names.append(escape(f"#{change.feature} {change.part}: {text}"))
    effects = [change.effect for change in changes]
    chart = new_figure("Features that changed", "effect (mean change / spread between prompts)", "")
    chart.add_bar(
        x=effects,
        y=names,
        orientation="h",
        marker_color=[
            NULL if c.q_value >= Q_LEVEL else POSITIVE if c.effect > 0 else NEGATIVE
            for c in changes
        ],
        error_x=error_bars(effects, [change.effect_interval for change in changes]),
        hovertemplate="%{y}: %{x:.2f}<extra></extra>",
    )
    chart.update_yaxes(autorange="reversed", automargin=True)
    chart.update_layout(height=160 + 24 * len(changes), showlegend=False)
    return chart


def stream_levels(report: DiffReport) -> Figure | None:
    """The candidate's level in each stream beside the benign ones; None without benign ones."""
    known = [level for level in report.suspicion.levels if level.level is not None]
    if not known:
        return None
    chart = new_figure(
        "Distance from the median of benign fine-tunes, in their spreads", "", "level"
    )
    for i, level in enumerate(known):
        chart.add_scatter(
            x=[_title(level)] * len(level.benign),
            y=benign_levels(level),
            mode="markers",
            marker={"color": NULL, "size": 8, "opacity": 0.7},
            name="benign fine-tunes",
            showlegend=i == 0,
        )
    chart.add_scatter(
        x=[_title(level) for level in known],
        y=[level.level for level in known],
        mode="markers",
        marker={
            "color": [POSITIVE if level.counts else "#e8b08a" for level in known],
            "symbol": "diamond",
            "size": 13,
        },
        name="the candidate",
    )
    chart.add_hline(y=0, line={"color": "#bbbbbb", "width": 1})
    return chart


def benign_levels(level: Level) -> list[float]:
    """Benign fine-tunes of a stream in the units that the candidate's level has."""
    spread = float(np.std(level.benign, ddof=1)) if len(level.benign) > 1 else 0.0
    unit = max(spread, BY_NAME[level.name].floor)
    middle = float(np.median(level.benign))
    return [(value - middle) / unit for value in level.benign]


def _title(level: Level) -> str:
    return level.name if level.counts else f"{level.name}*"
