"""`modelassay chat` and `modelassay generate`: responses, watched while they are made."""

from __future__ import annotations

import json as json_module
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.errors import InputError
from modelassay.hub import silence_downloads

if TYPE_CHECKING:
    from modelassay.guard import Guard, GuardEvent

Prompt = Annotated[str | None, typer.Option(help="What to say; `-` reads it from standard input.")]
System = Annotated[str | None, typer.Option(help="System prompt.")]
BARS = "▁▂▃▄▅▆▇█"
CURVE = 32
"""Tokens of the risk curve: the line stays below 80 columns."""
YOU = "you: "
LEAVE = "/exit"
MAX_PROMPT_BYTES = 1_000_000


def _settings(
    sampling: options.SamplingOptions,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Length at which a response is cut.")
    ] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="A string that ends the response.")] = None,
) -> dict[str, Any]:
    if "" in (stop or ()):  # it would end every response before it began
        raise InputError("--stop needs some text.")
    return {"sampling": sampling, "max_new_tokens": max_new_tokens, "stop": stop or ()}


@dataclass(frozen=True)
class GuardSettings:
    """What a guard does; false where all is left to its probe."""

    limits: options.ResponseLimits
    prompt_limits: options.PromptLimits
    opinion: options.Opinion
    refusal: Annotated[str | None, typer.Option(help="What a refusal says.")] = None

    def __bool__(self) -> bool:
        from modelassay.guard import SecondOpinion

        own = self.opinion != SecondOpinion()
        return bool(self.limits or self.prompt_limits or self.refusal is not None or own)

    def check(self, parts: Mapping[str, Any]) -> None:
        """Refuses, before a model is loaded, what asks a classifier where there is none.

        Raises:
            InputError: says which option.
        """
        options.check_opinion(self.opinion, parts)

    def of(self, guard: Guard) -> dict[str, Any]:
        """As `guard.stream` takes them."""
        from modelassay.guard import REFUSAL

        of_prompt = guard.prompt_head
        if of_prompt is None and self.prompt_limits:
            raise InputError(
                f"The probe {guard.probe.name} reads responses only; leave --prompt-pause and"
                " --prompt-block out."
            )
        return {
            "thresholds": self.limits.over(guard.probe.head("answer")),
            "prompt_thresholds": of_prompt and self.prompt_limits.over(of_prompt),
            "refusal": self.refusal or REFUSAL,
            "second_opinion": self.opinion,
        }


Settings = Annotated[dict[str, Any], options.From(_settings)]
"""How a response is made."""
Guarding = Annotated[GuardSettings, options.From(GuardSettings)]


