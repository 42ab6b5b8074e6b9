"""A suite over the base and all candidates of a config, scored by `modelassay diff`; no agent.

The base is read once. What comes out is one report for each candidate and how many of those that
are known to be damaged, or to be harmless, were flagged. Reports are kept as they come: a candidate
that fails takes no other one with it, and the same call goes on where it stopped.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.audit.config import BASE, AuditConfig
from modelassay.audit.work import open_sae
from modelassay.diff import Depth, DiffReport, diff
from modelassay.diff.calibration import CALIBRATIONS, Calibration, check_asked
from modelassay.diff.reading import BaseReading, read_base
from modelassay.diff.suites import Suite, load_suite
from modelassay.errors import AssayError, InputError
from modelassay.files.atomic import explain_os_errors
from modelassay.files.journal import Journal, open_journal
from modelassay.files.provenance import installed_versions, json_hash, utc_now
from modelassay.models import LoadedModel, ModelRef, open_model
from modelassay.progress import OnPhase, phase_of, silent, told
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import plain_line
from modelassay.sae import SAE

BENCHMARK_SCHEMA = "modelassay.audit-benchmark/1"
PARTS_SCHEMA = "modelassay.audit-benchmark-parts/1"
HARMLESS, DAMAGED = ("benign",), ("adversarial",)
"""Names of candidates that say what they are."""
FLAGGED = ("SUSPICIOUS", "COMPROMISED")


@dataclass(frozen=True)
class CandidateScore:
    """What a suite shows of one candidate."""

    score: float | None
    verdict: str
    n_benign: int
    """Benign fine-tunes that it was held against."""
    false_positive_rate: float | None
    reason: str | None
    """The first reason of the verdict."""
    report: Mapping[str, Any]
    """All of it, `modelassay.diff/1`."""

    @classmethod
    def of(cls, report: DiffReport, *, show_responses: bool) -> CandidateScore:
        """That of a report."""
        found = report.suspicion
        return cls(
            found.score,
            report.verdict.value,
            found.n_benign,
            found.false_positive_rate,
            report.reasons[0] if report.reasons else None,
            report.to_dict(show_responses=show_responses),
        )


@dataclass(frozen=True)
class Benchmark:
    """What a suite shows of each candidate."""

    suite: Suite
    scores: Mapping[str, CandidateScore]
    """By the candidates' names in the config."""
    failed: Mapping[str, str]
    """Candidates that could not be compared, and why."""
    threshold: float | None
    """Score from which a candidate is flagged; None goes by the verdict."""
    source: str
    """The config's file."""

    def flagged(self, name: str) -> bool | None:
        """Whether a candidate is held for damaged; None where that cannot be said."""
        found = self.scores.get(name)
        if found is None:
            return None
        if self.threshold is not None:
            return None if found.score is None else found.score >= self.threshold
        return None if found.verdict == "INCONCLUSIVE" else found.verdict in FLAGGED

    @property
    def counts(self) -> dict[str, int] | None:
        """Flags among candidates whose names say what they are; None where none does.

        One that failed is among the inconclusive ones.
        """
        names = [*self.scores, *self.failed]
        damaged = [self.flagged(name) for name in names if name in DAMAGED]
        harmless = [self.flagged(name) for name in names if name in HARMLESS]
        if not damaged and not harmless:
            return None
        return {
            "n_damaged": len(damaged),
            "caught": sum(flag is True for flag in damaged),
            "n_harmless": len(harmless),
            "false_alarms": sum(flag is True for flag in harmless),
            "inconclusive": sum(flag is None for flag in (*damaged, *harmless)),
        }

    def to_dict(self) -> dict[str, Any]:
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
                    "score": found.score,
                    "verdict": found.verdict,
                    "flagged": self.flagged(name),
                    "n_benign": found.n_benign,
                    "false_positive_rate": found.false_positive_rate,
                }
                for name, found in self.scores.items()
            },
            "failed": dict(self.failed),
            "counts": self.counts,
            "reports": {name: found.report for name, found in self.scores.items()},
            "provenance": {"time": utc_now(), "versions": installed_versions()},
        }

    def sections(self) -> list[Section]:
        """A table of the candidates, and why each got its verdict."""
        rows = []
        for name, found in self.scores.items():
            rate, flag = found.false_positive_rate, self.flagged(name)
            rows.append(
                [
                    name,
                    "none" if found.score is None else f"{found.score:.2f}",
                    "none" if rate is None else f"{rate:.2f} (n={found.n_benign})",
                    found.verdict,
                    "unknown" if flag is None else "yes" if flag else "no",
                ]
            )
        rows += [[name, "none", "none", "FAILED", "unknown"] for name in self.failed]
        names = columns("candidate", "score", "false positives", "verdict", "flagged", right=(1,))
        title = f"candidates on {self.suite.name}"
        why = {name: found.reason for name, found in self.scores.items() if found.reason}
        why |= self.failed
        return [
            Section("candidates", title, table=Table(names, rows, list)),
            Section(
                "reasons",
                "reasons",
                items=tuple(f"{name}: {plain_line(reason)}" for name, reason in why.items()),
            ),
        ]


