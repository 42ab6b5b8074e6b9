"""One run: a model investigates with an audit's tools until it reports or a limit is reached."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from modelassay.audit.log import AuditLog
from modelassay.audit.session import Audit
from modelassay.audit.tools import Tool
from modelassay.audit.values import cut
from modelassay.audit.writing import write_audit_report
from modelassay.audit_agent import prompt
from modelassay.audit_agent.chat import AgentModel, Turn
from modelassay.audit_agent.findings import (
    REPORT_TOOL,
    Findings,
    find_calls,
    find_report,
    read_report,
    tool_definition,
)
from modelassay.audit_agent.limits import Budget, Stop
from modelassay.errors import InputError
from modelassay.files.provenance import utc_now
from modelassay.hub.chat_completions import ContextFullError, ToolCall, whole_characters
from modelassay.progress import OnPhase, silent

TRANSCRIPT_SCHEMA = "modelassay.agent-transcript/1"
TRANSCRIPT_FILE = "transcript.jsonl"
WRITE_TOOL = write_audit_report.__name__
"""Not offered: the report tool calls it."""
MAX_TOOL_TEXT = 30_000
"""Characters of a tool's result that the agent is given."""
MAX_SILENT = 3
"""Responses in a row without a tool call, after which what was written is taken as it is."""
MAX_FAILED = 6
"""Responses in a row whose calls all failed, after which a run ends."""
MAX_REPORTS = 3
"""Reports whose citations are wrong, after which one is taken as it is."""
FORGOTTEN = "(This result was taken out: the conversation is long. Ask again if you need it.)"
IN_TEXT = "Result of "
RESULT = IN_TEXT + "{tool}: "
"""Begins a result that is given as text, to an agent that writes its calls out."""
MAX_AGENT_TEXT = 20_000
"""Characters of what an agent writes that stay in its conversation; the transcript has all."""
Hide = Callable[[Any], Any]


@dataclass(frozen=True)
class AgentRun:
    """What one run came to."""

    number: int
    """From 1."""
    findings: Findings | None
    """None where it ended without a report."""
    stopped: Stop
    n_turns: int
    calls: dict[str, int]
    """Tool calls that gave a result, by tool."""
    n_failed_calls: int
    prompt_tokens: int
    completion_tokens: int
    tokens_estimated: bool
    """Whether tokens were counted by characters, because the endpoint did not say."""
    cost: float | None
    """In the currency of the prices; None without prices."""
    seconds: float
    problem: str | None
    """The last call that failed, in one line, where a run ended without a report."""
    report: str | None
    """The audit's report with the numbers of every call, a file of the run's folder."""
    log_sha256: str
    """Of the last line of the audit's log."""
    time: str


