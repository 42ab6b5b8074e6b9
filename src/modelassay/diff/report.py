"""What a comparison found out, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from modelassay.diff.activations import ActivationDiff
from modelassay.diff.behaviour import BehaviourDiff
from modelassay.diff.causal import Intervention
from modelassay.diff.features import Q_LEVEL, FeatureChange, SAEDiff
from modelassay.diff.suites import Suite
from modelassay.diff.triggers import TriggerSearch
from modelassay.diff.verdict import DiffVerdict, Suspicion
from modelassay.diff.weights import WeightDiff
from modelassay.files.redaction import redact
from modelassay.models import ModelIdentity
from modelassay.report.sections import Report, Section

SCHEMA = "modelassay.diff/1"


@dataclass(frozen=True)
class DiffReport(Report):
    """Everything a comparison found out."""

    base: ModelIdentity
    candidate: ModelIdentity
    verdict: DiffVerdict
    suspicion: Suspicion
    reasons: tuple[str, ...]
    weights: WeightDiff | None
    weights_unscored: str | None
    """Why `weights` is None."""
    behaviour: BehaviourDiff
    activations: ActivationDiff
    triggers: TriggerSearch | None
    """None where there was no harmful prompt or it was not asked for."""
    saes: tuple[SAEDiff, ...]
    causal: tuple[Intervention, ...]
    suite: Suite
    provenance: dict[str, Any]

    def sections(self, *, show_responses: bool = False) -> list[Section]:
        """The verdict, every stream of evidence, and what was compared.

        Args:
            show_responses: Show short responses that differ.
        """
        from modelassay.diff.sections import make_sections

        return make_sections(self, show_responses=show_responses)

    def top_features(self, top: int) -> list[FeatureChange]:
        """The significant changes first, by how far they moved the residual stream."""
        changes = [change for found in self.saes for change in found.features]
        return sorted(changes, key=lambda c: (c.q_value >= Q_LEVEL, -c.moved))[:top]

    def to_dict(self, *, show_responses: bool = False) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.diff/1`.

        Args:
            show_responses: Give short responses as text; otherwise only their hashes, for what a
                damaged model answers may be harmful.
        """
        weights = {"unscored": self.weights_unscored}
        triggers = self.triggers.to_dict() if self.triggers else None
        return {
            "schema": SCHEMA,
            "base": self.base.to_dict(),
            "candidate": self.candidate.to_dict(),
            "verdict": self.verdict.value,
            "suspicion": self.suspicion.to_dict(),
            "reasons": list(self.reasons),
            "weights": weights if self.weights is None else self.weights.to_dict(),
            "behaviour": {**self.behaviour.to_dict(), "answers": self._responses(show_responses)},
            # Triggers stood among the activations once, and can still be read there.
            "activations": {**self.activations.to_dict(), "triggers": triggers},
            "triggers": triggers,
            "features": [f.to_dict() for found in self.saes for f in found.features],
            "dictionaries": [found.to_dict() for found in self.saes],
            "causal": [tried.to_dict() for tried in self.causal],
            "provenance": self.provenance,
        }

    def _responses(self, show: bool) -> list[dict[str, Any]]:
        pairs = zip(self.suite.prompts, self.behaviour.responses, strict=False)
        return [
            {
                "prompt": prompt.text if show else redact(prompt.text),
                "group": prompt.group,
                "base": before if show else redact(before),
                "candidate": after if show else redact(after),
            }
            for prompt, (before, after) in pairs
        ]
