"""The chart of a guarded response: its risk token by token, and where the guard acted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from modelassay.guard.events import GuardEvent
from modelassay.guard.policy import Thresholds
from modelassay.report.charts import new_figure

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

OWN, AVERAGE, PROMPT = "#56B4E9", "#0072B2", "#666666"
MONITOR = "#009E73"
PAUSE, BLOCK = "#E69F00", "#D55E00"
MARKS = {
    "escalate": ("classifier asked", "#CC79A7", "diamond"),
    "refuse": ("refused", BLOCK, "x"),
}
"""Name, colour and symbol of what the guard did at a token."""
FEWEST = 24  # tokens that the axis has room for, so that it does not jump at the start


def risk_curve(events: Sequence[GuardEvent], thresholds: Thresholds) -> Figure:
    """Risk of each token and its moving average, the thresholds, and what the guard did.

    What a monitor reads has an axis of its own on the right, on which ordinary ranges end at 1.

    Args:
        events: Those of one response so far.
        thresholds: Of the response's risk.
    """
    figure = new_figure("Risk of the response, token by token", "token", "risk")
    tokens = [event for event in events if event.kind == "token" and event.risk is not None]
    index = [event.index for event in tokens]
    # Curves are there even while they are empty, or the legend would come and go.
    figure.add_scatter(
        x=[0],
        y=[next((event.risk for event in events if event.kind == "prompt"), None)],
        name="prompt",
        mode="markers",
        marker={"color": PROMPT, "symbol": "square", "size": 9},
    )
    for name, risks, color, width in (
        ("token", [event.risk for event in tokens], OWN, 1.2),
        ("moving average", [event.smoothed for event in tokens], AVERAGE, 2.5),
    ):
        line = {"color": color, "width": width}
        figure.add_scatter(x=index, y=risks, name=name, mode="lines", line=line)
    _shade_held(figure, tokens)
    _add_marks(figure, events)
    for level, text, colour, below in (
        (thresholds.pause, "hold back", PAUSE, thresholds.pause > 0.1),
        (thresholds.block, "refuse", BLOCK, False),
    ):
        figure.add_hline(y=level, line={"color": colour, "width": 1.5, "dash": "dash"})
        # A low one's label has no room below; at the other end it stays clear of its neighbour's.
        low = text == "hold back" and not below
        figure.add_annotation(
            x=0.08 if low else 1, xref="paper", xanchor="left" if low else "right", y=level,
            yshift=-9 if below else 9, text=f"{text} {level:.3g}", showarrow=False,
            font={"size": 11, "color": colour},
        )  # fmt: skip
    figure.update_layout(
        xaxis={"range": [-1, max(FEWEST, *index, 0) + 1]},
        yaxis={"range": [-0.03, 1.1]},
        height=380,
        margin={"l": 55, "r": 15, "t": 45, "b": 90},
        showlegend=True,
    )
    _add_monitor(figure, events)
    return figure


def _add_monitor(figure: Figure, events: Sequence[GuardEvent]) -> None:
    """What the monitor reads, where there is one, and its alerts."""
    read = [event for event in events if event.monitor is not None]
    if not read:
        return
    alerts = [event for event in read if event.alert]
    values = [event.monitor or 0.0 for event in read]
    line = {"color": MONITOR, "width": 1.5, "dash": "dot"}
    figure.add_scatter(
        x=[event.index for event in read], y=values, name="monitor", line=line, yaxis="y2"
    )
    figure.add_scatter(
        x=[event.index for event in alerts],
        y=[event.monitor for event in alerts],
        name="alert",
        mode="markers",
        marker={"color": MONITOR, "symbol": "triangle-up", "size": 11},
        hovertext=[event.alert for event in alerts],
        yaxis="y2",
    )
    figure.update_layout(
        margin={"r": 55},
        yaxis2={
            "title": "monitor (ordinary up to 1)",
            "overlaying": "y",
            "side": "right",
            "range": [-0.03, max(1.1, *values)],
            "showgrid": False,
        },
    )


def _shade_held(figure: Figure, tokens: Sequence[GuardEvent]) -> None:
    """A band over each run of tokens at which text was held back."""
    held = [event.index for event in tokens if event.action in ("pause", "escalate")]
    starts = [index for index in held if index - 1 not in held]
    ends = [index for index in held if index + 1 not in held]
    for start, end in zip(starts, ends, strict=True):
        figure.add_vrect(
            x0=start - 0.5, x1=end + 0.5, fillcolor=PAUSE, opacity=0.15, line_width=0, layer="below"
        )
    if held:
        figure.add_scatter(  # shapes have no entry in a legend
            x=[None],
            y=[None],
            name="held back",
            mode="markers",
            marker={"color": PAUSE, "symbol": "square", "size": 12, "opacity": 0.3},
        )


def _add_marks(figure: Figure, events: Sequence[GuardEvent]) -> None:
    for action, (name, colour, symbol) in MARKS.items():
        at = [event for event in events if event.action == action and event.risk is not None]
        if at:
            figure.add_scatter(
                x=[event.index for event in at],
                # The larger of the two is what decides.
                y=[max(event.risk or 0.0, event.smoothed or 0.0) for event in at],
                name=name,
                mode="markers",
                marker={"color": colour, "symbol": symbol, "size": 11},
                hovertext=[event.detail or name for event in at],
            )
