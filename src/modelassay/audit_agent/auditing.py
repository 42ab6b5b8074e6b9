"""`audit_with_agent()`: several runs of an agent over a fine-tune, or over organisms to score it.

Every run has a folder of its own, with the audit's log, the transcript and, once it has ended, its
record. The same call goes on where an earlier one was stopped: finished runs are taken as they are,
and the files of an unfinished one are put aside and stay.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from modelassay.audit.blinding import UNTOLD
from modelassay.audit.config import AuditConfig
from modelassay.audit.session import Audit
from modelassay.audit_agent.chat import AgentModel
from modelassay.audit_agent.limits import Budget, RunLimits
from modelassay.audit_agent.report import AgentAuditReport, CandidateAudit, candidate_audit
from modelassay.audit_agent.running import TRANSCRIPT_FILE, AgentRun, run_agent
from modelassay.audit_agent.scoring import Scored, Truth, score_agent, truth_of
from modelassay.errors import AssayError, InputError, UnavailableError
from modelassay.files.atomic import explain_os_errors, locked, write_text_atomically
from modelassay.files.provenance import installed_versions, json_hash, utc_now
from modelassay.files.records import first_problem
from modelassay.hub.prices import Prices
from modelassay.models.organisms import find_organism, organism_source
from modelassay.progress import OnPhase, silent
from modelassay.report.json import finite, to_json

RUNS_SCHEMA = "modelassay.agent-runs/1"
RUN_SCHEMA = "modelassay.agent-run/1"
RUNS_FILE, RUN_FILE, RESULT_FILE = "agent-runs.json", "run.json", "agent-audit.json"
MAX_FILE_BYTES = 10_000_000
OF_THE_MODELS = {"base", "base_adapter", "candidate", "candidate_adapter", "training_data"}
"""Keys of a config that organisms replace."""


@dataclass(frozen=True)
class _Target:
    """One fine-tune that is audited."""

    name: str
    base: str
    config: AuditConfig
    folder: str
    truth: Truth | None = None


def audit_with_agent(
    config: AuditConfig,
    model: AgentModel,
    *,
    out: Path | None = None,
    runs: int = 1,
    organisms: Sequence[str] = (),
    limits: RunLimits | None = None,
    prices: Prices | None = None,
    on_progress: OnPhase = silent,
) -> AgentAuditReport:
    """Lets an agent audit a fine-tune, or organisms that it is not told the names of.

    Args:
        config: What is audited, and what the tools may do.
        model: The agent, from `open_agent`.
        out: Folder for logs, transcripts and results; the config's own if left out.
        runs: Of each fine-tune.
        organisms: Audited in place of the config's models, each against the organism that it was
            made from. Their ids are withheld from the agent; which one is the base is not.
        limits: Of a run.
        prices: Of the endpoint, and what all runs may cost together.
        on_progress: Called with (phase, done, total).

    Returns:
        Every run with its spread; the agent's scores where organisms were audited.

    Raises:
        InputError: the folder holds runs of another audit, there is no such organism, or the
            endpoint does not take such requests.
        UnavailableError: the endpoint gives no response that can be used. What was done is kept.
    """
    limits, prices = limits or RunLimits(), prices or Prices()
    if runs < 1:
        raise InputError(f"--runs must be 1 or more, got {runs}.")
    targets = _targets(config, organisms)
    folder = Path(out or config.folder)
    with explain_os_errors(f"making {folder}"):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; give a folder with --out.")
        folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    with locked(folder / RUNS_FILE):
        _check_identity(folder, _identity(config, model, limits, bool(organisms)))
        work = _Audits(folder, targets, runs, model, limits, prices, bool(organisms))
        for target, number in work.due():
            on_progress("agent runs", work.n_made, runs * len(targets))
            if work.spent_up():
                break
            work.make(target, number, on_progress)
        on_progress("agent runs", work.n_made, runs * len(targets))
        report = work.report()
        work.save(report)
    return report


@dataclass
class _Audits:
    """The runs of all fine-tunes, those that were made and those that are due."""

    folder: Path
    targets: Sequence[_Target]
    n_runs: int
    model: AgentModel
    limits: RunLimits
    prices: Prices
    scored: bool

    def __post_init__(self) -> None:
        """Reads what an earlier call has made."""
        self.made: dict[str, dict[int, AgentRun]] = {
            target.folder: {
                n: run
                for n in range(1, self.n_runs + 1)
                if (run := _read_run(self.place(target, n))) is not None
            }
            for target in self.targets
        }

    def place(self, target: _Target, number: int) -> Path:
        """A run's own folder."""
        return self.folder / target.folder / f"run-{number}"

    @property
    def n_made(self) -> int:
        """Runs that have ended."""
        return sum(map(len, self.made.values()))

    def due(self) -> Iterator[tuple[_Target, int]]:
        """What is to be made: first runs first, so that an early end leaves as much of each.

        A run that was cut off by the limit of cost is made again once there is more to spend.
        """
        for number in range(1, self.n_runs + 1):
            for target in self.targets:
                run = self.made[target.folder].get(number)
                if run is None or (run.stopped == "cost" and not self.spent_up()):
                    yield target, number

    def spent(self) -> float | None:
        """Cost of all turns that are on record, of runs that were put aside as well.

        None without prices.
        """
        if self.prices.sent is None:
            return None
        places = ("run-*", "*/run-*")  # of a fine-tune, and of organisms
        found = [p for where in places for p in self.folder.glob(f"{where}/{TRANSCRIPT_FILE}")]
        tokens = [_tokens_in(path) for path in found]
        return self.prices.cost(sum(sent for sent, _ in tokens), sum(got for _, got in tokens))

    def spent_up(self) -> bool:
        """Whether no more may be spent."""
        most = self.prices.most
        return most is not None and (self.spent() or 0.0) >= most

    def make(self, target: _Target, number: int, on_progress: OnPhase) -> None:
        """Makes a run, and keeps it at once.

        Raises:
            InputError: the models cannot be compared, or the endpoint does not take such requests;
                says what is kept.
            UnavailableError: a model or a response of the endpoint could not be had; likewise.
        """
        place = self.place(target, number)
        self.made[target.folder].pop(number, None)
        _put_aside(place)
        settings = target.config.model_copy(update={"folder": str(place)})
        try:
            with Audit(settings) as audit:
                on_progress("loading", 0, 1)
                _open_models(audit)
                run = run_agent(
                    audit,
                    self.model,
                    Budget(self.limits, self.prices, cost_before=self.spent() or 0.0),
                    number=number,
                    roles_told=target.truth is not None,
                    on_progress=on_progress,
                )
        except (InputError, UnavailableError) as error:
            self.save(self.report(stopped=str(error)))
            kind = InputError if isinstance(error, InputError) else UnavailableError
            raise kind(
                f"{error} {self.n_made} of {self.n_runs * len(self.targets)} runs are finished and"
                f" kept in {self.folder}."
            ) from error
        record = {"schema": RUN_SCHEMA, **finite(asdict(run))}
        text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
        write_text_atomically(place / RUN_FILE, text)
        self.made[target.folder][number] = run
        self.save(self.report())

    def save(self, report: AgentAuditReport) -> None:
        """Writes what there is by now."""
        write_text_atomically(self.folder / RESULT_FILE, to_json(report))

    def report(self, stopped: str | None = None) -> AgentAuditReport:
        """What there is by now."""
        audits = tuple(
            candidate_audit(
                target.name,
                target.base,
                [run for _, run in sorted(self.made[target.folder].items())],
                n_planned=self.n_runs,
                folder=target.folder,
                truth=target.truth,
            )
            for target in self.targets
        )
        planned, runs = self.n_runs * len(self.targets), [r for a in audits for r in a.runs]
        missing = planned - len(runs)
        notes = []
        if missing or any(run.stopped == "cost" for run in runs):
            if stopped is None and self.spent_up():
                stopped = "the limit of cost was reached"
            notes.append(
                f"{len(runs)} of {planned} runs were made: {stopped or 'the rest is to come'}. The"
                " same command goes on with the others"
                f"{' if it may cost more' if self.spent_up() else ''}."
            )
        chat = self.model
        return AgentAuditReport(
            agent={"model": chat.name, "url": chat.url, **chat.told},
            audits=audits,
            score=_score(audits) if self.scored else None,
            limits={**asdict(self.limits), "cost": self.prices.most},
            used={
                "prompt_tokens": sum(run.prompt_tokens for run in runs),
                "completion_tokens": sum(run.completion_tokens for run in runs),
                "cost": self.spent(),
                "seconds": sum(run.seconds for run in runs),
                "n_runs": len(runs),
                "n_planned": planned,
            },
            stopped=stopped,
            notes=tuple(notes),
            provenance={
                "time": utc_now(),
                "versions": installed_versions(),
                "folder": str(self.folder),
                "prices": {"sent": self.prices.sent, "received": self.prices.received},
            },
        )


