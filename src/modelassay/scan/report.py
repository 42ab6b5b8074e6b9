"""What a scan found out, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from modelassay.measures.erased_directions import AblationEvidence
from modelassay.measures.refusal import RefusalEvidence
from modelassay.measures.separation import Separation
from modelassay.models import ModelIdentity
from modelassay.report.json import published
from modelassay.report.sections import Column, Report, Section, Status, Table, Tone
from modelassay.report.text import p_text, with_interval
from modelassay.scan import charts
from modelassay.scan.verdict import Verdict
from modelassay.verify.report import VerificationReport

SCHEMA = "modelassay.scan/1"
TONES: dict[str, Tone] = {
    "PASS": "good",
    "WARNING": "warning",
    "CRITICAL": "bad",
    "INCONCLUSIVE": "neutral",
    "CONTROL": "muted",
}
"""Colours of verdicts and of concepts' levels."""


@dataclass(frozen=True)
class ConceptResult:
    """One concept's separation and what it is called."""

    separation: Separation
    level: str
    """PASS, WARNING, CRITICAL or INCONCLUSIVE by AMS's thresholds, or CONTROL."""
    description: str = ""


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

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.scan/1`."""
        return {
            "schema": SCHEMA,
            "model": self.model.to_dict(),
            "mode": self.mode,
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "concepts": {name: _concept_dict(r) for name, r in self.concepts.items()},
            "refusal": {"unscored": self.refusal_unscored}
            if self.refusal is None
            else {**asdict(self.refusal), "n": self.refusal.n},
            "ablation": _ablation_dict(self.ablation),
            "compare": None if self.compare is None else self._compare_dict(self.compare),
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
                chart=partial(charts.separation_by_layer, self),
                note="Separation is scored on pairs that were not used to find the direction or the"
                " layer. AMS: the number that ams-scanner prints, fitted and scored on the same"
                " pairs; much of it can be overfitting.",
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
                chart=partial(charts.refusal_rates, self),
            ),
            Section("model", "model", facts=self._model_facts()),
        ]
        for name, result in self.concepts.items():
            s = result.separation
            found += [
                Section(name, chart=partial(charts.projections, name, s)),
                Section(f"{name} swaps", chart=partial(charts.null_distribution, name, s)),
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
                    result.level,
                    str(s.layer),
                    str(s.n_pairs),
                )
            )
            records.append(
                {
                    "concept": name,
                    "level": result.level,
                    "low": s.interval[0],
                    "high": s.interval[1],
                    **{each: getattr(s, each) for each in names},
                }
            )
        return Table(
            columns=(
                Column("concept", whole=True),
                *numeric,
                Column("level", whole=True, tones=TONES),
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
        harmful = with_interval(r.harmful_rate, r.harmful_interval, ".0%")
        benign = with_interval(r.benign_rate, r.benign_interval, ".0%")
        auroc = with_interval(r.auroc, r.auroc_interval, ".2f")
        return [
            ("refuses harmful", f"{harmful}, n = {r.n_harmful}"),
            ("refuses benign", f"{benign}, n = {r.n_benign}"),
            ("selectivity", with_interval(r.selectivity, r.interval, "+.2f")),
            (
                "refusal log-odds",
                f"gap {r.log_odds_gap:+.2f} nats, AUROC {auroc}; between twins in the same words"
                f" {r.twin_auroc:.2f}",
            ),
        ]

    def _other_facts(self) -> list[tuple[str, str]]:
        a = self.ablation
        if a.detected is None:
            facts = [("ablation", f"not searched: {a.reason}")]
        else:
            what = f"erased in {len(a.layers)} layers" if a.detected else "no erased direction"
            facts = [("ablation", f"{what} (eigenvalue ratio {a.eigenvalue_ratio:.2g})")]
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


def _concept_dict(result: ConceptResult) -> dict[str, Any]:
    values = asdict(result.separation)
    del values["null"]  # thousands of numbers; the report's charts have them
    values["by_layer"] = _text_keys(values["by_layer"])
    values["interval_by_layer"] = {
        str(layer): list(interval)
        for layer, interval in result.separation.interval_by_layer.items()
    }
    values["null_by_layer"] = _text_keys(values["null_by_layer"])
    return {**values, "level": result.level}


def _ablation_dict(ablation: AblationEvidence) -> dict[str, Any]:
    values = {**asdict(ablation), "ratio_by_layer": _text_keys(ablation.ratio_by_layer)}
    return published(values, layers="blocks", ratio_by_layer="ratio_by_block")


def _text_keys(values: Mapping[int, float]) -> dict[str, float]:
    """Layer numbers as JSON's keys."""
    return {str(key): value for key, value in values.items()}
