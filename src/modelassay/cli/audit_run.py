"""`modelassay audit run`: an agent investigates a fine-tune, or is scored on organisms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.audit_config import (
    CONFIG_VARIABLES,
    check_profile,
    given_config,
    load_audit_config,
)
from modelassay.cli.diff import exit_code
from modelassay.errors import EXIT_INCONCLUSIVE, EXIT_PASS, InputError

if TYPE_CHECKING:
    from modelassay.audit_agent import AgentModel

VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class _Agent:
    """The model that investigates."""

    endpoint: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint of the agent, such as https://host/v1; what the tools"
            " return is sent there.",
        ),
    ] = None
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Model at the endpoint, or URL#NAME without --endpoint."),
    ] = None
    key_env: Annotated[
        str,
        typer.Option(
            metavar="VARIABLE", help="Environment variable that holds the endpoint's key."
        ),
    ] = "OPENAI_API_KEY"
    temperature: Annotated[
        float | None, typer.Option(min=0.0, help="Of the agent; the endpoint's own if left out.")
    ] = None
    response_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of one response; the endpoint's own if left out."),
    ] = None
    timeout: Annotated[
        float, typer.Option(min=1.0, help="Seconds that one response of the endpoint may take.")
    ] = 300.0
    attempts: Annotated[
        int, typer.Option(min=1, max=20, help="How often the endpoint is asked for one response.")
    ] = 5

    def open(self) -> AgentModel:
        """The model, with what was given checked.

        Raises:
            InputError: no endpoint or no model was given, or they cannot be used.
        """
        from modelassay.audit_agent import open_agent

        url, name = self.endpoint, self.model
        if url is None and name is not None and name.startswith(("http://", "https://")):
            url, _, name = name.partition("#")
        if not url or not name:
            raise InputError(
                "Say which model investigates: --endpoint URL and --model NAME, or --model"
                " URL#NAME."
            )
        if not VARIABLE.fullmatch(self.key_env):
            # A key that was given here by mistake must not be repeated.
            raise InputError("--key-env takes the name of an environment variable, not the key.")
        return open_agent(
            url,
            name,
            key_variable=self.key_env,
            temperature=self.temperature,
            response_tokens=self.response_tokens,
            timeout=self.timeout,
            attempts=self.attempts,
        )


@dataclass(frozen=True)
class _Bounds:
    """What the runs may use."""

    prices: options.Spending
    max_turns: Annotated[int, typer.Option(help="Responses of the agent in a run.")] = 40
    max_tokens: Annotated[
        int, typer.Option(help="Tokens of a run, sent and received together.")
    ] = 2_000_000
    max_seconds: Annotated[float, typer.Option(help="Time of a run.")] = 7200.0

    def checked(self) -> dict[str, Any]:
        """As `audit_with_agent` takes them.

        Raises:
            InputError: a limit that nothing fits in, or one that could not be held.
        """
        from modelassay.audit_agent import RunLimits

        return {
            "limits": RunLimits(self.max_turns, self.max_tokens, self.max_seconds),
            "prices": self.prices,
        }


@options.grouped
def run_command(
    agent: Annotated[_Agent, options.From(_Agent)],
    bounds: Annotated[_Bounds, options.From(_Bounds)],
    output: options.Reported,
    progress: options.Progress,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", envvar=CONFIG_VARIABLES, help="What is audited, see docs/audit.md."
        ),
    ] = None,
    runs: Annotated[int, typer.Option(min=1, max=1000, help="How often it is audited.")] = 1,
    organisms: Annotated[
        str | None,
        typer.Option(
            metavar="NAME,NAME,…",
            help="Audit these model organisms in place of the config's models, without their names,"
            " and score the agent.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="For logs and results; the config's if left out."),
    ] = None,
    profile: Annotated[
        str | None,
        typer.Option(metavar="full|behavior-only", help="Tools to offer, in place of the file's."),
    ] = None,
    blind: Annotated[
        bool, typer.Option("--blind", help="Call the models A and B and do not say which is which.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Only go on: refuse a folder without earlier runs."),
    ] = False,
) -> int:
    """Let a language model audit a fine-tune with the tools of `modelassay mcp`.

    Every run ends with a risk score from 1 to 10, a cause and findings. The same command goes on
    where one was stopped.

    Exit codes: 0 benign-like, or organisms were scored; 1 suspicious or compromised; 3
    inconclusive; 64 bad input; 69 the endpoint or something else is unavailable; 70 internal error.
    """
    file, tools = given_config(config), check_profile(profile)
    chosen = [name.strip() for name in organisms.split(",") if name.strip()] if organisms else []
    if organisms is not None and not chosen:
        raise InputError("--organisms takes names with commas between them, such as safe,benign.")
    limits = bounds.checked()
    model = agent.open()
    settings = load_audit_config(file, tools, blind=blind or bool(chosen))
    from modelassay.audit_agent import audit_with_agent
    from modelassay.audit_agent.auditing import RUNS_FILE

    folder = Path(out or settings.folder)
    if resume and not (folder / RUNS_FILE).is_file():
        raise InputError(f"{folder} holds no runs to go on with; leave --resume out.")
    with progress() as on_progress:
        report = audit_with_agent(
            settings,
            model,
            out=folder,
            runs=runs,
            organisms=chosen,
            on_progress=on_progress,
            **limits,
        )
    output.give(report)
    if report.verdict is not None:
        return exit_code(report.verdict.value)
    reported = any(audit.risk is not None for audit in report.audits)
    return EXIT_PASS if reported else EXIT_INCONCLUSIVE
