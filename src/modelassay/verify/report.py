"""What a verification found out, as one frozen value with a versioned form for JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from modelassay.artifacts import Origin
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.measures.weight_sketch import WeightChange
from modelassay.report.base import Report
from modelassay.report.charts import PALETTE, bars_of_change, new_figure
from modelassay.report.sections import Column, Section, Status, Tone, table_of

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

SCHEMA = "modelassay.verify/1"
Outcome = Literal["same", "differs", "unknown"]
TONES: dict[str, Tone] = {"same": "good", "differs": "bad", "unknown": "muted"}
VERDICTS: dict[bool | None, tuple[str, Tone]] = {
    True: ("VERIFIED", "good"),
    False: ("NOT VERIFIED", "bad"),
    None: ("UNKNOWN", "neutral"),
}


class Kind(str, Enum):
    """What kind of difference there is."""

    IDENTICAL = "identical"
    RECAST = "requantized or cast"
    REWRAPPED = "same weights, other tokenizer, chat template or configuration"
    FINE_TUNE = "fine-tune"
    EDIT_OR_FINE_TUNE = "edit or fine-tune"
    ABLATED = "ablated"
    OTHER_MODEL = "different model of the same architecture"
    OTHER_ARCHITECTURE = "different architecture"


@dataclass(frozen=True)
class Differences:
    """A model against a baseline, by what was measured in both."""

    same_tokens: bool
    """Whether both read the same token ids; if not, activations cannot be compared."""
    weights: WeightChange | None
    """How the weights changed; None where they are packed, or are not the same set of matrices."""
    grids: tuple[str, ...]
    """Formats whose numbers this model's weights could be."""
    baseline_grids: tuple[str, ...]
    """The same of the baseline's."""
    cosines: dict[str, dict[int, float]]
    """For each concept, the cosine of its direction with the baseline's at each layer."""
    separation: dict[str, tuple[float, float, tuple[float, float]]]
    """For each concept: here, in the baseline, and the baseline's 95% interval (σ)."""
    distances: dict[int, float]
    """Relative distance of the signatures at each layer."""
    log_odds_rms: float
    """Root mean square change of the refusal log-odds on the probes, in nats."""
    log_odds_shift: tuple[float, float]
    """Mean change on harmful probes and on their harmless twins, in nats."""
    ablated: bool
    """Whether a direction is erased here and not in the baseline's model, by the weights alone."""
    quantized: bool
    """Whether one of the two was run on packed weights, whose arithmetic moves activations too."""
    bfloat16: bool
    """Whether one of the two was computed in bfloat16, which moves them as well."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        weights, (harmful, harmless) = self.weights, self.log_odds_shift
        return {
            "cosines": {name: _rounded(values) for name, values in self.cosines.items()},
            "separation": {
                name: {"model": here, "baseline": there, "baseline_interval": list(interval)}
                for name, (here, there, interval) in self.separation.items()
            },
            "signature_distance": _rounded(self.distances),
            "log_odds_rms": self.log_odds_rms,
            "log_odds_shift": {"harmful": harmful, "harmless": harmless},
            "ablated": self.ablated,
            "weights": weights
            and {
                "change_by_block": {str(layer): x for layer, x in weights.by_layer.items()},
                "change_elsewhere": weights.elsewhere,
                "changed_buffers": dict(weights.buffers),
                "resized": {name: asdict(size) for name, size in weights.resized.items()},
                "ablation": weights.mark and weights.mark.to_dict(),
            },
        }


def _rounded(by_layer: dict[int, float]) -> dict[str, float]:
    return {str(layer): round(value, 6) for layer, value in by_layer.items()}


@dataclass(frozen=True)
class Check:
    """One thing that was compared."""

    name: str
    outcome: Outcome
    detail: str


@dataclass(frozen=True)
class Finding:
    """The kind of difference, and whether it leaves the model what it claims to be."""

    kind: Kind | None
    """None where nothing could be compared."""
    reason: str
    verified: bool | None = False


def _made_now() -> dict[str, Any]:
    return {"versions": installed_versions(), "time": utc_now()}


@dataclass(frozen=True, kw_only=True)
class VerificationReport(Report):
    """Is the model the baseline's?"""

    model: str
    """Id of the model that was looked at."""
    revision: str | None = None
    """Its Hub commit."""
    verified: bool | None = None
    """None where there is no baseline or the two cannot be compared."""
    kind: Kind | None = None
    checks: tuple[Check, ...] = ()
    baseline: Origin | None = None
    baseline_model: str | None = None
    """Id of the model that the baseline was made from."""
    reasons: tuple[str, ...]
    differences: Differences | None = None
    """None where hashes, or the lack of anything to compare, decided."""
    provenance: dict[str, Any] = field(default_factory=_made_now)

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
            "differences": self.differences and self.differences.to_dict(),
            "provenance": self.provenance,
        }

    def sections(self) -> list[Section]:
        """The verdict with all that was compared, and charts of what differs."""
        title, tone = VERDICTS[self.verified]
        verdict = f"{title}: {self.kind.value}" if self.kind else title
        checks = table_of(
            self.checks,
            [
                (Column("compared", whole=True), lambda check: check.name),
                (Column("outcome", whole=True, tones=TONES), lambda check: check.outcome),
                ("found", lambda check: check.detail),
            ],
        )
        return [
            Section(
                "checks",
                table=checks,
                facts=self._facts(),
                status=Status(verdict, tone, self.reasons, self.model),
            ),
            Section("likeness", "likeness by layer", chart=partial(similarity_by_layer, self)),
            Section(
                "weights", "changed weights by layer", chart=partial(weight_change_by_layer, self)
            ),
        ]

    def _facts(self) -> list[tuple[str, str]]:
        facts = [("model", self.model), ("revision", self.revision or "local")]
        if (origin := self.baseline) is not None:
            where = origin.source + (f", by {origin.author}" if origin.author else "")
            facts += [
                ("baseline", f"{origin.id} ({where})"),
                ("of model", self.baseline_model or "unknown"),
            ]
            facts += [("commit", origin.revision)] if origin.revision else []
        if self.kind is not None:
            facts.append(("difference", self.kind.value))
        return facts


def similarity_by_layer(report: VerificationReport) -> Figure | None:
    """Cosine of each concept's direction with the baseline's, and likeness of the signatures."""
    found = report.differences
    if found is None or not found.same_tokens:
        return None
    figure = new_figure("Likeness to the baseline by layer", "layer", "1 = the same")
    for i, (name, values) in enumerate(found.cosines.items()):
        figure.add_scatter(
            x=list(values),
            y=list(values.values()),
            name=f"{name}: cosine",
            line={"color": PALETTE[i % len(PALETTE)], "width": 2.5},
        )
    figure.add_scatter(
        x=list(found.distances),
        y=[1 - distance for distance in found.distances.values()],
        name="signature: 1 - distance",
        mode="lines+markers",
        line={"color": PALETTE[-1], "dash": "dot"},
    )
    figure.update_yaxes(range=[min(-0.05, *(1 - d for d in found.distances.values())), 1.05])
    return figure


def weight_change_by_layer(report: VerificationReport) -> Figure | None:
    """How much each layer's weights differ from the baseline's, those with an ablation's mark."""
    found = report.differences
    if found is None or found.weights is None:
        return None
    weights = found.weights
    marked = weights.mark.layers if weights.mark else ()
    figure = new_figure("Change of the weights by layer", "layer", "relative change")
    bars_of_change(figure, weights.by_layer, marked)
    figure.update_yaxes(tickformat=".1%")
    return figure
