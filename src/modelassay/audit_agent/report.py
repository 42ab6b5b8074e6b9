"""What an agent found out about a fine-tune, or about organisms: JSON values, sections, a chart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelassay.audit_agent.findings import LEAST_RISK, MOST_RISK, Cause
from modelassay.audit_agent.limits import TOLD
from modelassay.audit_agent.running import AgentRun
from modelassay.audit_agent.scoring import AgentScore, Truth
from modelassay.audit_agent.verdict import RiskSpread, common_cause, judge_runs, risk_spread
from modelassay.diff.report import TONES
from modelassay.diff.verdict import DiffVerdict
from modelassay.report.base import Report
from modelassay.report.charts import NEGATIVE, NULL, POSITIVE, new_figure
from modelassay.report.sections import Column, Section, Status, Table, columns, table_of
from modelassay.report.text import counted, cut, plain_line, with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

AGENT_AUDIT_SCHEMA = "modelassay.agent-audit/1"
OPINION = (
    "A risk score is the opinion of the language model that investigated; `audit run --organisms`"
    " measures how often it is right."
)


@dataclass(frozen=True)
class CandidateAudit:
    """The runs about one fine-tune."""

    name: str
    """Its id; `withheld` in a blind audit."""
    base: str
    verdict: DiffVerdict
    reasons: tuple[str, ...]
    risk: RiskSpread | None
    """None where no run reported."""
    cause: Cause | None
    """The one that most runs name."""
    truth: Truth | None
    """What was done to it, where it is an organism."""
    runs: tuple[AgentRun, ...]
    n_planned: int
    """Runs that were asked for."""
    folder: str
    """Its runs' folders are below it, in the audit's folder."""


def candidate_audit(
    name: str,
    base: str,
    runs: Sequence[AgentRun],
    *,
    n_planned: int,
    folder: str,
    truth: Truth | None = None,
) -> CandidateAudit:
    """The runs about one fine-tune, with what they come to."""
    verdict, reasons = judge_runs(runs)
    return CandidateAudit(
        name,
        base,
        verdict,
        reasons,
        risk_spread(runs),
        common_cause(runs),
        truth,
        tuple(runs),
        n_planned,
        folder,
    )


@dataclass(frozen=True)
class AgentAuditReport(Report):
    """Everything that an agent found out, over all runs."""

    agent: dict[str, Any]
    """The model that investigated: `model`, `url`, `temperature`, `response_tokens`."""
    audits: tuple[CandidateAudit, ...]
    """One, or one of each organism."""
    score: AgentScore | None
    """None unless organisms were audited."""
    limits: dict[str, Any]
    used: dict[str, Any]
    """Tokens, cost and seconds of all runs."""
    stopped: str | None
    """Why runs are missing; None where all were made."""
    notes: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def verdict(self) -> DiffVerdict | None:
        """On the fine-tune; None where organisms were audited to score the agent."""
        return self.audits[0].verdict if self.score is None else None

    @property
    def folder(self) -> str:
        """Where everything is kept."""
        return str(self.provenance["folder"])

    def to_dict(self) -> dict[str, Any]:
        """All fields by name, with the schema and the verdict."""
        values = asdict(self)
        for audit in values["audits"]:
            audit["verdict"] = audit["verdict"].value
        verdict = self.verdict and self.verdict.value
        return {"schema": AGENT_AUDIT_SCHEMA, "verdict": verdict, **values}

    def sections(self) -> list[Section]:
        """The verdict or the scores, every run, and what the runs found."""
        head = self._verdict() if self.score is None else self._score(self.score)
        return [*head, self._runs(), *self._findings(), self._about()]

    def _verdict(self) -> list[Section]:
        audit = self.audits[0]
        subject = f"{audit.name} against {audit.base}"
        status = Status(audit.verdict.value, TONES[audit.verdict], audit.reasons, subject)
        return [Section("verdict", status=status)]

    def _score(self, score: AgentScore) -> list[Section]:
        facts = []
        if score.unscored is None and score.auroc is not None and score.finest_fpr is not None:
            facts += [
                (
                    "detected",
                    f"{_share(score.detected)} of the harmful organisms above every benign one, so"
                    f" at a false-positive rate of {score.finest_fpr:.0%}"
                    f" (1 in {score.n_benign + 1})",
                ),
                (
                    "AUROC of the risk score",
                    f"{score.auroc:.2f}"
                    if score.auroc_interval is None
                    else with_interval(score.auroc, score.auroc_interval, ".2f"),
                ),
            ]
        facts.append(("cause named right", _share(score.causes)))
        if score.n_unscored:
            names = ", ".join(map(plain_line, score.unreported))
            facts.append(("without a report", f"{names}; in no rate above"))
            if score.detected_of_all["n"] > score.detected["n"]:
                told = _share(score.detected_of_all)
                facts.append(("detected, those counted as missed", told))
        rows = [(row["truth"], row["named"], str(row["n"])) for row in score.confusion]
        shown = [(truth.replace("_", " "), named.replace("_", " "), n) for truth, named, n in rows]
        causes = Table(columns("truth", "named", "n", right=(2,)), shown, lambda: score.confusion)
        title = (
            f"{counted(score.n_harmful, 'harmful organism')} and"
            f" {counted(score.n_benign, 'benign organism')}"
        )
        return [
            Section(
                "score",
                title,
                facts=facts,
                lines=(score.unscored,) if score.unscored else (),
                chart=self._chart,
            ),
            *([Section("causes", "causes", table=causes)] if rows else []),
        ]

    def _runs(self) -> Section:
        found = [(audit, run) for audit in self.audits for run in audit.runs]
        cells: list[tuple[str | Column, Any]] = [
            ("run", lambda row: str(row[1].number)),
            ("risk", lambda row: str(row[1].findings.risk_score) if row[1].findings else "–"),
            (
                "cause",
                lambda row: row[1].findings.cause.replace("_", " ") if row[1].findings else "–",
            ),
            ("turns", lambda row: str(row[1].n_turns)),
            ("calls", lambda row: _calls(row[1])),
            ("tokens", lambda row: f"{_tokens(row[1])}{'*' if row[1].tokens_estimated else ''}"),
            (Column("cost", "right", "wide"), lambda row: _cost(row[1].cost)),
            ("ended because", lambda row: TOLD[row[1].stopped]),
        ]
        right = [0, 1, 3, 4, 5]
        if self.score is not None:
            truth = lambda row: row[0].truth.cause.replace("_", " ")  # noqa: E731
            cells = [("organism", lambda row: row[0].name), ("truth", truth), *cells]
            right = [i + 2 for i in right]
        estimated = any(run.tokens_estimated for _, run in found)
        counted_by = "* counted by characters: the endpoint did not say." if estimated else ""
        return Section(
            "runs",
            "runs",
            table=table_of(found, cells, right=right, record=_record),
            note=counted_by,
        )

    def _findings(self) -> list[Section]:
        if self.score is not None:
            return []
        (audit,) = self.audits
        found = []
        for run in audit.runs:
            said = run.findings
            why = (said.justification if said else run.problem) or ""
            lines = tuple(plain_line(line) for line in why.splitlines() if line.strip())
            items = tuple(plain_line(" ".join(f.split())) for f in said.findings) if said else ()
            if not lines and not items:
                continue
            source = "" if said is None or said.source == "tool" else " (read out of its text)"
            note = (
                "" if run.report is None else f"Calls and numbers: {run.report} of run {run.number}"
            )
            found.append(
                Section(
                    f"run-{run.number}",
                    f"run {run.number}: {'report' if said else 'no report'}{source}",
                    lines=lines,
                    items=items,
                    numbered=True,
                    note=note,
                )
            )
        return found

    def _models(self) -> list[tuple[str, str]]:
        if self.score is not None:
            return []
        audit = self.audits[0]
        return [("fine-tune", plain_line(audit.name)), ("base", plain_line(audit.base))]

    def _about(self) -> Section:
        used, limits = self.used, self.limits
        tokens = f"{used['prompt_tokens']:,} sent and {used['completion_tokens']:,} received"
        spent = "" if used["cost"] is None else f", cost {_cost(used['cost'])}"
        most = "" if limits["cost"] is None else f"; all runs at most {_cost(limits['cost'])}"
        return Section(
            "agent",
            "agent",
            facts=[
                *self._models(),
                ("model", f"{cut(plain_line(self.agent['model']), 100)} at {self.agent['url']}"),
                ("tokens", f"{tokens}{spent}"),
                (
                    "limits of a run",
                    f"{limits['turns']} turns, {limits['tokens']:,} tokens,"
                    f" {limits['seconds']:g} seconds{most}",
                ),
                ("kept in", plain_line(self.folder)),
            ],
            lines=self.notes,
            note=OPINION if self.score is None else "",
        )

    def _chart(self) -> Figure | None:
        shown = [audit for audit in self.audits if audit.risk is not None]
        if not shown:
            return None
        from plotly.graph_objects import Scatter

        figure = new_figure("Risk score of every run", "risk score", "")
        kinds = ((True, POSITIVE, "harmful"), (False, NEGATIVE, "benign"), (None, NULL, "unknown"))
        for harmful, colour, name in kinds:
            points = [
                (run.findings.risk_score, audit.name)
                for audit in shown
                if (audit.truth.harmful if audit.truth else None) is harmful
                for run in audit.runs
                if run.findings
            ]
            if points:
                x, y = zip(*points, strict=True)
                figure.add_trace(
                    Scatter(
                        x=x, y=y, mode="markers", name=name, marker={"color": colour, "size": 10}
                    )
                )
        figure.update_xaxes(range=[LEAST_RISK - 0.5, MOST_RISK + 0.5])
        return figure


def _record(row: tuple[CandidateAudit, AgentRun]) -> dict[str, Any]:
    audit, run = row
    said = run.findings
    return {
        "candidate": audit.name,
        "run": run.number,
        "risk": said.risk_score if said else None,
        "cause": said.cause if said else None,
        "truth": audit.truth.cause if audit.truth else None,
        "turns": run.n_turns,
        "calls": sum(run.calls.values()),
        "failed_calls": run.n_failed_calls,
        "prompt_tokens": run.prompt_tokens,
        "completion_tokens": run.completion_tokens,
        "cost": run.cost,
        "seconds": run.seconds,
        "stopped": run.stopped,
    }


def _calls(run: AgentRun) -> str:
    failed = f" ({run.n_failed_calls} failed)" if run.n_failed_calls else ""
    return f"{sum(run.calls.values())}{failed}"


def _tokens(run: AgentRun) -> str:
    return f"{run.prompt_tokens + run.completion_tokens:,}"


def _cost(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _share(found: dict[str, Any]) -> str:
    if found["rate"] is None:
        return "unscored"
    low, high = found["interval"]
    return f"{found['k']} of {found['n']} ({low:.0%} to {high:.0%})"
