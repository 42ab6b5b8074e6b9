"""What a scan found out, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from modelassay.measures.erased_directions import AblationEvidence
from modelassay.measures.refusal import RefusalEvidence
from modelassay.measures.separation import Separation
from modelassay.models import ModelInfo
from modelassay.scan.verdict import Verdict
from modelassay.verify.report import VerificationReport

SCHEMA = "modelassay.scan/1"


@dataclass(frozen=True)
class ConceptResult:
    """One concept's separation and what it is called."""

    separation: Separation
    level: str
    """PASS, WARNING, CRITICAL or INCONCLUSIVE by AMS's thresholds, or CONTROL."""
    description: str = ""


@dataclass(frozen=True)
class ScanReport:
    """Everything a scan found out."""

    model: ModelInfo
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

    def separation_drifts(self) -> dict[str, float]:
        """Separation here minus that of the compared model, for the concepts both have."""
        if self.compare is None:
            return {}
        return {
            name: result.separation.separation - self.compare.concepts[name].separation.separation
            for name, result in self.concepts.items()
            if name in self.compare.concepts
        }

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
    return {**asdict(ablation), "ratio_by_block": _text_keys(ablation.ratio_by_block)}


def _text_keys(values: Mapping[int, float]) -> dict[str, float]:
    """Block numbers as JSON's keys."""
    return {str(key): value for key, value in values.items()}
