"""What was found out about a jailbreak: JSON values, sections and charts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from modelassay.mechanism.attacked import InsideReading
from modelassay.mechanism.directions import SafetyDirections
from modelassay.mechanism.mechanisms import Mechanism, NullChanges
from modelassay.mechanism.report import share
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import LINE, NEGATIVE, POSITIVE, new_figure
from modelassay.report.sections import Column, Section, Status, Table, columns, table_of
from modelassay.report.text import p_text, with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

JAILBREAK_SCHEMA = "modelassay.jailbreak/1"
LISTED = 12
RESTORED = (
    "Restored: share of the lost refusal log-odds that comes back when a component does what it did"
    " on the plain request, at the tokens between message and response. Writes: nats that it writes"
    " to the last token for refusal, on the plain and on the attacked request."
)


@dataclass(frozen=True)
class AttackedComponent:
    """What one component has to do with an attack."""

    component: str
    layer: int
    part: str
    restored: float
    """Share of the lost refusal log-odds that it brings back when it does what it did on the plain
    request; below 0 where it takes more away."""
    null: tuple[float, float]
    """95% prediction interval of the same by neutral rewordings, on the same scale."""
    plain: float | None
    """What it writes to the last token for refusal itself on the plain request, in nats; None
    where parts do not add up to the stream."""
    jailbroken: float | None
    """The same on the attacked request."""
    q_value: float
    beyond: bool
    """Whether it brings back more than neutral rewordings explain."""

    @property
    def change(self) -> str:
        """`suppressed`: it writes less for refusal; `newly active`: it writes against it now."""
        if self.plain is None or self.jailbroken is None:
            return "changed"
        if self.jailbroken > self.plain:
            return "more for refusal"
        return (
            "newly active"
            if self.jailbroken < 0 and -self.jailbroken > self.plain
            else ("suppressed")
        )


@dataclass(frozen=True)
class AttackedFeature:
    """A feature of an SAE, at the last token before the response."""

    feature: int
    plain: float
    """Its activation on the plain request."""
    jailbroken: float
    null: tuple[float, float]
    """95% prediction interval of its change by neutral rewordings."""
    q_value: float
    beyond: bool
    label: str

    @property
    def change(self) -> str:
        """What becomes of it."""
        return "suppressed" if self.jailbroken < self.plain else "newly active"


@dataclass(frozen=True)
class Restoration:
    """What became of the refusal when one direction was put back."""

    what: str
    layer: int
    restored: float
    """Share of the lost refusal log-odds that came back."""
    random: tuple[float, ...]
    """The same by random directions of its length."""

    @property
    def beyond(self) -> bool:
        """Whether it does more than all random ones."""
        return self.restored > max(self.random)


@dataclass(frozen=True)
class TokenReading:
    """One token of a prompt."""

    text: str
    in_request: bool
    in_tail: bool
    """Whether it is one of the template's after the message."""
    harm: float
    refusal: float
    harm_by_layer: tuple[float, ...]
    """Cosine of the state with the harm direction, after each layer."""
    refusal_by_layer: tuple[float, ...]


