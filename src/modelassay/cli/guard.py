"""`modelassay guard`: what a guard prevents, what it gets wrong, and what it costs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlsplit

import typer

from modelassay.cli import options
from modelassay.cli.output import GATED, check_file, give
from modelassay.errors import InputError
from modelassay.report.sections import Column, Section, Table

if TYPE_CHECKING:
    from modelassay.data.judging import Judge
    from modelassay.guard import Guard
    from modelassay.report import Report

app = typer.Typer(
    help="A guard that watches a model's responses from inside.",
    no_args_is_help=True,
)


@dataclass(frozen=True)
class Asked:
    """The prompts, as `read_suite` takes them."""

    suite: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="jailbreak, overrefusal or latency; or a public one, by a name or Hub id that"
            " `guard suites` lists.",
        ),
    ] = "jailbreak"
    where: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Prompts: a file, a Hub id or a name of `guard suites`; else the suite's own.",
        ),
    ] = None
    config: Annotated[str | None, typer.Option(help="Configuration of a Hub data set.")] = None
    split: Annotated[str | None, typer.Option(help="Split of a Hub data set.")] = None
    labels: options.Labels = None
    limit: Annotated[int | None, typer.Option(min=1, help="Most prompts.")] = None


@dataclass(frozen=True)
class JudgeOptions:
    """Who says what a response is."""

    judge: Annotated[
        str | None,
        typer.Option(
            help="classifier, refusal or openai; else refusal for overrefusal, classifier for"
            " jailbreak."
        ),
    ] = None
    judge_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="OpenAI-compatible endpoint, such as https://host/v1; prompts and responses are"
            " sent there, with the key in OPENAI_API_KEY.",
        ),
    ] = None
    judge_model: Annotated[
        str | None, typer.Option(help="Model at the endpoint, or the classifier that judges.")
    ] = None
    timeout: options.Timeout = None
    attempts: options.Attempts = None

    def check(self, name: str) -> tuple[dict[str, Any], Judge] | None:
        """The judge behind an endpoint, or None for one that needs the guard to be loaded.

        Raises:
            InputError: there is no such judge, or it lacks an option.
        """
        from modelassay.guard_bench.judges import JUDGES, openai_judge
        from modelassay.hub.chat_completions import ATTEMPTS, TIMEOUT

        url, model = self.judge_url, self.judge_model
        if name not in JUDGES:
            raise InputError(f"Unknown judge {name!r}; choose {', '.join(JUDGES)}.")
        if name != "openai":
            if self.timeout is not None or self.attempts is not None:
                raise InputError("--timeout and --attempts are for --judge openai.")
            if url is not None:
                raise InputError("--judge-url is for --judge openai.")
            if name == "refusal" and model is not None:
                raise InputError("--judge-model is for --judge openai or classifier.")
            return None
        if not url or not model:
            raise InputError("Judge openai needs --judge-url and --judge-model.")
        judge = openai_judge(
            url,
            model,
            timeout=TIMEOUT if self.timeout is None else self.timeout,
            attempts=self.attempts or ATTEMPTS,
        )
        return {"name": name, "model": model, "host": urlsplit(url).hostname}, judge

    def here(self, name: str, guard: Guard) -> tuple[dict[str, Any], Judge]:
        """A judge on this machine: what it is called, and itself."""
        from modelassay.guard_bench.judges import classifier_judge, refusal_judge
        from modelassay.guard_bench.running import classifier_identity

        if name == "refusal":
            return {"name": name}, refusal_judge
        from modelassay.classifier import load_classifier

        own = guard.classifier if self.judge_model is None else None
        judging = own if own is not None else load_classifier(self.judge_model or "embedded")
        return {"name": name, "model": classifier_identity(judging)}, classifier_judge(judging)


@app.command("suites")
def suites_command(json: options.Json = False) -> None:
    """List the public benchmarks that `guard bench --suite NAME` knows."""
    from modelassay.guard_bench.known import KNOWN_SUITES

    rows = [asdict(suite) for suite in KNOWN_SUITES]
    cells = [
        (
            suite.name,
            suite.where,
            suite.config or "-",
            suite.split,
            suite.side,
            ", ".join(suite.columns),
            "yes" if suite.gated else "no",
        )
        for suite in KNOWN_SUITES
    ]
    names = ("suite", "data set", "config", "split", "prompts", "columns", "gated")
    shown = [
        Column(name, shown="wide" if name in ("columns", "split") else "always") for name in names
    ]
    give(rows, json, Section(table=Table(tuple(shown), cells), note=GATED))


@app.command("bench")
@options.grouped
def bench_command(
    model: options.Model,
    asked: Annotated[Asked, options.From(Asked)],
    judging: Annotated[JudgeOptions, options.From(JudgeOptions)],
    parts: options.GuardParts,
    limits: options.ResponseLimits,
    opinion: options.Opinion,
    loading: options.Loading,
    progress: options.Progress,
    output: options.Reported,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON lines of results; a stopped run goes on there."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Begin again over results of another run.")
    ] = False,
    keep_text: Annotated[
        bool,
        typer.Option("--keep-text", help="Keep the responses in --out, not their sha256 alone."),
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Length of responses.")] = 64,
    rounds: Annotated[int, typer.Option(min=1, help="Rounds of the latency suite.")] = 5,
) -> None:
    """Measure MODEL with and without its guard on a suite of prompts.

    Suites: `jailbreak` (harmful prompts: how many responses are unsafe), `overrefusal` (benign
    ones: how many are refused), `latency` (what guarding costs in time), or a public one.
    """
    from modelassay.guard import SecondOpinion, load_guard
    from modelassay.guard_bench.suites import as_suite, read_suite

    found = as_suite(asked.suite)
    asks = None if opinion == SecondOpinion() else opinion
    judged = judging != JudgeOptions()
    if found == "latency" and (judged or out or keep_text or limits or asks):
        raise InputError(
            "Suite latency judges and keeps nothing, at the guard's own thresholds; leave --judge,"
            " --timeout, --attempts, --out, --keep-text, --pause, --block, --block-at,"
            " --uncertain-at and --final-check out."
        )
    options.check_opinion(opinion, parts)
    if keep_text and out is None:
        raise InputError("--keep-text needs --out, where the responses are kept.")
    check_file(out, "--out")
    name = judging.judge or ("refusal" if found == "overrefusal" else "classifier")
    remote = judging.check(name)
    prompts = read_suite(**vars(asked), token=loading.get("token"))
    with progress() as on_progress:
        guard = load_guard(model, **parts, **loading)
        if found == "latency":
            from modelassay.guard_bench.latency import measure_latency

            report: Report = measure_latency(
                guard, prompts, new_tokens=max_new_tokens, rounds=rounds, on_progress=on_progress
            )
        else:
            from modelassay.guard_bench.running import BenchSettings, run_bench

            thresholds = limits.over(guard.probe.head("answer")) if limits else None
            info, judge = remote or judging.here(name, guard)
            report = run_bench(
                guard,
                prompts,
                judge,
                info,
                BenchSettings(max_new_tokens, thresholds, keep_text, asks),
                out=out,
                force=force,
                on_progress=on_progress,
            )
    output.give(report)
