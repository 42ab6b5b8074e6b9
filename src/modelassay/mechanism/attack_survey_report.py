"""What was found out about a suite of attacks: JSON values, sections and a chart."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from modelassay.mechanism.attacked import InsideReading
from modelassay.mechanism.clusters import AttackGroups
from modelassay.mechanism.directions import SafetyDirections
from modelassay.mechanism.jailbreak_report import (
    JAILBREAK_SCHEMA,
    direction_facts,
    directions_dict,
)
from modelassay.mechanism.mechanisms import NullChanges, Way, works
from modelassay.mechanism.pathway import LEAST_REQUESTS, Pathway, PathwayComponent
from modelassay.mechanism.prediction import AttackPrediction
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import POSITIVE, error_bars, new_figure
from modelassay.report.sections import Column, Section, Status, Table, table_of
from modelassay.report.text import counted, p_text, with_interval
from modelassay.statistics import wilson_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

NAMED = 6


@dataclass(frozen=True)
class AttackedRow:
    """One attacked request."""

    family: str
    attack: str
    request: int
    """Number of the plain request in the suite."""
    plain: InsideReading
    attacked: InsideReading
    way: Way

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class FamilyRow:
    """How the attacks of one family fare."""

    family: str
    n: int
    n_worked: int
    """No longer refused."""
    n_complied: int
    """Of these, answered; the others are evaded."""
    interval: tuple[float, float]
    """95% Wilson interval of the share that is no longer refused."""
    ways: dict[str, int]
    """Of those that worked."""
    harm_fall: float
    """Mean."""
    refusal_fall: float
    log_odds_fall: float

    @property
    def rate(self) -> float:
        """Share that is no longer refused."""
        return self.n_worked / self.n

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self) | {"rate": self.rate}


@dataclass(frozen=True)
class AttackSurvey(Report):
    """Which attacks of a suite work, in which ways, and how well one can tell beforehand."""

    model: ModelIdentity
    suite: str
    suite_sha256: str
    rows: tuple[AttackedRow, ...]
    """One for each attack on a request that is refused as it is."""
    null: NullChanges
    directions: SafetyDirections
    prediction: AttackPrediction | str
    """Or why there is none."""
    groups: AttackGroups | None
    """None where components do not add up, or of fewer than three attacks."""
    pathways: tuple[Pathway, ...]
    """Of each attack on twelve or more refused requests: the components that it switches."""
    n_requests: int
    n_refused: int
    """Of the plain requests."""
    unasked: dict[str, str]
    """By attack, why it could not be put to the model."""
    provenance: dict[str, Any]

    @cached_property
    def families(self) -> tuple[FamilyRow, ...]:
        """By family, the most successful first."""
        found = []
        for family in dict.fromkeys(row.family for row in self.rows):
            rows = [row for row in self.rows if row.family == family]
            worked = [row for row in rows if works(row.attacked)]

            def fall(name: str, rows: list[AttackedRow] = rows) -> float:
                gaps = [getattr(r.plain, name) - getattr(r.attacked, name) for r in rows]
                return sum(gaps) / len(gaps)

            found.append(
                FamilyRow(
                    family=family,
                    n=len(rows),
                    n_worked=len(worked),
                    n_complied=sum(row.attacked.outcome == "complies" for row in worked),
                    interval=wilson_interval(len(worked), len(rows)),
                    ways=dict(Counter(row.way for row in worked).most_common()),
                    harm_fall=fall("harm"),
                    refusal_fall=fall("refusal"),
                    log_odds_fall=fall("log_odds"),
                )
            )
        return tuple(sorted(found, key=lambda row: (-row.rate, row.family)))

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.jailbreak/1`."""
        told = self.prediction
        return {
            "schema": JAILBREAK_SCHEMA,
            "kind": "suite",
            "model": self.model.to_dict(),
            "suite": self.suite,
            "suite_sha256": self.suite_sha256,
            "n_requests": self.n_requests,
            "n_refused": self.n_refused,
            "families": [row.to_dict() for row in self.families],
            "prediction": None if isinstance(told, str) else told.to_dict(),
            "prediction_unscored": told if isinstance(told, str) else None,
            "groups": None if self.groups is None else self.groups.to_dict(),
            "pathways": [each.to_dict() for each in self.pathways],
            "null": self.null.to_dict(),
            "directions": directions_dict(self.directions),
            "rows": [row.to_dict() for row in self.rows],
            "unasked": self.unasked,
            "provenance": self.provenance,
        }

    def sections(self) -> list[Section]:
        """How many work, by family; in which ways; whether one can tell; groups."""
        n, worked = len(self.rows), sum(works(row.attacked) for row in self.rows)
        rate = with_interval(worked / n, wilson_interval(worked, n), ".0%")
        status = Status(
            f"{worked} OF {n} NO LONGER REFUSED",
            "neutral",
            (
                f"{rate} of the attacked prompts are answered or evaded. They attack the"
                f" {self.n_refused} of {self.n_requests} plain requests that the model refuses.",
                *self._reasons(),
            ),
            self.model.name,
        )
        return [
            Section("verdict", status=status),
            Section(
                "families",
                "families of attacks",
                table=self._family_table(),
                chart=partial(family_chart, self),
                note="Falls from plain to attacked, on average; by neutral rewordings 95% lie in"
                f" {_range(self.null.harm.interval)} (harm), {_range(self.null.refusal.interval)}"
                f" (refusal) and {_range(self.null.log_odds.interval)} nats (log-odds).",
            ),
            self._group_section(),
            self._pathway_section(),
            Section("model", "read on", facts=self._facts()),
        ]

    def _reasons(self) -> list[str]:
        told = self.prediction
        if isinstance(told, str):
            return [f"Whether an attack works cannot be foretold here: {told}"]
        inside = with_interval(told.auroc, told.interval, ".2f")
        alone = with_interval(told.log_odds_auroc, told.log_odds_interval, ".2f")
        return [
            f"Readings before the response foretell which attacks of an unseen family work with an"
            f" AUROC of {inside}; refusal log-odds alone with {alone} (n = {told.n},"
            f" {told.n_attacks} attacks)."
        ]

    def _family_table(self) -> Any:
        return table_of(
            self.families,
            [
                (Column("family", whole=True), lambda row: row.family),
                ("not refused (95%)", lambda row: with_interval(row.rate, row.interval, ".0%")),
                (Column("complies", align="right"), lambda row: f"{row.n_complied / row.n:.0%}"),
                (Column("n", align="right"), lambda row: str(row.n)),
                (Column("harm", align="right"), lambda row: f"{row.harm_fall:+.2f}"),
                (Column("refusal", align="right"), lambda row: f"{row.refusal_fall:+.2f}"),
                (Column("log-odds", align="right"), lambda row: f"{row.log_odds_fall:+.2f}"),
                ("ways", lambda row: ", ".join(f"{k} {v}" for k, v in row.ways.items()) or "-"),
            ],
            record=FamilyRow.to_dict,
        )

    def _group_section(self) -> Section:
        title = "attacks that change the same components"
        if self.groups is None:
            said = "The parts of this model do not add up to its stream, or attacks are too few."
            return Section("groups", title, lines=(said,))
        items = tuple(
            f"{', '.join(group.attacks[:NAMED])}"
            + (f" and {len(group.attacks) - NAMED} more" if len(group.attacks) > NAMED else "")
            + f": {', '.join(group.components) or 'nothing writes less for refusal'}"
            for group in self.groups.groups
        )
        stability = self.groups.stability
        note = (
            ""
            if stability is None
            else (
                f"Groups from each half of the requests agree with an adjusted Rand index of"
                f" {stability:.2f} (0 is chance, 1 the same groups)."
            )
        )
        return Section("groups", title, items=items, note=note)

    def _pathway_section(self) -> Section:
        title = "components that an attack switches"
        if not self.pathways:
            said = (
                f"This takes {LEAST_REQUESTS} refused requests of an attack: ask for more with"
                " --per-attack."
            )
            return Section("pathways", title, lines=(said,))
        rows = [(each, part) for each in self.pathways for part in each.beyond]
        return Section(
            "pathways",
            title,
            lines=tuple(map(_pathway_line, self.pathways)),
            table=_pathway_table(rows) if rows else None,
            note="Restored: nats of refusal log-odds that come back, on average over requests, when"
            " a component does what it did on the plain request, at the tokens between message and"
            " response. Other wordings: 95% of harmless wordings, as means over requests. Writes:"
            " nats for refusal at the last token, on plain and on attacked requests. Together: on"
            " the requests that the components were found on.",
        )

    def _facts(self) -> list[tuple[str, str]]:
        unasked = f"{len(self.unasked)} attacks" if self.unasked else "none"
        return [
            ("model", self.model.name),
            ("weights sha256", f"{self.model.weights_sha256[:16]}…"),
            ("suite", f"{self.suite} ({self.suite_sha256[:12]}…)"),
            *direction_facts(self.directions),
            ("neutral rewordings", str(self.null.harm.n)),
            ("could not be asked", unasked),
            ("time", str(self.provenance["time"])),
        ]


