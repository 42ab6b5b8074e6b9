"""Which features were found, and what they do for refusals: JSON values, sections and a chart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from modelassay.mechanism.report import share
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import NEGATIVE, NULL, error_bars, new_figure
from modelassay.report.sections import Column, Section, Status, Table, table_of
from modelassay.report.text import counted, cut, p_text, plain_line, with_interval
from modelassay.statistics import MeanChange

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FEATURES_SCHEMA = "modelassay.features/1"
LABEL_SHOWN = 44


@dataclass(frozen=True)
class FeatureEffect:
    """What a feature does for refusals of harmful requests."""

    influence: MeanChange
    """Estimate: by how many nats it raises the refusal log-odds, for all that it does more on a
    harmful prompt than on its harmless twin."""
    rank: int
    """By the size of its influence, among the features of its type that are beyond chance."""
    density: float
    """Share of the prompts' tokens on which it fires."""
    p_value: float
    """Rank of its influence among all features that fire about as often."""
    q_value: float
    """The same, corrected over the features that are listed."""
    suppressed: MeanChange | None = None
    """By how many nats the refusal log-odds of harmful prompts fall without it; None where that was
    not tried."""
    boosted: MeanChange | None = None
    """By how many nats those of harmless prompts rise with more of it."""
    n_random: int = 0
    """Random features, firing about as often, that the same was done with: none where the influence
    is not beyond theirs."""
    effect_p_value: float | None = None
    """Rank among them, the worse of suppression and boosting; None with too few of them."""
    effect_q_value: float | None = None
    """The same, corrected over the features that were tried."""
    confirmed: bool | None = None
    """Whether influence and both interventions are beyond random features and of one sign; None
    where that was not tried or could not be."""


@dataclass(frozen=True)
class FoundFeature:
    """A feature that tells the two sides of a contrast set apart."""

    feature: int
    label: str | None
    """What it is known for; None where nobody has named it."""
    auroc: float
    """On pairs that did not choose it."""
    auroc_interval: tuple[float, float]
    n_held_out: int
    difference: float
    """Mean activation a token on the positive side minus that on the negative."""
    rank: int
    """By the size of that difference, among the features of its type that are beyond chance."""
    p_value: float
    q_value: float
    beyond_words: bool
    """Whether the interval is above the AUROC of a bag of words, and above 0.5."""
    effect: FeatureEffect | None
    """None where the model refuses nothing."""


@dataclass(frozen=True)
class TypeFeatures:
    """The features of one type."""

    name: str
    positive: str
    """What the first side of its contrast set does."""
    negative: str
    n_pairs: int
    words_auroc: float
    """Of a bag of words, held out: what the surface gives away."""
    n_beyond: int
    """Features that tell the sides apart beyond chance (q < 0.05)."""
    rank_correlation: float | None
    """Spearman's of influence and difference, over those; None of fewer than three."""
    features: tuple[FoundFeature, ...]
    """The listed ones, by influence; without it by AUROC."""

    def with_labels(self, known: Mapping[int, str]) -> TypeFeatures:
        """The same with what its features are known for."""
        rows = (replace(row, label=known.get(row.feature)) for row in self.features)
        return replace(self, features=tuple(rows))

    @property
    def confirmed(self) -> tuple[FoundFeature, ...]:
        """Those that interventions confirm."""
        return tuple(f for f in self.features if f.effect is not None and f.effect.confirmed)


@dataclass(frozen=True)
class InfluentialFeature:
    """One of the features that do most for refusals, whatever it is about."""

    feature: int
    label: str | None
    influence: MeanChange
    """In nats, on pairs that did not rank it."""
    activation: float
    """How much more it does on harmful prompts than on their twins, a token."""
    rank: int
    """By the size of that, among all features that fire there."""
    types: tuple[str, ...]
    """Feature types whose sides it tells apart."""


@dataclass(frozen=True)
class SuppressedPoint:
    """The most influential features suppressed together, and random ones as many."""

    size: int
    left: float
    """Share of the difference between the twins that is left."""
    left_interval: tuple[float, float]
    """95% bootstrap interval over pairs."""
    random_left: tuple[float, ...]
    """The same without random features that fire about as often."""