def _open_models(audit: Audit) -> None:
    """Opens both models before an agent is paid for finding out that they are not there.

    Raises:
        InputError: there is no such model, or the two cannot be compared.
        UnavailableError: one of them cannot be fetched now.
    """
    try:
        _ = audit.work.pair
    except UnavailableError as error:
        # A blind auditor is not told which model it was. Whoever gave the config is.
        if isinstance(error.__cause__, AssayError):
            raise error.__cause__ from None
        raise


def _targets(config: AuditConfig, organisms: Sequence[str]) -> list[_Target]:
    """What is audited; an organism that is not there is refused before anything is begun.

    Raises:
        InputError: there is no such organism, or it is not built.
    """
    if not organisms:
        hidden = config.blind and not config.reveal
        names = [ref.id for ref in (config.candidate_ref, config.base_ref)]
        if config.candidate_adapter:
            names[0] = config.candidate_adapter
        name, base = [UNTOLD, UNTOLD] if hidden else names
        return [_Target(name, base, config, ".")]
    found: dict[str, _Target] = {}
    for given in organisms:
        organism = find_organism(given.strip())
        organism_source(organism.id)
        changed = config.model_copy(
            update={
                **dict.fromkeys(OF_THE_MODELS),
                "base": organism.made_from,
                "candidate": organism.id,
                "blind": True,
                "reveal": False,
            }
        )
        folder = organism.key.replace(":", "-")
        found[folder] = _Target(
            organism.id, organism.made_from, changed, folder, truth_of(organism)
        )
    return list(found.values())


