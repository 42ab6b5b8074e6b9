"""The style that all charts have, and what several of them draw."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

# Colour-blind safe (Okabe & Ito 2008).
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
POSITIVE, NEGATIVE, NULL = "#D55E00", "#0072B2", "#999999"
LINE = {"color": "#bbbbbb", "width": 1, "dash": "dash"}
"""Of a level to compare with."""


def new_figure(title: str, x_title: str, y_title: str) -> Figure:
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
        font={"family": "IBM Plex Sans, system-ui, sans-serif"},
    )
    return figure


def error_bars(values: Sequence[float], intervals: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """Intervals around values, as plotly's `error_x` or `error_y`."""
    pairs = list(zip(values, intervals, strict=True))
    return {
        "symmetric": False,
        "array": [high - value for value, (_, high) in pairs],
        "arrayminus": [value - low for value, (low, _) in pairs],
        "thickness": 1,
        "width": 0,
    }


def counted_bars(figure: Figure, values: Sequence[float], bins: int, **style: Any) -> None:
    """Bars of how many values lie where, counted here, so that a chart is small for thousands.

    Args:
        figure: Where they are drawn.
        values: Any number of them.
        bins: How many bars, of equal width.
        style: Of the bars.
    """
    import numpy as np

    counts, edges = np.histogram(np.asarray(values, dtype=float), bins)
    figure.add_bar(
        x=((edges[:-1] + edges[1:]) / 2).tolist(),
        y=counts.tolist(),
        width=float(edges[1] - edges[0]),
        hovertemplate="%{y} near %{x:.2f}",
        **style,
    )


def bars_of_change(figure: Figure, changes: Mapping[Any, float], marked: Collection[Any]) -> None:
    """Bars of how much the weights of each layer changed.

    Args:
        figure: Where they are drawn.
        changes: By layer.
        marked: Layers whose change has the mark of directional ablation.
    """
    for name, colour, layers in (
        ("changed", PALETTE[0], [layer for layer in changes if layer not in marked]),
        ("changed as ablation does", PALETTE[1], [layer for layer in changes if layer in marked]),
    ):
        if layers:
            values = [changes[layer] for layer in layers]
            figure.add_bar(x=layers, y=values, name=name, marker_color=colour)
    figure.update_yaxes(rangemode="tozero")
    figure.update_layout(showlegend=True)
