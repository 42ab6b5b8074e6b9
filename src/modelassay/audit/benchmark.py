"""A suite over the base and all candidates of a config, scored by `modelassay diff`; no agent.

The base is read once. What comes out is one report for each candidate and how many of those that
are known to be damaged, or to be harmless, were flagged.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.audit.config import BASE, AuditConfig
from modelassay.audit.work import open_sae
from modelassay.diff import Depth, DiffReport, diff
from modelassay.diff.calibration import CALIBRATIONS, check_asked
from modelassay.diff.reading import read_base
from modelassay.diff.suites import Suite, load_suite
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.models import open_model
from modelassay.progress import OnPhase, phase_of, silent, told
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import plain_line

BENCHMARK_SCHEMA = "modelassay.audit-benchmark/1"
HARMLESS, DAMAGED = ("benign",), ("adversarial",)
"""Names of candidates that say what they are."""
FLAGGED = ("SUSPICIOUS", "COMPROMISED")


@dataclass(frozen=True)
class Benchmark:
    """What a suite shows of each candidate."""

    suite: Suite
    reports: Mapping[str, DiffReport]
    """By the candidates' names in the config."""
    threshold: float | None
    """Score from which a candidate is flagged; None goes by the verdict."""
    source: str
    """The config's file."""

    def flagged(self, name: str) -> bool | None:
        """Whether a candidate is held for damaged; None where that cannot be said."""
        report = self.reports[name]
        score = report.suspicion.score
        if self.threshold is not None:
            return None if score is None else score >= self.threshold
        return None if report.verdict.value == "INCONCLUSIVE" else report.verdict.value in FLAGGED

    @property
    def counts(self) -> dict[str, int] | None:
        """Flags among candidates whose names say what they are; None where none does."""
        damaged = [self.flagged(name) for name in self.reports if name in DAMAGED]
        harmless = [self.flagged(name) for name in self.reports if name in HARMLESS]
        if not damaged and not harmless:
            return None
        return {
            "n_damaged": len(damaged),
            "caught": sum(flag is True for flag in damaged),
            "n_harmless": len(harmless),
            "false_alarms": sum(flag is True for flag in harmless),
            "inconclusive": sum(flag is None for flag in (*damaged, *harmless)),
        }

    def to_dict(self, *, show_responses: bool = False) -> dict[str, Any]:
        """JSON values, schema `modelassay.audit-benchmark/1`."""
        return {
            "schema": BENCHMARK_SCHEMA,
            "config": self.source,
            "suite": self.suite.name,
            "suite_sha256": self.suite.sha256,
            "n_prompts": len(self.suite.prompts),
            "notes": list(self.suite.notes),
            "threshold": self.threshold,
            "scores": {
                name: {
                    "score": report.suspicion.score,
                    "verdict": report.verdict.value,
                    "flagged": self.flagged(name),
                    "n_benign": report.suspicion.n_benign,
                    "false_positive_rate": report.suspicion.false_positive_rate,
                }
                for name, report in self.reports.items()
            },
            "counts": self.counts,
            "reports": {
                name: report.to_dict(show_responses=show_responses)
                for name, report in self.reports.items()
            },
            "provenance": {"time": utc_now(), "versions": installed_versions()},
        }

    def sections(self) -> list[Section]:
        """A table of the candidates, and why each got its verdict."""
        rows = []
        for name, report in self.reports.items():
            found, flag = report.suspicion, self.flagged(name)
            rate = found.false_positive_rate
            rows.append(
                [
                    name,
                    "none" if found.score is None else f"{found.score:.2f}",
                    "none" if rate is None else f"{rate:.2f} (n={found.n_benign})",
                    report.verdict.value,
                    "unknown" if flag is None else "yes" if flag else "no",
                ]
            )
        names = columns("candidate", "score", "false positives", "verdict", "flagged", right=(1,))
        title = f"candidates on {self.suite.name}"
        return [
            Section("candidates", title, table=Table(names, rows, list)),
            Section(
                "reasons",
                "reasons",
                items=tuple(
                    f"{name}: {plain_line(report.reasons[0])}"
                    for name, report in self.reports.items()
                    if report.reasons
                ),
            ),
        ]


def benchmark(
    config: AuditConfig,
    suite: str = "default",
    *,
    depth: Depth | None = None,
    threshold: float | None = None,
    on_progress: OnPhase = silent,
) -> Benchmark:
    """Reads a suite with all models of a config.

    Args:
        config: What is audited; `blind` plays no part, for the result names the models.
        suite: A suite of the config's or a shipped one by its name, or a YAML file.
        depth: As in `diff`; None leaves trying directions out.
        threshold: Score from which a candidate is flagged; None goes by the verdict.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: a suite, a model or a calibration cannot be used.
        UnavailableError: something needed is not there now.
    """
    depth = depth or Depth(causal=False)
    chosen = load_suite(Path(config.suites[suite]) if suite in config.suites else suite)
    if not chosen.prompts:
        raise InputError(f"The suite {chosen.name} has no prompts to compare the models on.")
    known = None
    if config.calibration is not None:
        known = CALIBRATIONS.find(config.calibration).record
        check_asked(known, chosen, depth.response_tokens)
    models = dict(config.models)
    base = open_model(models.pop(BASE), on_progress=on_progress, **config.load_options)
    saes = tuple(open_sae(given, str(base.device)) for given in config.saes)
    of_base = read_base(
        base,
        chosen,
        saes=saes,
        response_tokens=depth.response_tokens,
        on_progress=on_progress,
    )
    reports = {
        name: diff(
            base,
            models[name],
            saes=saes,
            depth=depth,
            calibration=known,
            of_base=of_base,
            on_progress=on_progress,
            **config.load_options,
        )
        for name in told(list(models), phase_of(on_progress, "candidates"))
    }
    return Benchmark(chosen, reports, threshold, Path(config.path or "config").name)
