"""Do `scan`, `verify` and `diff` say the same of one model?

Each looks at other evidence, so they may differ in what they see, but what one states must not
exclude what another states. What would be a contradiction is written down in `contradictions`;
`validity.py` holds the organisms against it.
"""

from __future__ import annotations

from dataclasses import dataclass

from modelassay.diff import DiffReport
from modelassay.scan.report import ScanReport
from modelassay.verify.report import VerificationReport


@dataclass(frozen=True)
class Verdicts:
    """What is said of one model, and of the base that it is held against."""

    scan: str
    base_scan: str
    erased: bool | None
    """Whether the weights alone show an erased direction; None where they were not searched."""
    base_erased: bool | None
    verified: bool | None
    kind: str | None
    """Of difference, as `verify` says it."""
    diff: str
    edited: bool | None
    """Whether the change of the weights is a directional edit; None where it was not searched."""
    identical: bool
    """Whether `diff` found all weights equal."""
    families: tuple[str, ...] = ()
    """Of formulas that `verify` and `diff` name, where they are certain."""


def verdicts_of(
    found: ScanReport, base: ScanReport, verified: VerificationReport, compared: DiffReport
) -> Verdicts:
    """The three reports on a model, and the scan of its base, as a row."""
    weights, differences = compared.weights, verified.differences
    sketch = differences.weights if differences else None
    marks = (sketch and sketch.mark, weights and weights.mark)
    return Verdicts(
        scan=found.verdict.value,
        base_scan=base.verdict.value,
        erased=found.ablation.detected,
        base_erased=base.ablation.detected,
        verified=verified.verified,
        kind=verified.kind and verified.kind.value,
        diff=compared.verdict.value,
        edited=None if weights is None or weights.unsearched else weights.mark is not None,
        identical=weights is not None and weights.identical,
        families=tuple(
            family for mark in marks if mark and (family := getattr(mark, "family", None))
        ),
    )


def contradictions(row: Verdicts) -> list[str]:
    """What excludes what among three verdicts, in words; empty where they agree.

    These do not contradict each other: a scan that passes while the weights were edited, for an
    edit that leaves refusals whole shows beside the base alone; a `verify` that says "fine-tune" of
    an edit that its sketch does not show, which is what it says of any change; and a scan or
    comparison that cannot tell.
    """
    new = row.erased and not row.base_erased
    said = {
        "scan finds a direction erased that the base has, diff no edit": new
        and row.edited is False,
        "scan finds a direction erased that the base has, verify none": new
        and row.kind is not None
        and row.kind != "ablated",
        "verify finds an ablation, diff no edit": row.kind == "ablated" and row.edited is False,
        "diff finds a directional edit, verify no change of the weights": bool(row.edited)
        and row.kind not in (None, "ablated", "fine-tune", "edit or fine-tune"),
        "diff finds a directional edit, and calls it harmless": bool(row.edited)
        and row.diff != "COMPROMISED",
        "verify says that it is the model, diff that it is not": bool(row.verified)
        and row.diff in ("SUSPICIOUS", "COMPROMISED"),
        "diff finds it like benign ones, scan less safety than the base has": row.diff
        == "BENIGN-LIKE"
        and row.scan in ("CRITICAL", "WARNING")
        and row.base_scan == "PASS",
        "diff finds its refusals gone, scan finds them whole": row.diff == "COMPROMISED"
        and not row.edited
        and row.scan == "PASS",
        "the weights are the base's, yet the verdict is another": row.identical
        and row.scan != row.base_scan,
        "verify and diff name other families": len(set(row.families)) > 1,
    }
    return [what for what, holds in said.items() if holds]
