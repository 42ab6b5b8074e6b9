"""A scan beside a baseline: what moved, as far as the two numbers are of the same thing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.artifacts import Origin
from modelassay.measures.refusal_evidence import RefusalEvidence
from modelassay.measures.separation import Separation
from modelassay.models import LoadedModel, ModelRef
from modelassay.models.embedded import BASES
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import with_interval
from modelassay.statistics import Interval, difference_interval
from modelassay.verify import BASELINES, Baseline, load_baseline
from modelassay.verify.baseline import RefusalRecord

OURS = "modelassay"
NOT_OURS = (
    "Its numbers are those of ams-scanner: fitted and scored on the same prompts, and read at"
    " padding where prompts of a batch differ in length. They stand beside the same statistic read"
    " at the last token here. It does not say which prompts it read, nor has it a hash: a drift"
    " can come from other prompts or padding, and none proves that the models are the same."
)
RAW = (
    "ams-scanner reads raw prompts and this scan read them inside the chat template:"
    " --no-chat-template reads them raw too."
)


@dataclass(frozen=True)
class Drift:
    """A concept's separation in a scan and in a baseline (σ)."""

    separation: float
    baseline: float
    drift: float
    """The first less the second."""
    drift_percent: float | None
    """Of the second; None where that is not above zero."""
    baseline_interval: tuple[float, float] | None
    """95%; None where it was not measured."""
    in_sample: bool
    """Whether both were fitted and scored on the same pairs, as ams-scanner does."""


@dataclass(frozen=True)
class BaselineComparison:
    """What moved since a baseline was made, or between its model and the one scanned."""

    baseline: Origin
    model: str
    """Id of the model that the baseline was made from."""
    instrument: str
    """What measured it."""
    concepts: Mapping[str, Drift]
    selectivity_drift: float | None
    """Of the refusals; None where one of the two did not measure them."""
    selectivity_drift_interval: Interval | None
    """95%, of the two intervals together."""
    limits: tuple[str, ...]
    """What was not compared, and what the rest cannot prove."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {
            "baseline": {**self.baseline.to_dict(), "model": self.model},
            "instrument": self.instrument,
            "concepts": {name: asdict(drift) for name, drift in self.concepts.items()},
            "selectivity_drift": self.selectivity_drift,
            "selectivity_drift_interval": self.selectivity_drift_interval,
            "limits": list(self.limits),
        }

    def section(self) -> Section:
        """Of a report."""
        rows = [
            (
                name,
                f"{each.separation:.2f}σ",
                f"{each.baseline:.2f}σ",
                f"{each.drift:+.2f}σ"
                + ("" if each.drift_percent is None else f" ({each.drift_percent:+.0f}%)"),
            )
            for name, each in self.concepts.items()
        ]
        facts = [("baseline", f"{self.baseline}, measured by {self.instrument}")]
        if self.selectivity_drift is not None and self.selectivity_drift_interval is not None:
            told = with_interval(self.selectivity_drift, self.selectivity_drift_interval, "+.2f")
            facts.append(("selectivity", told))
        names = ("separation of", "here", "baseline", "drift")
        return Section(
            "baseline",
            f"against the baseline of {self.model}",
            table=Table(columns(*names, right=(1, 2, 3)), rows, self._records) if rows else None,
            facts=facts,
            note=" ".join(self.limits),
        )

    def _records(self) -> list[dict[str, Any]]:
        return [{"concept": name, **asdict(each)} for name, each in self.concepts.items()]


def find_compared(
    reference: str | ModelRef | LoadedModel | Baseline,
) -> tuple[Baseline, Origin] | None:
    """The baseline that is to be compared with; None where a model is named, which is scanned.

    A baseline is named by value, by the name of one of yours, its folder or its file; one of
    ams-scanner also by its model's id, as there. What comes with modelassay names a model.
    """
    if isinstance(reference, Baseline):
        return reference, Origin(reference.name, "folder")
    if isinstance(reference, ModelRef | LoadedModel) or reference in BASES:
        return None
    found = BASELINES.here(reference)
    if found is None:
        found = BASELINES.of_model(reference)
        if found is None or not found.folder.is_file():
            return None
    model = Path(reference).expanduser() / "config.json"
    if found.origin.source == "shipped" or model.is_file():
        return None
    return load_baseline(found.folder), found.origin


def compare_with(
    separations: Mapping[str, Separation],
    refusal: RefusalEvidence | None,
    provenance: Mapping[str, Any],
    baseline: Baseline,
    origin: Origin,
) -> BaselineComparison:
    """Holds what a scan measured against a baseline.

    Args:
        separations: By concept.
        refusal: Behaviour, if it was measured.
        provenance: Of the examination; has the hashes of the concepts.
        baseline: One of modelassay, or of ams-scanner.
        origin: Where that is from.
    """
    index = baseline.index
    own = index.instrument == OURS
    limits = [] if own else [NOT_OURS]
    same_text = index.chat_template_used == provenance["chat_template"]
    if not own and not same_text:
        limits.append(RAW)
    concepts: dict[str, Drift] = {}
    other: list[str] = []
    for name, found in separations.items():
        if (record := index.concepts.get(name)) is None:
            continue
        here = found.separation if own else found.in_sample_separation
        if own and (record.sha256 != provenance["concept_sha256"][name] or not same_text):
            other.append(name)
            continue
        there = record.separation
        drift = here - there
        percent = 100 * drift / there if there > 0 else None
        concepts[name] = Drift(here, there, drift, percent, record.interval, in_sample=not own)
    if other:
        limits.append(f"Read from other prompts, and not compared: {', '.join(other)}.")
    if alone := [name for name in index.concepts if name not in separations]:
        limits.append(f"Of the baseline alone: {', '.join(alone)}.")
    if alone := [name for name in separations if name not in index.concepts]:
        limits.append(f"Of this scan alone: {', '.join(alone)}.")
    moved, interval = selectivity_drift(refusal, index.refusal)
    limits += origin.remarks("baseline", index.model.id)
    return BaselineComparison(
        origin, index.model.id, index.instrument, concepts, moved, interval, tuple(limits)
    )


def selectivity_drift(
    here: RefusalEvidence | RefusalRecord | None, there: RefusalEvidence | RefusalRecord | None
) -> tuple[float | None, Interval | None]:
    """By how much the selectivity of refusals differs, and its 95% interval.

    Both are None where one of the two was not measured.
    """
    if here is None or there is None:
        return None, None
    interval = difference_interval(
        here.selectivity, here.interval, there.selectivity, there.interval
    )
    return here.selectivity - there.selectivity, interval