@options.grouped
def chat_command(
    model: options.Model,
    settings: Settings,
    parts: options.GuardParts,
    guarding: Guarding,
    loading: options.Loading,
    prompt: Prompt = None,
    system: System = None,
    json: Annotated[bool, typer.Option("--json", help="Print events as JSON lines.")] = False,
) -> None:
    """Chat with MODEL; responses are watched from inside and held back where that is due."""
    if json and prompt is None:
        raise InputError("--json needs a --prompt.")

    guarding.check(parts)

    from modelassay.guard import load_guard

    said = read_prompt(prompt) if prompt is not None else None
    silence_downloads()
    guard = load_guard(model, **parts, **loading)
    settings |= guarding.of(guard)
    history = [{"role": "system", "content": system}] if system else []
    if said is None and sys.stdin.isatty():
        typer.echo(f"{LEAVE} or Ctrl-D ends the chat.", err=True)
    while True:
        try:
            text = said if said is not None else input(YOU if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if said is None and text == LEAVE:
            return
        if not text and said is None:
            continue
        turns = [*history, {"role": "user", "content": text}]
        try:
            events = guard.stream(turns, **settings)
        except InputError as error:
            if said is not None:
                raise
            typer.echo(f"modelassay: {error}", err=True)
            continue
        if json:
            response = print_json(events)
        else:
            response = print_live(events, settings["thresholds"], interruptible=said is None)
        if said is not None:
            return
        history = [*turns, {"role": "assistant", "content": response}]


@options.grouped
def generate_command(
    model: options.Model,
    settings: Settings,
    parts: options.GuardParts,
    guarding: Guarding,
    loading: options.Loading,
    prompt: Annotated[str, typer.Option(help="What to say; `-` reads it from standard input.")],
    guarded: Annotated[bool, typer.Option("--guarded", help="Watch the response.")] = False,
    system: System = None,
    json: Annotated[bool, typer.Option("--json", help="Print a JSON object.")] = False,
) -> None:
    """Answer one prompt; with --guarded, show only what the guard clears."""
    from modelassay.guard import load_guard, stream_unguarded
    from modelassay.models import load

    if guarding and not guarded:
        raise InputError(
            "Thresholds, the final check and the refusal are the guard's; pass --guarded as well."
        )
    guarding.check(parts)

    said = read_prompt(prompt)
    turns = [{"role": "system", "content": system}] if system else []
    turns += [{"role": "user", "content": said}]
    silence_downloads()
    if guarded:
        guard = load_guard(model, **parts, **loading)
        events = guard.stream(turns, **settings, **guarding.of(guard))
    else:
        events = stream_unguarded(load(model, **loading), turns, **settings)
    seen: list[GuardEvent] = []
    for event in events:
        seen.append(event)
        if not json:
            typer.echo(event.text, nl=False)
    if json:
        risks = [e.risk for e in seen if e.kind == "token" and e.risk is not None]
        values = {
            "text": "".join(event.text for event in seen),
            "guarded": guarded,
            "reason": seen[-1].reason,
            "tokens": seen[-1].index,
            "prompt_risk": next((e.risk for e in seen if e.kind == "prompt"), None),
            "highest_risk": max(risks, default=None),
            "held": any(event.action in ("pause", "escalate") for event in seen),
            **_first("verdict", [e.verdict for e in reversed(seen)]),
            **_first("alert", [e.alert for e in seen]),
        }
        typer.echo(json_module.dumps(values, ensure_ascii=False))
    else:
        typer.echo()
        if seen[-1].verdict == "uncertain":  # what is shown in doubt is marked
            typer.echo(f"uncertain: {seen[-1].detail}", err=True)


def _first(name: str, values: Sequence[str | None]) -> dict[str, str]:
    """The first value that is there, by name."""
    return next(({name: value} for value in values if value), {})


def read_prompt(prompt: str) -> str:
    """The prompt, or standard input where it is `-`.

    Raises:
        InputError: what comes in is not text, or too much of it.
    """
    if prompt != "-":
        return prompt
    data = sys.stdin.buffer.read(MAX_PROMPT_BYTES + 1)
    if len(data) > MAX_PROMPT_BYTES:
        raise InputError(f"The prompt is longer than {MAX_PROMPT_BYTES / 1e6:.0f} MB; shorten it.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError("The prompt is not UTF-8 text.") from error


def print_json(events: Iterable[GuardEvent]) -> str:
    """Events as JSON lines, as they come; returns the response."""
    response = ""
    for event in events:
        response += event.text
        typer.echo(json_module.dumps(event.to_dict(), ensure_ascii=False))
        sys.stdout.flush()
    return response


def print_live(
    events: Iterator[GuardEvent], thresholds: Any, *, interruptible: bool = False
) -> str:
    """The response as it is cleared, with its risk below it; plain text where no one watches.

    Args:
        events: Of one response.
        thresholds: The response's, to be shown.
        interruptible: Whether Ctrl-C ends the response alone and not what is done here.
    """
    from rich.console import Console, Group
    from rich.live import Live
    from rich.text import Text

    console = Console()
    response, risks, status = "", [], ""
    alerts: list[str] = []

    def told(event: GuardEvent) -> str:
        nonlocal status
        status = describe(event, risks, thresholds, status)
        alerts.extend([event.alert] if event.alert else [])
        return f"{status}\nalert: {alerts[0]}" if alerts else status

    if not console.is_terminal:
        line = ""
        for event in events:
            response += event.text
            typer.echo(event.text, nl=False)
            line = told(event)
        typer.echo()
        typer.echo(line, err=True)
        return response
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        try:
            for event in events:
                response += event.text
                live.update(Group(Text(response), Text(told(event), style="dim")), refresh=True)
        except KeyboardInterrupt:
            live.update(Group(Text(response), Text("stopped", style="dim")), refresh=True)
            if not interruptible:
                raise
    return response


def describe(event: GuardEvent, risks: list[float], thresholds: Any, before: str) -> str:
    """One line about the risk so far; adds the event's to `risks`."""
    if event.kind == "prompt" and event.risk is None:
        return "the prompt is not judged: the probe reads responses only"
    if event.kind == "prompt":
        held = ": the response is held back until it is cleared" if event.action == "pause" else ""
        return f"prompt risk {event.risk:.2f}{held}"
    if event.kind == "token" and event.risk is not None:
        risks.append(event.risk)
        curve = "".join(BARS[min(7, int(8 * risk))] for risk in risks[-CURVE:])
        limits = f"pause {thresholds.pause:.2f}, block {thresholds.block:.2f}"
        line = f"risk {event.risk:.2f} {curve} {event.action} ({limits})"
        # Why a low risk is held, or what cleared it: said by the prompt, or the classifier.
        why = event.detail or next(iter(before.splitlines()[1:]), "")
        if before.startswith("prompt risk"):
            why = why or before
        return f"{line}\n{why}" if why else line
    if event.kind == "end" and event.reason in ("prompt refused", "answer refused"):
        note = f" ({event.detail})" if event.detail else ""
        return f"{event.reason} by the guard{note}; {before}"
    if event.kind == "end" and event.verdict:
        mark = "UNCERTAIN: " if event.verdict == "uncertain" else ""
        return f"{mark}{event.detail}; {before}"
    return before