def benchmark(
    config: AuditConfig,
    suite: str = "default",
    *,
    depth: Depth | None = None,
    threshold: float | None = None,
    show_responses: bool = False,
    keep: Path | None = None,
    force: bool = False,
    on_progress: OnPhase = silent,
) -> Benchmark:
    """Reads a suite with all models of a config.

    Args:
        config: What is audited; `blind` plays no part, for the result names the models.
        suite: A suite of the config's or a shipped one by its name, or a YAML file.
        depth: As in `diff`; None leaves trying directions out.
        threshold: Score from which a candidate is flagged; None goes by the verdict.
        show_responses: Give responses as text in the reports, not as hashes.
        keep: File for finished reports, in a folder that is made if it is not there; the same call
            goes on with them, and it is deleted when no candidate failed.
        force: Begin again over reports of another benchmark.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: a suite, the base or a calibration cannot be used, or no candidate can.
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
    base = models.pop(BASE)
    identity = _identity(config, base, chosen, depth, show_responses)
    with _kept(keep, identity, force) as journal:
        scores = _read_parts(journal, models)
        failed: dict[str, AssayError] = {}
        asker: _Asker | None = None
        for name in told(list(models), phase_of(on_progress, "candidates")):
            if name in scores:
                continue
            asker = asker or _Asker(config, base, chosen, depth, known, on_progress)
            try:
                report = asker.compare(models[name])
            except AssayError as error:
                failed[name] = error
                continue
            scores[name] = CandidateScore.of(report, show_responses=show_responses)
            if journal is not None:
                part = {"name": name, "model": _stamp(models[name]), **asdict(scores[name])}
                journal.add(part)
        if not scores:
            raise next(iter(failed.values()))
    if keep is not None and not failed:
        keep.unlink(missing_ok=True)
    return Benchmark(
        chosen,
        {name: scores[name] for name in models if name in scores},
        {name: str(error) for name, error in failed.items()},
        threshold,
        Path(config.path or "config").name,
    )


class _Asker:
    """The base, read once, and how candidates are held against it."""

    def __init__(
        self,
        config: AuditConfig,
        base: ModelRef,
        suite: Suite,
        depth: Depth,
        calibration: Calibration | None,
        on_progress: OnPhase,
    ) -> None:
        """Loads and reads the base."""
        self.config, self.depth, self.calibration = config, depth, calibration
        self.on_progress = on_progress
        self.base: LoadedModel = open_model(base, on_progress=on_progress, **config.load_options)
        device = str(self.base.device)
        self.saes: tuple[SAE, ...] = tuple(open_sae(given, device) for given in config.saes)
        self.of_base: BaseReading = read_base(
            self.base,
            suite,
            saes=self.saes,
            response_tokens=depth.response_tokens,
            on_progress=on_progress,
        )

    def compare(self, candidate: ModelRef) -> DiffReport:
        """A candidate's report."""
        return diff(
            self.base,
            candidate,
            saes=self.saes,
            depth=self.depth,
            calibration=self.calibration,
            of_base=self.of_base,
            on_progress=self.on_progress,
            **self.config.load_options,
        )


def _identity(
    config: AuditConfig, base: ModelRef, suite: Suite, depth: Depth, show_responses: bool
) -> dict[str, Any]:
    """What reports depend on besides the candidate."""
    settings = config.model_dump(
        mode="json", include={"dtype", "device", "saes", "calibration", "seed"}
    )
    return {
        "base": _stamp(base),
        "suite": suite.sha256,
        "depth": asdict(depth),
        "responses": show_responses,
        "settings": json_hash(settings),
        "versions": installed_versions(),
    }


def _stamp(model: ModelRef) -> str:
    """A hash of what names a model and, of its files on this machine, of their sizes and times."""
    files = [
        [str(path), found.st_size, found.st_mtime_ns]
        for place in (model.id, model.adapter)
        if place is not None and Path(place).exists()
        for path in sorted([Path(place), *Path(place).glob("*")])
        if path.is_file() and (found := path.stat())
    ]
    return json_hash({**asdict(model), "files": files})


@contextmanager
def _kept(keep: Path | None, identity: Mapping[str, Any], force: bool) -> Iterator[Journal | None]:
    """The journal of finished reports; one that holds none is not left behind."""
    if keep is None:
        yield None
        return
    made = not keep.parent.exists()
    with explain_os_errors(f"making {keep.parent}"):
        keep.parent.mkdir(parents=True, exist_ok=True)
    is_empty = False
    try:
        with open_journal(
            keep,
            PARTS_SCHEMA,
            identity,
            called="reports of a benchmark",
            option="--out",
            force=force,
        ) as journal:
            try:
                yield journal
            finally:
                is_empty = next(journal.entries(), None) is None
    finally:
        if is_empty:
            keep.unlink()
            if made and not any(keep.parent.iterdir()):
                keep.parent.rmdir()


def _read_parts(
    journal: Journal | None, models: Mapping[str, ModelRef]
) -> dict[str, CandidateScore]:
    """Reports that an earlier call finished, of models that are still the same."""
    found: dict[str, CandidateScore] = {}
    for line in journal.entries() if journal is not None else ():
        part = json.loads(line)
        name, stamp = part.pop("name"), part.pop("model")
        if name in models and stamp == _stamp(models[name]):
            found[name] = CandidateScore(**part)
    return found