@dataclass(frozen=True)
class JailbreakReport(Report):
    """Why an attack on one request works, or does not."""

    model: ModelIdentity
    plain: InsideReading
    jailbroken: InsideReading
    null: NullChanges
    """Of falls by neutral rewordings."""
    mechanism: Mechanism
    directions: SafetyDirections
    components: tuple[AttackedComponent, ...]
    """Those with the largest effects, the strongest first; empty where the attack takes no log-odds
    of refusal away."""
    by_layer: tuple[float, ...]
    """Share of them that the plain request's states after a layer bring back, at the tokens of the
    template after the message."""
    restorations: tuple[Restoration, ...]
    features: tuple[AttackedFeature, ...]
    sae: str | None
    tokens: tuple[tuple[TokenReading, ...], ...]
    """Of the plain and of the attacked prompt."""
    n_null: int
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.jailbreak/1`."""
        return {
            "schema": JAILBREAK_SCHEMA,
            "kind": "pair",
            "model": self.model.to_dict(),
            "mechanism": asdict(self.mechanism),
            "plain": self.plain.to_dict(),
            "jailbroken": self.jailbroken.to_dict(),
            "null": self.null.to_dict(),
            "directions": directions_dict(self.directions),
            "components": [asdict(c) | {"change": c.change} for c in self.components],
            "by_layer": list(self.by_layer),
            "restorations": [asdict(r) | {"beyond": r.beyond} for r in self.restorations],
            "features": [asdict(f) | {"change": f.change} for f in self.features],
            "sae": self.sae,
            "tokens": {
                name: [asdict(token) for token in side]
                for name, side in zip(("plain", "jailbroken"), self.tokens, strict=True)
            },
            "provenance": self.provenance,
        }

    def restores(self) -> str | None:
        """What brings most of the refusal back and more than chance does; None if nothing does."""
        tried = [(r.restored, f"the {r.what}") for r in self.restorations if r.beyond]
        tried += [(c.restored, c.component) for c in self.components if c.beyond]
        share, what = max(tried, default=(0.0, ""))
        return f"{what} ({share:.0%} of the lost log-odds)" if share > 0 else None

    def sections(self) -> list[Section]:
        """Which way it works, readings, components, features, tokens."""
        return [
            Section(
                "verdict",
                status=Status(
                    self.mechanism.way.upper(),
                    "neutral",
                    (self.mechanism.reason, *self._reasons()),
                    self.model.name,
                ),
            ),
            Section(
                "readings",
                "readings",
                table=self._readings(),
                note="Harm: 0 where harmless prompts lie on average, 1 where harmful ones do, at"
                " the end of the request or of the message. Refusal: the same of prompts that the"
                " model would answer and refuse, where the response begins. In brackets: by how"
                " much neutral rewordings change it (95% of them).",
            ),
            Section(
                "components",
                "what brings the refusal back",
                table=self._component_table() if self.components else None,
                chart=partial(layer_chart, self) if self.by_layer else None,
                lines=() if self.components else (self._nothing_lost(),),
                note=RESTORED if self.components else "",
            ),
            *self._feature_sections(),
            Section("tokens", chart=partial(token_chart, self)),
            Section("model", "read on", facts=self._facts()),
        ]

    def _reasons(self) -> list[str]:
        if self.components:
            back = self.restores()
            return [
                f"{back[0].upper()}{back[1:]} brings most of the refusal back."
                if back
                else "No single component or direction brings the refusal back beyond chance."
            ]
        return [] if self.mechanism.way == "does not work" else [self._nothing_lost()]

    def _nothing_lost(self) -> str:
        return (
            "The attack takes no more refusal log-odds away than neutral rewordings do, so there is"
            " nothing to bring back at the first token."
        )

    def _readings(self) -> Table:
        a, b, null = self.plain, self.jailbroken, self.null

        def row(name: str, x: float, y: float, interval: tuple[float, float]) -> tuple[str, ...]:
            low, high = (-end for end in interval[::-1])
            return name, f"{x:+.2f}", f"{y:+.2f}", f"{y - x:+.2f} ({low:+.2f} to {high:+.2f})"

        rows = [
            row("harm", a.harm, b.harm, null.harm.interval),
            row("refusal", a.refusal, b.refusal, null.refusal.interval),
            row("refusal log-odds", a.log_odds, b.log_odds, null.log_odds.interval),
            ("answer", a.outcome or "-", b.outcome or "-", ""),
        ]
        shown = columns("reading", "plain", "attacked", "change (neutral)", right=(1, 2, 3))
        return Table(shown, rows)

    def _component_table(self) -> Table:
        def restored(row: AttackedComponent) -> str:
            low, high = row.null
            return f"{share(row.restored)} ({share(low)} to {share(high)})"

        def writes(row: AttackedComponent) -> str:
            if row.plain is None or row.jailbroken is None:
                return "-"
            return f"{row.plain:+.2f}, {row.jailbroken:+.2f}"

        return table_of(
            self.components[:LISTED],
            [
                (Column("component", whole=True), lambda row: row.component),
                ("restored (neutral)", restored),
                (Column("writes", shown="wide"), writes),
                ("q", lambda row: p_text(row.q_value)),
                ("", lambda row: row.change if row.beyond else "not beyond chance"),
            ],
        )

    def _feature_sections(self) -> list[Section]:
        if self.sae is None:
            return []
        found = [feature for feature in self.features if feature.beyond][:LISTED]
        title = f"features of {self.sae}"
        if not found:
            said = f"None of {len(self.features)} features changes beyond neutral rewordings."
            return [Section("features", title, lines=(said,))]
        table = table_of(
            found,
            [
                ("feature", lambda row: str(row.feature)),
                ("plain", lambda row: f"{row.plain:.2f}"),
                ("attacked", lambda row: f"{row.jailbroken:.2f}"),
                ("q", lambda row: p_text(row.q_value)),
                ("", lambda row: row.change),
                ("label", lambda row: row.label),
            ],
            right=(0, 1, 2),
        )
        note = f"{len(found)} of {len(self.features)} that fire, at the last token of the prompt."
        return [Section("features", title, table=table, note=note)]

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("model", self.model.name),
            ("weights sha256", f"{self.model.weights_sha256[:16]}…"),
            *direction_facts(self.directions),
            ("neutral rewordings", str(self.n_null)),
            ("time", str(self.provenance["time"])),
        ]


def directions_dict(directions: SafetyDirections) -> dict[str, Any]:
    """JSON values of both directions, without their vectors."""
    return {
        "harm": directions.harm.to_dict(),
        "refusal": directions.refusal.to_dict(),
        "refusal_by_label": directions.by_label,
        "twins_auroc": directions.twins,
        "twins_interval": list(directions.twins_interval),
    }


def direction_facts(directions: SafetyDirections) -> list[tuple[str, str]]:
    """How well each direction tells prompts apart."""
    found = [
        (
            f"{each.name} direction",
            f"layer {each.layer}, AUROC {with_interval(each.auroc, each.interval, '.2f')}, n ="
            f" {each.n_pairs} held-out pairs",
        )
        for each in (directions.harm, directions.refusal)
    ]
    twins = with_interval(directions.twins, directions.twins_interval, ".2f")
    return [*found, ("harm, twins in the same words", f"AUROC {twins}")]


def layer_chart(report: JailbreakReport) -> Figure | None:
    """Share of the refusal that the plain request's states bring back, by layer."""
    figure = new_figure("Where the refusal is lost", "layer", "restored")
    shares = report.by_layer
    figure.add_scatter(x=list(range(len(shares))), y=list(shares), line={"color": POSITIVE})
    figure.add_hline(y=1, line=LINE)
    return figure


def token_chart(report: JailbreakReport) -> Figure | None:
    """Both readings at each token of both prompts."""
    from plotly.subplots import make_subplots

    names = ("plain", "attacked")
    figure = make_subplots(rows=2, cols=1, subplot_titles=names, vertical_spacing=0.22)
    for row, whole in enumerate(report.tokens, start=1):
        side = whole[1:]  # models keep values at the first token that stand for nothing said
        texts = [_shown(token.text) for token in side]
        marks = [_place(token) for token in side]
        for name, colour, values in (
            ("harm", POSITIVE, [token.harm for token in side]),
            ("refusal", NEGATIVE, [token.refusal for token in side]),
        ):
            figure.add_scatter(
                x=list(range(len(side))),
                y=values,
                name=name,
                legendgroup=name,
                showlegend=row == 1,
                line={"color": colour},
                customdata=list(zip(texts, marks, strict=True)),
                hovertemplate="%{customdata[0]} (%{customdata[1]})<br>%{y:.2f}<extra></extra>",
                row=row,
                col=1,
            )
        for level in (0, 1):  # where harmless prompts lie, and where harmful ones do
            ends = {"x": [0, len(side) - 1], "y": [level, level]}
            figure.add_scatter(
                **ends, mode="lines", line=LINE, showlegend=False, hoverinfo="skip", row=row, col=1
            )
    figure.update_layout(template="plotly_white", height=560)
    return figure


def _place(token: TokenReading) -> str:
    return "after the message" if token.in_tail else "request" if token.in_request else "around it"


def _shown(text: str) -> str:
    """A token on a chart, where angle brackets would be read as markup."""
    return repr(text)[1:-1].replace("<", "&lt;")


def ways_in_order(found: Sequence[str]) -> list[str]:
    """Ways that attacks work, the most frequent first."""
    return sorted(set(found), key=lambda way: (-found.count(way), way))
