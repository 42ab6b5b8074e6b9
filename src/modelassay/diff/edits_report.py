"""The report's section on directional edits: what was taken out where, and what was declared."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING

from modelassay.diff.weights import WeightDiff
from modelassay.measures.directional_edits import (
    WORDS,
    ComponentEdit,
    DirectionalEdits,
    layers_in_words,
)
from modelassay.report.charts import PALETTE, error_bars, new_figure
from modelassay.report.sections import Section, table_of
from modelassay.report.text import p_text, with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure


def edit_section(weights: WeightDiff) -> Section:
    """What is said of directions that were taken out of weights."""
    found = weights.edits
    lines = [*found.sentences(), *weights.observations, *weights.declared]
    if weights.unsearched:
        lines.insert(0, f"Not searched in what layers write: {weights.unsearched}.")
    elif not found.components and not found.turned:
        lines.insert(0, _nothing(found))
    if found.components and found.p_value is not None:
        lines.append(f"None of {found.n_null} benign changes is as like an edit as this.")
    if found.components and found.layers_left_out:
        lines.append(f"Left alone: {layers_in_words(found.layers_left_out)}.")
    table = table_of(
        found.components,
        [
            ("taken out of", lambda part: WORDS[part.component]),
            ("layers", _layers),
            ("strongest (95%)", _strongest),
            ("kernel", _kernel),
        ],
        record=asdict,
    )
    note = (
        "Strength: 1 takes all of a direction out, 2 turns it round. A kernel fades from its peak"
        " to both sides and ends at its distance."
    )
    return Section(
        "edits",
        "directions taken out of the weights",
        lines=tuple(lines),
        table=table,
        chart=partial(strength_by_layer, found),
        note=note if found.components else "",
    )


def _nothing(found: DirectionalEdits) -> str:
    if found.score is None:
        return "No directional edit: nothing changed that could show one."
    known = ""
    if found.p_value is not None:
        known = f"; p={p_text(found.p_value)} among {found.n_null} benign changes"
    return (
        f"No directional edit: what changed is like one with a cosine of {found.score:.2f}, where"
        f" edits have 0.95 and more{known}."
    )


def _layers(part: ComponentEdit) -> str:
    layers = [s.layer for s in part.strengths if s.layer is not None]
    return layers_in_words(layers) if layers else ""


def _strongest(part: ComponentEdit) -> str:
    peak = part.peak
    at = "" if peak.layer is None else f" in layer {peak.layer}"
    return with_interval(peak.strength, (peak.low, peak.high), ".2f") + at


def _kernel(part: ComponentEdit) -> str:
    if part.kernel is None:
        return ""
    kernel = part.kernel.kernel
    return (
        f"{kernel.strength:.2f} at {kernel.peak:.1f}, {kernel.least:.2f} at a distance of"
        f" {kernel.distance:.1f}; explains {part.kernel.explained:.0%}"
    )


def strength_by_layer(found: DirectionalEdits) -> Figure | None:
    """Strengths with intervals and the kernels through them; None where nothing was taken out."""
    parts = [p for p in found.components if any(s.layer is not None for s in p.strengths)]
    if not parts:
        return None
    chart = new_figure("How much of a direction was taken out", "layer", "strength")
    for part, colour in zip(parts, PALETTE, strict=False):
        inside = [s for s in part.strengths if s.layer is not None]
        values = [s.strength for s in inside]
        chart.add_scatter(
            x=[s.layer for s in inside],
            y=values,
            mode="markers",
            name=WORDS[part.component],
            marker={"color": colour, "size": 8},
            error_y=error_bars(values, [(s.low, s.high) for s in inside]),
        )
        if part.kernel is not None:
            layers = sorted(s.layer for s in inside if s.layer is not None)
            every = list(range(layers[0], layers[-1] + 1))
            chart.add_scatter(
                x=every,
                y=[part.kernel.kernel.at(layer) for layer in every],
                mode="lines",
                name=f"kernel, {WORDS[part.component]}",
                line={"color": colour, "width": 1.5, "dash": "dot"},
            )
    chart.update_yaxes(rangemode="tozero")
    return chart