def _identity(
    config: AuditConfig, model: AgentModel, limits: RunLimits, scored: bool
) -> dict[str, Any]:
    """What runs depend on; runs of another identity are not mixed with them."""
    left_out = {"folder"} | (OF_THE_MODELS if scored else set())
    return {
        "model": model.name,
        **model.told,
        "limits": asdict(limits),
        "config": json_hash(config.model_dump(exclude=left_out), compact=True),
        "organisms": scored,
    }


def _check_identity(folder: Path, identity: dict[str, Any]) -> None:
    """Refuses a folder that holds runs of something else.

    Raises:
        InputError: it does; names what differs.
    """
    path = folder / RUNS_FILE
    if not path.exists():
        text = json.dumps({"schema": RUNS_SCHEMA, **identity}, indent=1) + "\n"
        write_text_atomically(path, text)
        return
    found = _read_json(path)
    differ = [name for name, value in identity.items() if found.get(name) != value]
    if differ:
        raise InputError(
            f"{folder} holds runs of another audit (other: {', '.join(differ)}); give another"
            " folder with --out."
        )


def _read_run(place: Path) -> AgentRun | None:
    """A run that has ended; None where there is none.

    Raises:
        InputError: its record is damaged.
    """
    path = place / RUN_FILE
    if not path.exists():
        return None
    values = _read_json(path)
    try:
        return TypeAdapter(AgentRun).validate_python(values)
    except ValidationError as error:
        problem = first_problem(error)
        raise InputError(
            f"{path} is not a valid run: {problem}; delete its folder to make it again."
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path} is larger than a record can be.")
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read; give another folder with --out.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} is not a record; give another folder with --out.")
    return found


def _put_aside(place: Path) -> None:
    """Keeps the files of an unfinished run under another name."""
    if not place.exists():
        return
    for number in range(1, 10_000):
        aside = place.with_name(f"{place.name}-unfinished-{number}")
        if not aside.exists():
            with explain_os_errors(f"renaming {place}"):
                place.rename(aside)
            return
    raise InputError(f"{place.parent} is full of unfinished runs; give another folder with --out.")


def _tokens_in(path: Path) -> tuple[int, int]:
    """Tokens sent and received in all turns of a transcript, be its last line cut off or not."""
    sent = received = 0
    with path.open("rb") as lines:
        for line in lines:
            try:
                event = json.loads(line)
                if event["event"] == "turn":
                    sent += int(event["prompt_tokens"])
                    received += int(event["completion_tokens"])
            except (ValueError, LookupError, TypeError):
                continue
    return sent, received


def _score(audits: Sequence[CandidateAudit]) -> Any:
    found = [
        Scored(audit.truth, audit.risk.mean, audit.cause)
        for audit in audits
        if audit.truth is not None and audit.risk is not None and audit.cause is not None
    ]
    unreported = {
        audit.name: audit.truth
        for audit in audits
        if audit.truth is not None and (audit.risk is None or audit.cause is None)
    }
    return score_agent(found, unreported)
