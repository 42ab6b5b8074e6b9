"""A report's numbers as rows of text, shared by the terminal, the HTML file and the page."""

from __future__ import annotations

from modelassay.scan.report import ScanReport
from modelassay.verify.report import VerificationReport

CONCEPT_HEADER = ["concept", "separation (95%)", "p", "AUROC", "AMS", "level"]
VERIFICATION_TITLES = {True: "VERIFIED", False: "NOT VERIFIED", None: "UNKNOWN"}
DETAIL_HEADER = [*CONCEPT_HEADER, "block", "pairs"]


def concept_rows(report: ScanReport, *, detailed: bool = True) -> list[list[str]]:
    """The header and one row a concept; without details they fit into 80 columns."""
    rows = [DETAIL_HEADER if detailed else CONCEPT_HEADER]
    for name, result in report.concepts.items():
        s = result.separation
        row = [
            name,
            f"{s.separation:.2f}σ ({s.interval[0]:.2f} to {s.interval[1]:.2f})",
            f"{s.p_value:.3f}" if s.p_value >= 0.001 else "<.001",
            f"{s.auroc:.2f}",
            f"{s.in_sample_separation:.2f}σ",
            result.level,
        ]
        rows.append([*row, str(s.layer), str(s.n_pairs)] if detailed else row)
    return rows


def fact_rows(report: ScanReport) -> list[list[str]]:
    """Behaviour, weights, comparison and provenance as (name, value)."""
    rows: list[list[str]] = []
    r = report.refusal
    if r is None:
        rows.append(["refusal", f"not measured: {report.refusal_unscored}"])
    else:
        rows += [
            ["refuses harmful", f"{_rate(r.harmful_rate, r.harmful_interval)}, n = {r.n_harmful}"],
            ["refuses benign", f"{_rate(r.benign_rate, r.benign_interval)}, n = {r.n_benign}"],
            ["selectivity", f"{r.selectivity:+.2f} ({r.interval[0]:+.2f} to {r.interval[1]:+.2f})"],
            [
                "refusal log-odds",
                f"gap {r.log_odds_gap:+.2f} nats, AUROC {r.auroc:.2f} ({r.auroc_interval[0]:.2f} to"
                f" {r.auroc_interval[1]:.2f}); between twins in the same words {r.twin_auroc:.2f}",
            ],
        ]
    a = report.ablation
    if a.detected is None:
        rows.append(["ablation", f"not searched: {a.reason}"])
    else:
        found = f"erased in {len(a.blocks)} blocks" if a.detected else "no erased direction"
        rows.append(["ablation", f"{found} (eigenvalue ratio {a.eigenvalue_ratio:.2g})"])
    if (other := report.compare) is not None:
        drifts = [f"{name} {drift:+.2f}σ" for name, drift in report.separation_drifts().items()]
        rows.append([f"against {other.model.id}", f"{other.verdict.value}; {', '.join(drifts)}"])
    if (v := report.verification) is not None:
        outcome = VERIFICATION_TITLES[v.verified].lower()
        rows.append([f"against {v.baseline_model}", f"{outcome}: {' '.join(v.reasons)}"])
    m = report.model
    rows += [["organism", m.organism]] if m.organism else []
    rows += [
        ["model", m.name],
        ["revision", m.revision or "local"],
        ["architecture", f"{m.architecture}, {m.n_layers} blocks, width {m.hidden_size}"],
        ["numbers", m.dtype + (f", {m.quantization}" if m.quantization else "")],
        ["weights sha256", m.weights_sha256],
        ["mode", report.mode],
        ["time", report.provenance["time"]],
    ]
    return rows


def check_rows(report: VerificationReport) -> list[list[str]]:
    """The header and one row for each thing that was compared."""
    return [
        ["compared", "outcome", "found"],
        *([check.name, check.outcome, check.detail] for check in report.checks),
    ]


def verification_rows(report: VerificationReport) -> list[list[str]]:
    """Model, baseline and kind of difference as (name, value)."""
    rows = [["model", report.model], ["revision", report.revision or "local"]]
    if (origin := report.baseline) is not None:
        where = origin.source + (f", by {origin.author}" if origin.author else "")
        rows += [
            ["baseline", f"{origin.id} ({where})"],
            ["of model", report.baseline_model or "unknown"],
        ]
        rows += [["commit", origin.revision]] if origin.revision else []
    if report.kind is not None:
        rows.append(["difference", report.kind.value])
    return rows


def _rate(value: float, interval: tuple[float, float]) -> str:
    return f"{value:.0%} ({interval[0]:.0%} to {interval[1]:.0%})"
