"""What a scan found out, as one frozen value: JSON values, sections and charts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from modelassay.measures.erased_directions import AblationEvidence
from modelassay.measures.refusal_evidence import OutcomeRates, RefusalEvidence
from modelassay.measures.separation import Separation, too_few_pairs
from modelassay.models import ModelIdentity
from modelassay.report.base import Report
from modelassay.report.charts import (
    LINE,
    NEGATIVE,
    NULL,
    PALETTE,
    POSITIVE,
    counted_bars,
    error_bars,
    new_figure,
)
from modelassay.report.json import published
from modelassay.report.sections import Column, Section, Status, Table, Tone
from modelassay.report.text import p_text, with_interval
from modelassay.scan.against import BaselineComparison
from modelassay.scan.verdict import SELECTIVITY_PASS, Level, Verdict
from modelassay.verify.report import VerificationReport

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCHEMA = "modelassay.scan/1"
TONES: dict[str, Tone] = {
    "PASS": "good",
    "WARNING": "warning",
    "CRITICAL": "bad",
    "INCONCLUSIVE": "neutral",
}
"""Colours of verdicts."""
LEVEL_TONES: dict[str, Tone] = {
    Level.APART.value: "neutral",
    Level.NOT_APART.value: "warning",
    Level.CONTROL.value: "muted",
}
"""Colours of concepts' levels: none is good or bad, as a stripped model tells harm apart too."""


@dataclass(frozen=True)
class ConceptResult:
    """One concept's separation and what it is called."""

    separation: Separation
    level: Level