@dataclass(frozen=True)
class FeaturesReport(Report):
    """Features of safety in a model, by type."""

    model: ModelIdentity
    sae: str
    layer: int
    part: Literal["block", "mlp"]
    """Whether the SAE takes apart what the layer puts out, or as a transcoder what its MLP does."""
    width: int
    explained: float
    """Share of the variance that the SAE explains where this model reads the contrast sets."""
    nothing_to_explain: str | None
    """Why nothing is said of refusals; None where the model refuses."""
    difference: MeanChange | None
    """Refusal log-odds of harmful prompts minus those of their twins, in nats."""
    influence_share: float | None
    """Share that the SAE's features have in what the layer does for that difference."""
    types: tuple[TypeFeatures, ...]
    influential: tuple[InfluentialFeature, ...]
    """The features that raise the refusal log-odds most; empty where nothing is refused."""
    rank_correlation: float | None
    """Spearman's of influence and activation on the twins, over all features that fire there."""
    curve: tuple[SuppressedPoint, ...]
    n_pairs: int
    """Twins on which refusals were read."""
    provenance: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.features/1`."""
        values = {**vars(self), "model": self.model.to_dict()}
        values["difference"] = None if self.difference is None else asdict(self.difference)
        values["types"] = [asdict(each) for each in self.types]
        values["influential"] = [asdict(each) for each in self.influential]
        values["curve"] = [asdict(point) for point in self.curve]
        return {"schema": FEATURES_SCHEMA, **values}

    def sections(self) -> list[Section]:
        """What was found, a table for each type, the curve, what it was found on."""
        n = sum(len(each.features) for each in self.types)
        status = Status(
            "FOUND" if n else "NONE FOUND", "neutral", tuple(self._reasons()), self.model.name
        )
        found = [
            Section("verdict", status=status),
            *(self._type_section(each) for each in self.types),
        ]
        if self.influential:
            found.append(
                Section(
                    "influential",
                    "features that do most for refusals",
                    table=self._influential_table(),
                    note=self._influential_note(),
                )
            )
        if self.curve:
            found.append(
                Section(
                    "curve",
                    "how much refusal is left without them?",
                    table=self._curve_table(),
                    chart=partial(suppression_chart, self),
                    note="Share of the difference between harmful prompts and their harmless twins"
                    " that is left when the most influential features are suppressed together."
                    " Random: as many features that fire about as often.",
                )
            )
        return [*found, Section("model", "read on", facts=self._facts())]

    @property
    def _place(self) -> str:
        layer = f"layer {self.layer}"
        return layer if self.part == "block" else f"the MLP of {layer}"

    def _reasons(self) -> list[str]:
        said = [
            f"{each.name}: {counted(each.n_beyond, 'feature')} beyond chance at telling the sides"
            " apart"
            + ("" if self.nothing_to_explain or not each.features else _confirmed_text(each))
            + "."
            for each in self.types
        ]
        if self.nothing_to_explain is not None:
            return [self.nothing_to_explain, *said]
        if self.influence_share is not None:
            said.append(
                "Estimates for all features add up to"
                f" {self.influence_share:.0%} of what {self._place} does for the difference."
            )
        if self.curve:
            last = self.curve[-1]
            said.append(
                f"Without the {last.size} most influential features"
                f" {_left(last)} of the difference is left."
            )
        return said

    def _type_section(self, found: TypeFeatures) -> Section:
        no_better = sum(not each.beyond_words for each in found.features)
        note = (
            f"{found.n_pairs} pairs: one {found.positive}, the other {found.negative}. A bag of"
            f" words tells them apart with AUROC {found.words_auroc:.2f}."
        )
        if no_better:
            note += f" {no_better} of the features listed are not shown to do better than that."
        if found.rank_correlation is not None:
            note += (
                f" Ranks by influence and by activation agree to {found.rank_correlation:+.2f}"
                " (Spearman)."
            )
        return Section(found.name, found.name.replace("_", " "), table=_table(found), note=note)

    def _influential_table(self) -> Table:
        return table_of(
            self.influential,
            [
                (Column("feature", align="right", whole=True), lambda row: str(row.feature)),
                ("label", lambda row: cut(plain_line(row.label or "-"), LABEL_SHOWN)),
                ("influence (95%)", lambda row: _told(row.influence)),
                (Column("rank by activation", align="right"), lambda row: str(row.rank)),
                (
                    Column("types", shown="wide"),
                    lambda row: ", ".join(each.replace("_", " ") for each in row.types) or "-",
                ),
            ],
        )

    def _influential_note(self) -> str:
        note = (
            "Influence: estimate of the nats by which a feature raises the refusal log-odds, with"
            " all that it does more on a harmful prompt than on its twin; ranked on every second"
            " pair and scored on the others."
        )
        if self.rank_correlation is not None:
            note += (
                " Over all features, ranks by influence and by activation agree to"
                f" {self.rank_correlation:+.2f} (Spearman)."
            )
        return note

    def _curve_table(self) -> Table:
        return table_of(
            self.curve,
            [
                ("features", lambda point: str(point.size)),
                ("left (95%)", _left),
                (
                    "random",
                    lambda p: (
                        f"{min(p.random_left):.0%} to {max(p.random_left):.0%}"
                        if p.random_left
                        else "-"
                    ),
                ),
            ],
            right=range(3),
        )

    def _facts(self) -> list[tuple[str, str]]:
        return [
            ("model", self.model.name),
            ("weights sha256", f"{self.model.weights_sha256[:16]}…"),
            ("SAE", f"{plain_line(self.sae)}, {self.width} features of {self._place}"),
            ("SAE explains", f"{self.explained:.0%} of the variance"),
            ("twins", str(self.n_pairs)),
            *(
                []
                if self.difference is None
                else [("twins differ by", self.difference.told("nats"))]
            ),
            ("time", str(self.provenance["time"])),
        ]


def _confirmed_text(found: TypeFeatures) -> str:
    tried = [f for f in found.features if f.effect is not None and f.effect.confirmed is not None]
    if not tried:
        return "; none that is listed could be tried"
    n, which = len(found.confirmed), ", ".join(str(f.feature) for f in found.confirmed)
    told = f", {n} of {len(tried)} tried move refusals beyond random features"
    return f"{told} ({which})" if n else told


def _left(point: SuppressedPoint) -> str:
    low, high = point.left_interval
    return f"{share(point.left)} ({share(low)} to {share(high)})"


def _told(value: MeanChange) -> str:
    if value.interval is None:
        return f"{value.mean:+.2f}"
    return with_interval(value.mean, value.interval, "+.2f")


def _table(found: TypeFeatures) -> Table:
    def effect(row: FoundFeature, name: str) -> str:
        value = None if row.effect is None else getattr(row.effect, name)
        return "-" if value is None else _told(value)

    def q_value(row: FoundFeature, name: str) -> str:
        value = None if row.effect is None else getattr(row.effect, name)
        return "-" if value is None else p_text(value)

    def confirmed(row: FoundFeature) -> str:
        state = None if row.effect is None else row.effect.confirmed
        return {True: "yes", False: "no", None: "-"}[state]

    return table_of(
        found.features,
        [
            (Column("feature", align="right", whole=True), lambda row: str(row.feature)),
            ("label", lambda row: cut(plain_line(row.label or "-"), LABEL_SHOWN)),
            ("AUROC (95%)", lambda row: with_interval(row.auroc, row.auroc_interval, ".2f")),
            (
                Column("more on", shown="wide"),
                lambda row: found.positive if row.difference > 0 else found.negative,
            ),
            (
                Column("better than words", shown="wide"),
                lambda r: "yes" if r.beyond_words else "no",
            ),
            (Column("rank by activation", shown="wide", align="right"), lambda r: str(r.rank)),
            (
                Column("rank by influence", shown="wide", align="right"),
                lambda row: "-" if row.effect is None else str(row.effect.rank),
            ),
            (
                Column("influence", align="right"),
                lambda row: "-" if row.effect is None else f"{row.effect.influence.mean:+.2f}",
            ),
            (Column("q", shown="wide", align="right"), lambda row: q_value(row, "q_value")),
            (Column("suppressed (95%)", shown="wide"), lambda row: effect(row, "suppressed")),
            (Column("boosted (95%)", shown="wide"), lambda row: effect(row, "boosted")),
            (
                Column("q of both", shown="wide", align="right"),
                lambda row: q_value(row, "effect_q_value"),
            ),
            ("confirmed", confirmed),
        ],
        most=10,
    )


def suppression_chart(report: FeaturesReport) -> Figure | None:
    """What is left of the twins' difference by how many features are suppressed."""
    figure = new_figure("Refusal left without features", "features", "share of the difference")
    sizes = [point.size for point in report.curve]
    left = [point.left for point in report.curve]
    figure.add_scatter(
        x=sizes,
        y=left,
        error_y=error_bars(left, [point.left_interval for point in report.curve]),
        name="most influential",
        line={"color": NEGATIVE, "width": 2.5},
    )
    drawn = [(point.size, value) for point in report.curve for value in point.random_left]
    figure.add_scatter(
        x=[size for size, _ in drawn],
        y=[value for _, value in drawn],
        name="random",
        mode="markers",
        marker={"color": NULL},
    )
    figure.update_xaxes(type="log", tickvals=sizes)
    return figure
