"""A chart as plain data that can be kept, and be read back when a stranger wrote it.

A figure of plotly can fetch pictures and maps, and links in its texts are links. What is kept here
are curves, bars and maps of numbers with their axes: attributes of known names, numbers, and texts
in which no markup is left but line breaks, bold and the like.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelassay.errors import InputError
from modelassay.report.sections import Draw

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

KINDS = ("scatter", "bar", "histogram", "heatmap")
"""Of curves that a chart may have."""
_NAMES = """
align anchor annotations array arrayminus arrowhead automargin autorange ax ay b bargap
bargroupgap barmode bgcolor categoryarray categoryorder color colorbar colorscale
connectgaps customdata dash data domain dtick error_x error_y family fill fillcolor font
height hoverinfo hovermode hovertemplate l layer layout legend legendgroup len line
linecolor margin marker matches mode name nbinsx nbinsy opacity orientation outlinewidth
overlaying pattern r range rangemode shape shapes showarrow showgrid showlegend showline
showscale showticklabels side size standoff symbol symmetric t text textangle textfont
textposition texttemplate thickness tick0 tickangle tickfont tickformat tickmode tickprefix
ticksuffix ticktext tickvals title traceorder type value valueminus visible weight width x
x0 x1 xanchor xaxis xgap xref xshift y y0 y1 yanchor yaxis ygap yref yshift z zeroline zmax
zmid zmin zorder
"""
NAMES = frozenset(_NAMES.split())
"""Attributes that are kept, wherever they stand; axes have numbers behind their name."""
COLOURS = ("bgcolor", "color", "fillcolor", "linecolor", "family")
MAX_VALUES = 50_000
"""Numbers and texts of one chart."""
MAX_TEXT = 2_000
MAX_DEPTH = 8
MAX_HEIGHT = 2_000  # pixels
_MARKUP = re.compile(r"<(?!/?(?:br|b|i|sub|sup|extra)>)")
_COLOUR = re.compile(r"(?!.*url)[\w\s#(),.%'\"-]{1,80}", re.IGNORECASE)


def chart_data(figure: Figure) -> dict[str, Any]:
    """A figure as JSON values, without the template that all charts share."""
    return check_chart(figure.to_plotly_json())


@dataclass(frozen=True)
class KeptChart:
    """A chart whose values are at hand: a section's `chart`, drawn when it is called."""

    values: dict[str, Any]
    """As `check_chart` gives them."""

    def __call__(self) -> Figure:
        """The figure, in the style of all charts.

        Raises:
            InputError: the values make no figure.
        """
        import plotly.graph_objects as go

        try:
            figure = go.Figure(self.values)
        except (ValueError, TypeError) as error:
            raise InputError(
                "A chart of the report cannot be drawn; its values do not fit."
            ) from error
        return figure.update_layout(template="plotly_white")


def keep_chart(draw: Draw | None) -> KeptChart | None:
    """A section's chart with its values at hand; None where there is nothing to draw."""
    if draw is None or isinstance(draw, KeptChart):
        return draw
    figure = draw()
    return None if figure is None else KeptChart(chart_data(figure))


def check_chart(values: Any) -> dict[str, Any]:
    """What of a figure's values is kept: unknown attributes are left out.

    Raises:
        InputError: it is no figure, one of another kind, or far too large.
    """
    if not isinstance(values, dict) or not isinstance(values.get("data"), list | tuple):
        raise InputError("A chart of the report is damaged: it has no list of curves.")
    kinds = [
        curve.get("type", "scatter") if isinstance(curve, dict) else curve
        for curve in values["data"]
    ]
    if odd := [kind for kind in kinds if kind not in KINDS]:
        raise InputError(
            f"A chart of the report is of a kind that is not shown ({str(odd[0])[:40]!r})."
        )
    kept = _Checking().of({"data": list(values["data"]), "layout": values.get("layout") or {}})
    height = kept["layout"].get("height")
    if isinstance(height, int | float):
        kept["layout"]["height"] = min(max(int(height), 100), MAX_HEIGHT)
    return kept


class _Checking:
    """Goes through values and counts them."""

    def __init__(self) -> None:
        self.n = 0

    def of(self, value: Any, name: str = "", depth: int = 0) -> Any:
        self.n += 1
        if self.n > MAX_VALUES or depth > MAX_DEPTH:
            raise InputError(f"A chart of the report has more than {MAX_VALUES} values.")
        if hasattr(value, "tolist"):  # numpy's
            value = value.tolist()
        if isinstance(value, dict):
            return {
                key: self.of(each, key, depth + 1)
                for key, each in value.items()
                if isinstance(key, str) and key.rstrip("0123456789") in _known(key)
            }
        if isinstance(value, list | tuple):
            return [self.of(each, name, depth + 1) for each in value]
        if isinstance(value, bool) or value is None:
            return value
        if isinstance(value, int | float):
            return _number(value)
        text = _MARKUP.sub("&lt;", str(value)[:MAX_TEXT])
        return text if name not in COLOURS or _COLOUR.fullmatch(text) else None


def _known(key: str) -> frozenset[str]:
    """Names that a key may have; only axes are counted."""
    return NAMES if key in NAMES or key[:5] in ("xaxis", "yaxis") else frozenset()


def _number(value: float) -> float | None:
    if isinstance(value, int):
        return value if abs(value) < 2**53 else None
    return float(f"{value:.5g}") if math.isfinite(value) else None