@dataclass(frozen=True)
class ScanReport(Report):
    """Everything a scan found out."""

    model: ModelIdentity
    mode: str
    verdict: Verdict
    reasons: tuple[str, ...]
    concepts: dict[str, ConceptResult]
    refusal: RefusalEvidence | None
    refusal_unscored: str | None
    """Why `refusal` is None."""
    ablation: AblationEvidence
    provenance: dict[str, Any]
    compare: ScanReport | None = None
    """The same scan of the model to compare with."""
    verification: VerificationReport | None = None
    """Comparison with a baseline, if one was asked for."""
    compare_baseline: BaselineComparison | None = None
    """What moved since a baseline, if one is compared with in place of a model."""
    unscored: Mapping[str, int] = field(default_factory=dict)
    """Concepts that were read with too few pairs for a separation, and how many."""

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.scan/1`."""
        return {
            "schema": SCHEMA,
            "model": self.model.to_dict(),
            "mode": self.mode,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "concepts": {
                **{name: _concept_dict(r) for name, r in self.concepts.items()},
                **{
                    name: {"unscored": too_few_pairs(n), "n_pairs": n}
                    for name, n in self.unscored.items()
                },
            },
            "refusal": {"unscored": self.refusal_unscored}
            if self.refusal is None
            else self.refusal.to_dict(),
            "ablation": published(
                _fields(self.ablation), layers="blocks", ratio_by_layer="ratio_by_block"
            ),
            "compare": None if self.compare is None else self._compare_dict(self.compare),
            "compare_baseline": self.compare_baseline and self.compare_baseline.to_dict(),
            "verification": self.verification.to_dict() if self.verification else None,
            "provenance": self.provenance,
        }

    def sections(self) -> list[Section]:
        """Verdict, separation of each concept, identity, behaviour and weights, charts, model."""
        verdict = Status(
            self.verdict.value, TONES[self.verdict.value], self.reasons, self.model.name
        )
        found = [
            Section("verdict", status=verdict),
            Section(
                "concepts",
                "separation of concepts",
                table=self._concept_table(),
                chart=partial(separation_by_layer, self),
                note="Separation is scored on pairs that were not used to find the direction or the"
                " layer. AMS: the number that ams-scanner prints, fitted and scored on the same"
                " pairs; much of it can be overfitting. A model that lost its safety training can"
                " tell harm apart as well as before, so no size of it is good or bad.",
            ),
        ]
        if self.verification is not None:
            first, *rest = self.verification.sections()
            found += [replace(first, title="identity"), *rest]
        found += [
            Section(
                "evidence",
                "evidence",
                facts=[*self._refusal_facts(), *self._other_facts()],
                chart=partial(refusal_rates, self),
            ),
            *([self.compare_baseline.section()] if self.compare_baseline else []),
            Section("model", "model", facts=self._model_facts()),
        ]
        for name, result in self.concepts.items():
            s = result.separation
            found += [
                Section(name, f"in detail: {name}", chart=partial(projections, name, s)),
                Section(f"{name} swaps", chart=partial(null_distribution, name, s)),
            ]
        return found

    def separation_drifts(self) -> dict[str, float]:
        """Separation here minus that of the compared model, for the concepts both have."""
        if self.compare is None:
            return {}
        return {
            name: result.separation.separation - self.compare.concepts[name].separation.separation
            for name, result in self.concepts.items()
            if name in self.compare.concepts
        }

    def _concept_table(self) -> Table:
        numeric = [
            Column(name, "right", whole=True) for name in ("separation (95%)", "p", "AUROC", "AMS")
        ]
        names = ("separation", "p_value", "auroc", "in_sample_separation", "layer", "n_pairs")
        rows, records = [], []
        for name, result in self.concepts.items():
            s = result.separation
            rows.append(
                (
                    name,
                    with_interval(s.separation, s.interval, ".2f", unit="σ"),
                    p_text(s.p_value),
                    f"{s.auroc:.2f}",
                    f"{s.in_sample_separation:.2f}σ",
                    result.level.value,
                    str(s.layer),
                    str(s.n_pairs),
                )
            )
            records.append(
                {
                    "concept": name,
                    "level": result.level.value,
                    "low": s.interval[0],
                    "high": s.interval[1],
                    **{each: getattr(s, each) for each in names},
                }
            )
        for name, n in self.unscored.items():
            short = f"unscored: {n} pair{'s' if n > 1 else ''}"
            rows.append((name, short, "", "", "", "", "", str(n)))
            records.append({"concept": name, "unscored": too_few_pairs(n), "n_pairs": n})
        return Table(
            columns=(
                Column("concept", whole=True),
                *numeric,
                Column("level", whole=True, tones=LEVEL_TONES),
                Column("layer", "right", "wide"),
                Column("pairs", "right", "wide"),
            ),
            rows=rows,
            records=lambda: records,
        )

    def _refusal_facts(self) -> list[tuple[str, str]]:
        r = self.refusal
        if r is None:
            return [("refusal", f"not measured: {self.refusal_unscored}")]
        log_odds = "not measured: the model thinks before it answers"
        if r.log_odds_gap is not None and r.auroc is not None and r.auroc_interval is not None:
            auroc = with_interval(r.auroc, r.auroc_interval, ".2f")
            twins = "not measured" if r.twin_auroc is None else f"{r.twin_auroc:.2f}"
            log_odds = (
                f"gap {r.log_odds_gap:+.2f} nats, AUROC {auroc}; between twins in the same words"
                f" {twins}"
            )
        unfinished = f"{r.n_unfinished}, not judged"
        asked = f"{r.n_asked} of {r.n_planned}; by then the verdict was sure (--all asks all)"
        pairs = ", ".join(f"{name} {c.separation.n_pairs}" for name, c in self.concepts.items())
        return [
            ("harmful prompts", _outcomes(r.harmful)),
            ("benign prompts", _outcomes(r.benign)),
            ("selectivity", with_interval(r.selectivity, r.interval, "+.2f")),
            ("refusal log-odds", log_odds),
            *([("prompts asked", asked), ("pairs read", pairs)] if r.stopped else []),
            *([("unfinished thoughts", unfinished)] if r.n_unfinished else []),
        ]

    def _other_facts(self) -> list[tuple[str, str]]:
        a = self.ablation
        if a.detected is None:
            facts = [("ablation", f"not searched: {a.reason}")]
        else:
            parts = [f"the {what} of {len(layers)} layers" for what, layers in a.erased_from]
            what = f"erased from {' and '.join(parts)}" if a.detected else "no erased direction"
            what = "suspected" if a.suspicion_text else what
            facts = [("ablation", f"{what} (eigenvalue ratio {a.eigenvalue_ratio:.2g})")]
            facts += [("suspicion", a.suspicion_text)] if a.suspicion_text else []
            facts += [("ablation limits", "; ".join(a.limits))] if a.limits else []
        if (other := self.compare) is not None:
            drifts = [f"{name} {drift:+.2f}σ" for name, drift in self.separation_drifts().items()]
            told = f"{other.verdict.value}; {', '.join(drifts)}"
            facts.append((f"against {other.model.id}", told))
        return facts

    def _model_facts(self) -> list[tuple[str, str]]:
        m = self.model
        return [
            *([("organism", m.organism)] if m.organism else []),
            ("model", m.name),
            ("revision", m.revision or "local"),
            ("architecture", f"{m.architecture}, {m.n_layers} layers, hidden size {m.hidden_size}"),
            ("dtype", m.dtype + (f", {m.quantization}" if m.quantization else "")),
            ("weights sha256", m.weights_sha256),
            ("mode", self.mode),
            ("time", self.provenance["time"]),
        ]

    def _compare_dict(self, other: ScanReport) -> dict[str, Any]:
        drift = None
        if self.refusal is not None and other.refusal is not None:
            drift = self.refusal.selectivity - other.refusal.selectivity
        found = other.to_dict()
        return {
            "model": found["model"],
            "verdict": found["verdict"],
            "concepts": {
                name: {
                    "separation": other.concepts[name].separation.separation,
                    "interval": list(other.concepts[name].separation.interval),
                    "drift": change,
                }
                for name, change in self.separation_drifts().items()
            },
            "refusal": found["refusal"],
            "selectivity_drift": drift,
            "ablation": found["ablation"],
        }


def _outcomes(rates: OutcomeRates) -> str:
    parts = [
        f"{verb} {with_interval(each.rate, each.interval, '.0%')}"
        for verb, each in (
            ("refuses", rates.refuses), ("complies", rates.complies), ("evades", rates.evades)
        )
    ]  # fmt: skip
    return f"{', '.join(parts)}, n = {rates.n}"


def _concept_dict(result: ConceptResult) -> dict[str, Any]:
    values = _fields(result.separation)
    del values["null"]  # thousands of numbers; the report's charts have them
    return {**values, "level": result.level.value}


def _fields(found: Separation | AblationEvidence) -> dict[str, Any]:
    """All fields by name, with layer numbers as JSON's keys."""
    return {
        name: {str(layer): each for layer, each in value.items()}
        if isinstance(value, dict)
        else value
        for name, value in asdict(found).items()
    }


def separation_by_layer(report: ScanReport) -> Figure:
    """Held-out separation at each layer with its interval, and what 1 in 20 label swaps reach."""
    figure = new_figure("Held-out separation by layer", "layer", "separation (σ)")
    for i, (name, result) in enumerate(report.concepts.items()):
        colour = PALETTE[i % len(PALETTE)]
        curve, null = result.separation.by_layer, result.separation.null_by_layer
        intervals = result.separation.interval_by_layer
        figure.add_scatter(
            x=list(curve),
            y=list(curve.values()),
            name=name,
            line={"color": colour, "width": 2.5},
            error_y=error_bars(list(curve.values()), [intervals[layer] for layer in curve]),
        )
        figure.add_scatter(
            x=list(null),
            y=list(null.values()),
            name=f"{name}: 95% of label swaps",
            line={"color": colour, "dash": "dot", "width": 1},
            showlegend=False,
            hovertemplate="95% of swaps below %{y:.2f}σ",
        )
    return figure


def projections(name: str, separation: Separation) -> Figure:
    """Held-out projections of both classes of one concept."""
    figure = new_figure(
        f"{name}: held-out projections (layer {separation.layer})", "projection (σ)", "prompts"
    )
    for label, scores, colour in (
        ("positive", separation.positive_scores, POSITIVE),
        ("negative", separation.negative_scores, NEGATIVE),
    ):
        counted_bars(figure, scores, 30, name=label, marker_color=colour, opacity=0.6)
    figure.update_layout(barmode="overlay")
    return figure


def null_distribution(name: str, separation: Separation) -> Figure:
    """Separation under label swaps, and the observed one."""
    figure = new_figure(
        f"{name}: against label swaps (p = {separation.p_value:.2g})",
        "separation (σ)",
        "swaps",
    )
    counted_bars(figure, separation.null, 40, name="label swaps", marker_color=NULL)
    figure.add_vline(x=separation.separation, line={"color": POSITIVE, "width": 3})
    figure.add_annotation(
        x=separation.separation, y=1, yref="paper", text="observed", showarrow=False, yshift=8
    )
    return figure


def refusal_rates(report: ScanReport) -> Figure | None:
    """Refusal rates on harmful and harmless prompts and their difference, with intervals."""
    refusal = report.refusal
    if refusal is None:
        return None
    figure = new_figure("Refusals in responses", "", "share refused")
    values = [refusal.harmful_rate, refusal.benign_rate, refusal.selectivity]
    intervals = [refusal.harmful_interval, refusal.benign_interval, refusal.interval]
    figure.add_bar(
        x=["harmful", "benign and borderline", "selectivity"],
        y=values,
        error_y=error_bars(values, intervals),
        marker_color=[POSITIVE, NEGATIVE, PALETTE[2]],
        showlegend=False,
    )
    told = f"selectivity to pass: {SELECTIVITY_PASS:g}"
    figure.add_hline(
        y=SELECTIVITY_PASS, line=LINE, annotation_text=told, annotation_position="top left"
    )
    figure.update_yaxes(range=[min(-0.1, refusal.interval[0] - 0.05), 1.05])
    return figure
