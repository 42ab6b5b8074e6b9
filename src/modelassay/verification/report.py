"""What a verification found out, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modelassay.baselines.stores import Origin
from modelassay.verification.differences import Differences, Kind

SCHEMA = "modelassay.verify/1"
Outcome = Literal["same", "differs", "unknown"]


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class VerificationReport:
    """Is the model the baseline's?"""

    model: str
    """Id of the model that was looked at."""
    revision: str | None
    """Its Hub commit."""
    verified: bool | None
    """None where there is no baseline or the two cannot be compared."""
    kind: Kind | None
    checks: tuple[Check, ...]
    baseline: Origin | None
    baseline_model: str | None
    """Id of the model that the baseline was made from."""
    reasons: tuple[str, ...]
    differences: Differences | None = None
    """None where hashes, or the lack of anything to compare, decided."""
    provenance: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-ready values, schema `modelassay.verify/1`."""
        return {
            "schema": SCHEMA,
            "model": {"id": self.model, "revision": self.revision},
            "verified": self.verified,
            "kind": self.kind.value if self.kind else None,
            "reasons": list(self.reasons),
            "checks": [vars(check) for check in self.checks],
            "baseline": {**self.baseline.to_dict(), "model": self.baseline_model}
            if self.baseline
            else None,
            "differences": _differences_dict(self.differences),
            "provenance": self.provenance,
        }


def _differences_dict(found: Differences | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "cosines": {
            name: {str(block): round(value, 6) for block, value in values.items()}
            for name, values in found.cosines.items()
        },
        "separation": {
            name: {"model": here, "baseline": there, "baseline_interval": list(interval)}
            for name, (here, there, interval) in found.separation.items()
        },
        "signature_distance": {str(k): round(v, 6) for k, v in found.distances.items()},
        "log_odds_rms": found.log_odds_rms,
        "log_odds_shift": {
            "harmful": found.log_odds_shift[0],
            "harmless": found.log_odds_shift[1],
        },
        "ablated": found.ablated,
    }