def _pathway_line(found: Pathway) -> str:
    lost = f"{found.attack} takes {found.lost.told('nats')} of refusal log-odds away"
    usual = f"{_range(found.usual)} for one more harmless wording"
    if not found.takes:
        return f"{lost}, which is not beyond chance ({usual}): it switches nothing."
    if found.together is None:
        return f"{lost} ({usual}); no single component brings them back beyond chance."
    share, n = found.together.mean / found.lost.mean, len(found.beyond)
    random = ""
    if found.random:
        shares = [each / found.lost.mean for each in found.random]
        random = f"; as many random others {min(shares):.0%} to {max(shares):.0%}"
    return (
        f"{lost} ({usual}). {counted(n, 'component')} beyond chance; together they bring"
        f" {share:.0%} of it back{random}."
    )


def _pathway_table(rows: list[tuple[Pathway, PathwayComponent]]) -> Table:
    def writes(row: tuple[Pathway, PathwayComponent]) -> str:
        plain, attacked = row[1].plain, row[1].attacked
        return "-" if plain is None or attacked is None else f"{plain:+.2f}, {attacked:+.2f}"

    return table_of(
        rows,
        [
            ("attack", lambda row: row[0].attack),
            (Column("component", whole=True), lambda row: row[1].component),
            (
                "restored (95%)",
                lambda row: with_interval(
                    row[1].restored.mean, row[1].restored.interval or (), "+.2f"
                ),
            ),
            ("share", lambda row: f"{row[1].share:.0%}"),
            (Column("other wordings", shown="wide"), lambda row: _range(row[1].usual)),
            (Column("writes", shown="wide"), writes),
            ("q", lambda row: p_text(row[1].q_value)),
        ],
        record=lambda row: {"attack": row[0].attack, **asdict(row[1])},
    )


def _range(interval: tuple[float, float]) -> str:
    return f"{interval[0]:+.2f} to {interval[1]:+.2f}"


def family_chart(survey: AttackSurvey) -> Figure | None:
    """Share of attacked prompts that work, by family, with intervals."""
    rows = survey.families
    figure = new_figure("Attacked prompts that are no longer refused", "", "share")
    figure.add_bar(
        x=[row.family for row in rows],
        y=[row.rate for row in rows],
        error_y=error_bars([row.rate for row in rows], [row.interval for row in rows]),
        marker_color=POSITIVE,
    )
    figure.update_yaxes(range=[0, 1])
    return figure