@dataclass
class _Investigation:
    """A conversation with a model, and what came of its calls."""

    audit: Audit
    model: AgentModel
    budget: Budget
    transcript: AuditLog
    hide: Hide
    messages: list[dict[str, Any]] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    results: dict[str, tuple[int, dict[str, Any]]] = field(default_factory=dict)
    """Of each call: its number, and the message that holds its result."""
    n_failed: int = 0
    failed_in_a_row: int = 0
    silent_in_a_row: int = 0
    n_reports: int = 0
    warned: bool = False
    problem: str | None = None
    findings: Findings | None = None
    report: str | None = None

    @property
    def offered(self) -> dict[str, Tool]:
        """The tools that the agent may call; those about the audit itself are not its own."""
        return {name: tool for name, tool in self.audit.tools.items() if name != WRITE_TOOL}

    def investigate(self, on_progress: OnPhase) -> Stop:
        """Goes on until there is a report or a limit is reached."""
        tools = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.schema(),
                },
            }
            for tool in self.offered.values()
        ]
        report = tool_definition()
        while (stop := self.budget.reached()) is None:
            on_progress("turns", self.budget.turns, self.budget.limits.turns)
            last = self.budget.last_turn
            if last:
                self.say(prompt.LAST_TURN)
            elif self.budget.nearly() and not self.warned:
                self.warned = True
                self.say(prompt.COME_TO_AN_END)
            try:
                turn = self.model.ask(self.messages, [report] if last else [*tools, report])
            except ContextFullError:
                if not self.forget():
                    return "context"
                continue
            self.note(turn)
            written = () if turn.calls else find_calls(turn.text, self.offered)
            if calls := turn.calls or written:
                ended = self.answer(calls, last=last, in_text=bool(written))
            else:
                ended = self.nudge(turn, last=last)
            if ended is not None:
                return ended
        return stop

    def note(self, turn: Turn) -> None:
        """Puts a turn on record, and its tokens on the bill."""
        self.budget.used(turn.prompt_tokens, turn.completion_tokens, estimated=turn.estimated)
        message = turn.message
        if len(turn.text) > MAX_AGENT_TEXT:  # it would fill the conversation
            message["content"] = cut(turn.text, MAX_AGENT_TEXT)
        self.messages.append(message)
        self.record(
            "turn",
            text=turn.text,
            calls=[{"tool": call.name, "arguments": call.arguments} for call in turn.calls],
            prompt_tokens=turn.prompt_tokens,
            completion_tokens=turn.completion_tokens,
            estimated=turn.estimated,
        )

    def answer(
        self, calls: Sequence[ToolCall], *, last: bool, in_text: bool = False
    ) -> Stop | None:
        """Runs the calls of a turn; a report comes last.

        Args:
            calls: The calls.
            last: Whether it is the last turn.
            in_text: Whether they were written out: then the results are, too.
        """
        self.silent_in_a_row = 0
        worked = False
        for call in sorted(calls, key=lambda call: call.name == REPORT_TOOL):
            try:
                if call.name == REPORT_TOOL:
                    self.accept(read_report(_given(call)), last=last)
                    return "reported"
                result = self.run(call)
            except InputError as error:
                self.fail(call, str(error), in_text=in_text)
            else:
                worked = True
                self.calls[call.name] += 1
                text = cut(json.dumps(result, ensure_ascii=False), MAX_TOOL_TEXT)
                message = self.reply(call, text, in_text=in_text)
                self.results[_what(call)] = (result["call"], message)
        self.failed_in_a_row = 0 if worked else self.failed_in_a_row + 1
        return "nonsense" if self.failed_in_a_row >= MAX_FAILED else None

    def nudge(self, turn: Turn, *, last: bool) -> Stop | None:
        """Takes a report that was written out, or asks for a call."""
        self.silent_in_a_row += 1
        given_up = last or self.silent_in_a_row >= MAX_SILENT
        found = find_report(turn.text, loosely=given_up)
        if found is not None:
            try:
                self.accept(found, last=given_up)
            except InputError as error:
                self.problem = str(error)
                self.say(self.problem)
            else:
                return "reported"
        elif not given_up:
            self.say(prompt.CALL_A_TOOL)
        return "no report" if given_up else None

    def run(self, call: ToolCall) -> dict[str, Any]:
        """Runs a tool.

        Raises:
            InputError: one line for the agent.
        """
        if call.name not in self.offered:
            known = ", ".join((*self.offered, REPORT_TOOL))
            raise InputError(f"There is no tool {call.name[:60]!r}; there are {known}.")
        number, message = self.results.get(_what(call), (None, None))
        if message is not None and FORGOTTEN not in message["content"]:
            raise InputError(prompt.REPEATED.format(number=number))
        return self.audit.call(call.name, _given(call))

    def accept(self, found: Findings, *, last: bool) -> None:
        """Takes a report, and writes the numbers that it rests on.

        Raises:
            InputError: it rests on nothing, or cites calls that gave no result.
        """
        if not self.calls:
            raise InputError(prompt.NOT_YET)
        self.n_reports += 1
        try:
            written = self.audit.call(
                WRITE_TOOL,
                {
                    "title": f"Risk {found.risk_score} of 10: {found.cause}",
                    "findings": list(found.findings),
                    "conclusion": found.justification,
                },
            )
            self.report = str(written["markdown"])
        except InputError as error:
            if not last and self.n_reports < MAX_REPORTS:
                raise
            self.problem = f"The audit's own report was not written: {error}"
        self.findings = found

    def fail(self, call: ToolCall, message: str, *, in_text: bool) -> None:
        """Tells the agent what was wrong with a call."""
        self.n_failed += 1
        self.problem = message
        text = json.dumps({"error": message}, ensure_ascii=False)
        self.reply(call, text, in_text=in_text)

    def reply(self, call: ToolCall, text: str, *, in_text: bool) -> dict[str, Any]:
        """Gives the result of a call; returns the message that holds it."""
        text = whole_characters(text)  # an error may quote half a surrogate pair
        if not in_text:
            self.messages.append({"role": "tool", "tool_call_id": call.id, "content": text})
        elif self.messages[-1]["role"] == "user":
            self.messages[-1]["content"] += f"\n\n{RESULT.format(tool=call.name)}{text}"
        else:
            self.messages.append(
                {"role": "user", "content": f"{RESULT.format(tool=call.name)}{text}"}
            )
        self.record("result", tool=call.name, text=text)
        return self.messages[-1]

    def say(self, text: str) -> None:
        """Tells the agent something."""
        last = self.messages[-1]
        if last["role"] != "user":
            self.messages.append({"role": "user", "content": text})
        elif last["content"].endswith(text):
            return  # asked for again in a shorter conversation
        else:  # some chat templates refuse two messages of a user in a row
            last["content"] += f"\n\n{text}"
        self.record("notice", text=text)

    def forget(self) -> bool:
        """Takes the older half of the long results out of the conversation; False without any."""
        long = [
            message
            for message in self.messages
            if (message["role"] == "tool" or _is_result(message))
            and len(message["content"]) > 2 * len(FORGOTTEN)
        ]
        for message in long[: -(-len(long) // 2)]:
            message["content"] = FORGOTTEN
        if long:
            self.record("notice", text="Older results were taken out of a long conversation.")
        return bool(long)

    def record(self, event: str, **fields: Any) -> None:
        """One line of the transcript, without what is withheld."""
        self.transcript.append(event, **self.hide(fields))


def run_agent(
    audit: Audit,
    model: AgentModel,
    budget: Budget,
    *,
    number: int,
    roles_told: bool = False,
    on_progress: OnPhase = silent,
) -> AgentRun:
    """Lets a model investigate.

    Args:
        audit: Whose tools it gets. The transcript is written into the audit's folder: what the
            model was given and said, as the audit redacts it, and never the endpoint's key.
        model: Who investigates.
        budget: What the run may use.
        number: Of the run.
        roles_told: Tell a blind agent which of the models is the base, though not their ids.
        on_progress: Called with ("turns", done, limit).

    Raises:
        InputError: the endpoint does not take such requests.
        UnavailableError: the endpoint gives no response that can be used; the transcript is kept.
    """
    roles = {name: role for role, name in audit.work.blinding.names.items()} if roles_told else None
    told = prompt.told_models(audit.models, roles)  # type: ignore[arg-type]
    task = prompt.instructions(told, full=audit.config.profile == "full", turns=budget.limits.turns)
    transcript = AuditLog(audit.work.folder / TRANSCRIPT_FILE)
    hide = audit.work.blinding.value

    try:
        work = _Investigation(audit, model, budget, transcript, hide)
        work.messages = [
            {"role": "system", "content": task},
            {"role": "user", "content": prompt.BEGIN},
        ]
        work.record("start", schema=TRANSCRIPT_SCHEMA, task=task, first=prompt.BEGIN)
        stop = work.investigate(on_progress)
        on_progress("turns", budget.limits.turns, budget.limits.turns)
        work.record("end", stopped=stop)
    finally:
        transcript.close()
    found = AgentRun(
        number,
        work.findings,
        stop,
        budget.turns,
        dict(sorted(work.calls.items())),
        work.n_failed,
        budget.prompt_tokens,
        budget.completion_tokens,
        budget.estimated,
        budget.cost,
        round(budget.seconds, 3),
        None if work.report else work.problem,
        work.report,
        audit.log.last,
        utc_now(),
    )
    return _hidden(found, hide)


def _is_result(message: dict[str, Any]) -> bool:
    """Whether a message gives results as text."""
    return message["role"] == "user" and message["content"].startswith(IN_TEXT)


def _what(call: ToolCall) -> str:
    """What tells a call from others."""
    return json.dumps([call.name, call.arguments], sort_keys=True)


def _given(call: ToolCall) -> dict[str, Any]:
    if call.arguments is None:
        raise InputError(f"{call.name}: the arguments are not a JSON object.")
    return call.arguments


def _hidden(run: AgentRun, hide: Hide) -> AgentRun:
    """The same without what is withheld in the texts that the agent wrote."""
    found = run.findings
    if found is not None:
        found = replace(
            found,
            findings=tuple(hide(list(found.findings))),
            justification=hide(found.justification),
        )
    return replace(run, findings=found, problem=hide(run.problem))
