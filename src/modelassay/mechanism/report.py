"""What was found out about why a model refuses: JSON values, sections and charts."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from modelassay.mechanism.removal import Removal, Selectivity
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import NEGATIVE, NULL, POSITIVE, new_figure
from modelassay.report.sections import Column, Section, Status, table_of
from modelassay.report.text import p_text, with_interval
from modelassay.statistics import Interval, MeanChange

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

CIRCUIT_SCHEMA = "modelassay.circuit/1"
LISTED = 20


@dataclass(frozen=True)
class ComponentEffect:
    """What one component does for refusals."""

    component: str
    layer: int
    part: str
    index: int | None
    attribution: float | None
    """Estimated fall of the refusal log-odds, in nats, when it is given what its twin makes; None
    where the weights give no gradients."""
    effect: MeanChange | None
    """The same by patching; None where it was not patched."""
    kl: float | None
    """How far patching moves the next-token distribution, in nats."""
    direct: float | None
    """What it writes to the last token for refusal itself, in nats; None where parts do not add up
    to the stream."""
    unrelated: float | None
    """Mean size of the estimated effect between unrelated harmless prompts, in nats; None where
    that was not asked: without gradients, of what is not beyond chance or too small anyway."""
    p_value: float
    q_value: float
    relevant: bool

    @property
    def mean(self) -> float:
        """The effect, or its estimate where it was not patched."""
        if self.effect is not None:
            return self.effect.mean
        return 0.0 if self.attribution is None else self.attribution


@dataclass(frozen=True)
class CurvePoint:
    """A circuit of the strongest components, and random ones of its size."""

    size: int
    faithfulness: float
    """Share of the difference between the twins that is there when only these are left: 0 with
    none, 1 with all."""
    left: float
    """Share of it that is left without them."""
    random_faithfulness: tuple[float, ...]
    random_left: tuple[float, ...]


@dataclass(frozen=True)
class CircuitReport(Report):
    """The components that carry a model's refusals."""

    model: ModelIdentity
    difference: MeanChange
    """Refusal log-odds of harmful prompts minus those of their twins, in nats."""
    refused: float
    """Mean probability with which a response to a harmful prompt begins as a refusal."""
    effects: tuple[ComponentEffect, ...]
    """Of all components, the strongest first."""
    circuit: tuple[str, ...]
    """Those beyond chance, the strongest first."""
    curve: tuple[CurvePoint, ...]
    removal: Removal | None
    """What the answers are without the circuit and the refusal direction; None where left out."""
    rank_correlation: float | None
    """Spearman's, of attribution with patching."""
    attribution_error: float | None
    """How far the attributions of the embeddings miss the whole that they ought to sum up to, as a
    share of it."""
    direct_rest: float | None
    """What the embeddings of the last token add to the direct contributions, in nats; None where
    parts do not add up to the stream."""
    no_gradients: str | None
    """Why all components were patched and none estimated; None where gradients were there."""
    n_pairs: int
    n_left_out: int
    """Pairs that were given and not read: they do not align, or are more than were asked for."""
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.circuit/1`."""
        values = {
            **vars(self),
            "model": self.model.to_dict(),
            "difference": asdict(self.difference),
        }
        values["effects"] = [asdict(effect) for effect in self.effects]
        values["curve"] = [asdict(point) for point in self.curve]
        values["removal"] = None if self.removal is None else self.removal.to_dict()
        return {"schema": CIRCUIT_SCHEMA, **values, "circuit": list(self.circuit)}

    def sections(self) -> list[Section]:
        """The circuit, all components, the curve, what it was found on."""
        n = len(self.circuit)
        found = f"{n} of {len(self.effects)} components carry refusals beyond chance"
        status = Status(
            "FOUND" if n else "NONE FOUND",
            "neutral",
            (f"{found}{': ' + ', '.join(self.circuit[:LISTED]) if n else ''}.", *self._reasons()),
            self.model.name,
        )
        return [
            Section("verdict", status=status),
            Section(
                "components",
                "components",
                table=self._component_table(),
                chart=partial(effect_map, self),
                note="Effect: by how many nats the refusal log-odds of harmful prompts fall when"
                " the component makes what it makes of their harmless twins; estimate: the same"
                " from gradients; direct: what it writes to the last token for refusal itself;"
                " unrelated: the size of such effects between harmless prompts that have nothing"
                " to do with each other.",
            ),
            Section(
                "circuit",
                "do the strongest make up a circuit?",
                table=self._curve_table() if self.curve else None,
                chart=partial(curve_chart, self) if self.curve else None,
                note="Kept: share of the difference between the twins with only these left, all"
                " others giving their means. Left: share without these. In brackets: random"
                " components, as many.",
            ),
            *([] if self.removal is None else [_removal_section(self.removal)]),
            Section("model", "read on", facts=self._facts()),
        ]

    def _reasons(self) -> list[str]:
        said = [
            f"Harmful prompts and their harmless twins differ in its refusal log-odds by"
            f" {self.difference.told('nats')}."
        ]
        for what, share, interval in self._survivals():
            left = with_interval(share, interval, ".0%")
            said.append(f"Without {what} {left} of the selectivity of its answers survives.")
        if self.no_gradients is not None:
            why = self.no_gradients.rstrip(".")
            said.append(f"All components were patched, as there are no estimates. {why}.")
        if self.rank_correlation is not None:
            said.append(
                f"Estimates from gradients rank the patched components with a correlation of"
                f" {self.rank_correlation:.2f} (Spearman)."
            )
        if self.attribution_error is not None:
            said.append(
                f"The estimates miss the whole that they sum up to by {self.attribution_error:.0%}."
            )
        return said

    def _survivals(self) -> list[tuple[str, float, Interval]]:
        """What is taken out, and the share of the selectivity that is left."""
        if (found := self.removal) is None:
            return []
        rows = (
            ("them", found.survives, found.interval),
            ("the refusal direction", found.direction_survives, found.direction_interval),
        )
        return [(what, x, y) for what, x, y in rows if x is not None and y is not None]

    def _component_table(self) -> Any:
        def effect(row: ComponentEffect) -> str:
            return "-" if row.effect is None else row.effect.told("", 2).replace("  ", " ")

        return table_of(
            self.effects[:LISTED],
            [
                (Column("component", whole=True), lambda row: row.component),
                ("effect (95%)", effect),
                (
                    Column("estimate", shown="wide", align="right"),
                    lambda r: "-" if r.attribution is None else f"{r.attribution:+.2f}",
                ),
                (
                    Column("direct", shown="wide", align="right"),
                    lambda r: "-" if r.direct is None else f"{r.direct:+.2f}",
                ),
                (
                    Column("unrelated", align="right"),
                    lambda row: "-" if row.unrelated is None else f"{row.unrelated:.2f}",
                ),
                (
                    Column("KL", shown="wide", align="right"),
                    lambda row: "-" if row.kl is None else f"{row.kl:.3f}",
                ),
                (Column("q", align="right"), lambda row: p_text(row.q_value)),
                ("beyond chance", lambda row: "yes" if row.relevant else "no"),
            ],
        )

    def _curve_table(self) -> Any:
        def with_random(value: float, random: tuple[float, ...]) -> str:
            if not random:
                return share(value)
            return f"{share(value)} ({share(min(random))} to {share(max(random))})"

        return table_of(
            self.curve,
            [
                ("components", lambda point: str(point.size)),
                (
                    "kept (random)",
                    lambda p: with_random(p.faithfulness, p.random_faithfulness),
                ),
                ("left (random)", lambda p: with_random(p.left, p.random_left)),
            ],
            right=range(3),
        )

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("model", self.model.name),
            ("weights sha256", f"{self.model.weights_sha256[:16]}…"),
            ("pairs", f"{self.n_pairs} twins, {self.n_left_out} not read"),
            ("refuses", f"{self.refused:.0%} of harmful prompts by their first token"),
            ("forward passes", str(self.provenance["forward_passes"])),
            ("time", str(self.provenance["time"])),
        ]


def _removal_section(removal: Removal) -> Section:
    rows: list[tuple[str, Selectivity]] = [
        ("untouched", removal.untouched),
        *([] if removal.removed is None else [("without the circuit", removal.removed)]),
        *((f"without {len(removal.components)} random", each) for each in removal.random),
        ("without the refusal direction", removal.direction),
        ("without a random direction", removal.random_direction),
    ]
    used = "did not serve" if removal.held_out else "served in part"
    return Section(
        "answers",
        "answers without parts of the model",
        table=table_of(
            rows,
            [
                ("model", lambda row: row[0]),
                (
                    "selectivity (95%)",
                    lambda row: with_interval(row[1].value, row[1].interval, ".2f"),
                ),
                ("refuses harmful", lambda row: f"{row[1].harmful:.0%}"),
                ("harmless", lambda row: f"{row[1].harmless:.0%}"),
            ],
            right=(2, 3),
            record=lambda row: {"model": row[0], **asdict(row[1])},
        ),
        note=f"Answers to {removal.n_harmful} harmful and {removal.n_harmless} harmless prompts,"
        f" which {used} to find the circuit. Silenced components give their means; a direction is"
        " taken out after every layer.",
    )


def share(value: float) -> str:
    """A share as a report writes it: whole per cent."""
    return f"{round(value, 2) + 0.0:.0%}"  # no minus before a zero


def effect_map(report: CircuitReport) -> Figure | None:
    """Effects by layer and kind of component, with intervals on hover."""
    import plotly.graph_objects as go

    rows = sorted(
        {(e.part, e.index) for e in report.effects}, key=lambda key: (key[0], key[1] or 0)
    )
    layers = sorted({e.layer for e in report.effects})
    at = {(e.part, e.index, e.layer): e for e in report.effects}
    names = [part if index is None else f"{part} {index}" for part, index in rows]
    found = [[at.get((*row, layer)) for layer in layers] for row in rows]
    figure = new_figure("What each component does for refusals (nats)", "layer", "")
    size = max((abs(e.mean) for e in report.effects), default=1.0) or 1.0
    figure.add_trace(
        go.Heatmap(
            x=layers,
            y=names,
            z=[[None if e is None else e.mean for e in row] for row in found],
            customdata=[["" if e is None else _hover(e) for e in row] for row in found],
            hovertemplate="%{customdata}<extra></extra>",
            colorscale=[[0, NEGATIVE], [0.5, "#ffffff"], [1, POSITIVE]],
            zmin=-size,
            zmax=size,
        )
    )
    return figure


def _hover(effect: ComponentEffect) -> str:
    told = "estimated" if effect.effect is None else effect.effect.told("nats")
    return f"{effect.component}<br>{effect.mean:+.2f} nats, {told}<br>q = {effect.q_value:.2g}"


def curve_chart(report: CircuitReport) -> Figure | None:
    """Kept and left shares by size of the circuit, beside random ones."""
    figure = new_figure("Circuits by size", "components", "share of the difference")
    sizes = [point.size for point in report.curve]
    for name, colour, of, random in (
        ("kept", POSITIVE, "faithfulness", "random_faithfulness"),
        ("left", NEGATIVE, "left", "random_left"),
    ):
        figure.add_scatter(
            x=sizes,
            y=[getattr(point, of) for point in report.curve],
            name=name,
            line={"color": colour, "width": 2.5},
        )
        with_random = [point for point in report.curve if getattr(point, random)]
        figure.add_scatter(
            x=[point.size for point in with_random],
            y=[sum(getattr(p, random)) / len(getattr(p, random)) for p in with_random],
            name=f"{name}, random",
            line={"color": NULL, "dash": "dot" if name == "kept" else "dash"},
        )
    figure.update_xaxes(type="log", tickvals=sizes)
    return figure
