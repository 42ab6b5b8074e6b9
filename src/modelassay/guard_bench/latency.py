"""What guarding costs in time: against transformers' own `generate`, in ratios and milliseconds.

Ways of answering take turns on the same prompts with the same number of new tokens, greedy, on the
same loaded model. Within a round each way's time is summed over the prompts and divided by that of
`generate`; reported are the median over the rounds and the range. Milliseconds and tokens a second
are of this machine; only ratios compare with those of another. A response that ends before the
last token, or is refused, is not a comparison: its prompt is left out and counted.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions
from modelassay.guard.streaming import Guard
from modelassay.guard_bench.counting import counted
from modelassay.guard_bench.running import guard_identity
from modelassay.guard_bench.suites import SuiteData
from modelassay.models import LoadedModel
from modelassay.progress import OnPhase, silent
from modelassay.reading.generation import end_tokens, greedy_config, run_generate
from modelassay.reading.prompts import encode_chat
from modelassay.report.base import Report
from modelassay.report.charts import LINE, NEGATIVE, error_bars, new_figure
from modelassay.report.sections import Section, Table, columns
from modelassay.report.text import with_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LATENCY_SCHEMA = "modelassay.guard-latency/1"
GENERATE, RAW, PROBE, CLASSIFIER = "generate", "stream", "probe", "probe and classifier"
MONITOR = "probe and monitor"


@dataclass(frozen=True)
class Spread:
    """Of a ratio over the rounds."""

    median: float
    least: float
    largest: float
    n: int
    """Rounds."""


@dataclass(frozen=True)
class LatencyReport(Report):
    """Ratios of times; 1 is what `generate` takes."""

    schema: str
    total: dict[str, Spread]
    """For each way, time of whole responses over that of `generate`. `stream` is token by token
    without a guard."""
    first_token: dict[str, Spread]
    """For each way, time until text is shown first, in units of the time that `generate` takes for
    one more token."""
    n_prompts: int
    """Compared."""
    n_ended_early: int
    """Left out: a response ended, or was refused, before the last token."""
    n_skipped_pairs: int
    """Left out of single rounds for the same reason."""
    new_tokens: int
    rounds: int
    data: dict[str, Any]
    model: dict[str, Any]
    probe: dict[str, Any]
    classifier: dict[str, Any] | None
    device: str
    threads: int
    versions: dict[str, str]
    milliseconds: dict[str, Spread]
    """For each way, of a whole response: the mean over the prompts in each round."""
    first_milliseconds: dict[str, Spread]
    """For each way, until text is shown first."""
    tokens_per_second: dict[str, Spread]
    """For each way, of whole responses, the prompt's pass included."""
    classifier_calls: dict[str, int]
    """For each way, in all rounds together."""
    n_responses: int
    """Of each way, in all rounds together."""

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)

    def sections(self) -> list[Section]:
        """Ratios to `generate`, and what was measured."""
        rows, records = [], []
        for name, first in self.first_token.items():
            total = self.total.get(name, Spread(1.0, 1.0, 1.0, self.rounds))
            times = _span(total, ".2f") if name in self.total else "1"
            rows.append((name, times, _span(first, ".1f")))
            records.append(
                {
                    "way": name,
                    "total": total.median,
                    "total_least": total.least,
                    "total_largest": total.largest,
                    "first_text": first.median,
                }
            )
        line = (
            f"{self.n_prompts} prompts, {self.new_tokens} new tokens, median of {self.rounds}"
            f" rounds (least to largest); {self.n_ended_early} prompts left out whose response"
            " ended early"
        )
        names = ("", "time / generate", "first text, in tokens' times")
        table = Table(columns(*names, right=(1, 2)), rows, lambda: records)
        return [
            Section("times", table=table, note=line, chart=self._chart),
            self._measured(),
        ]

    def _measured(self) -> Section:
        """Milliseconds, tokens a second and calls of the classifier."""
        rows, records = [], []
        for name, each in self.milliseconds.items():
            first, rate = self.first_milliseconds[name], self.tokens_per_second[name]
            calls = self.classifier_calls[name]
            rows.append(
                (name, _span(each, ".0f"), f"{rate.median:.1f}", f"{first.median:.0f}", str(calls))
            )
            records.append(
                {
                    "way": name,
                    "milliseconds": each.median,
                    "tokens_per_second": rate.median,
                    "first_milliseconds": first.median,
                    "classifier_calls": calls,
                }
            )
        names = ("", "ms a response", "tokens / s", "ms to first text", "calls")
        table = Table(columns(*names, right=range(1, 5)), rows, lambda: records)
        note = (
            f"On this machine ({self.device}, {self.threads} threads). Calls of the classifier are"
            f" those in all {self.n_responses} responses of each way."
        )
        return Section("measured", "measured here", table=table, note=note)

    def _chart(self) -> Figure:
        """Time of whole responses in each way, with the range over rounds."""
        figure = new_figure("Time of a response", "", "time / generate")
        values = [spread.median for spread in self.total.values()]
        ranges = [(spread.least, spread.largest) for spread in self.total.values()]
        figure.add_bar(
            x=list(self.total), y=values, error_y=error_bars(values, ranges), marker_color=NEGATIVE
        )
        figure.add_hline(y=1, line=LINE)
        return figure


def _span(found: Spread, spec: str) -> str:
    return with_interval(found.median, (found.least, found.largest), spec)


@dataclass(frozen=True)
class _Run:
    """One timed response."""

    total: float
    first: float
    """Seconds until something was shown."""
    n_tokens: int
    classifier_calls: int = 0


Way = Callable[[str], _Run]


def measure_latency(
    guard: Guard,
    data: SuiteData,
    *,
    new_tokens: int = 64,
    rounds: int = 5,
    on_progress: OnPhase = silent,
) -> LatencyReport:
    """Times responses with and without the guard.

    Args:
        guard: The guard; the way `probe` leaves out its classifier and its monitor, if any.
        data: Prompts that the guard does not refuse.
        new_tokens: Length of every response.
        rounds: How often each way answers each prompt.
        on_progress: Told how many responses there are.

    Raises:
        InputError: no prompt gives a whole response in every way.
    """
    if new_tokens < 2 or rounds < 1:
        raise InputError("Timing needs at least 2 new tokens and 1 round.")
    ways = _ways(guard, new_tokens)
    prompts = [prompt.prompt for prompt in data.prompts]
    total = (1 + rounds) * len(prompts) * len(ways)
    done = 0

    def tell(steps: int) -> None:
        nonlocal done
        done += steps
        on_progress("answering", min(done, total), total)

    kept = []
    for prompt in prompts:  # warms up besides
        if all(way(prompt).n_tokens == new_tokens for way in ways.values()):
            kept.append(prompt)
        tell(len(ways))
    if not kept:
        raise InputError(
            f"None of the {len(prompts)} prompts gives a response of {new_tokens} tokens that the"
            " guard lets pass; try fewer --max-new-tokens or other --data."
        )
    total = done + rounds * len(kept) * len(ways)
    totals: dict[str, list[float]] = {name: [] for name in ways}
    firsts: dict[str, list[float]] = {name: [] for name in ways}
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    calls = dict.fromkeys(ways, 0)
    n_responses = 0
    skipped = 0
    for number in range(rounds):
        runs: list[dict[str, _Run]] = []
        for i, prompt in enumerate(kept):
            found = {name: ways[name](prompt) for name in _turned(list(ways), number + i)}
            if all(run.n_tokens == new_tokens for run in found.values()):
                runs.append(found)
            else:
                skipped += 1
            tell(len(ways))
        if not runs:
            continue
        plain = sum(run[GENERATE].total for run in runs)
        after_first = sum(run[GENERATE].total - run[GENERATE].first for run in runs)
        a_token = after_first / (len(runs) * (new_tokens - 1))
        for name in ways:
            totals[name].append(sum(run[name].total for run in runs) / plain)
            firsts[name].append(sum(run[name].first for run in runs) / len(runs) / a_token)
            mean = statistics.fmean(run[name].total for run in runs)
            measured[name].append((mean, statistics.fmean(run[name].first for run in runs)))
            calls[name] += sum(run[name].classifier_calls for run in runs)
        n_responses += len(runs)
    if not totals[GENERATE]:
        raise InputError("No round had a response of full length in every way; run it again.")
    return LatencyReport(
        schema=LATENCY_SCHEMA,
        total={name: _spread(values) for name, values in totals.items() if name != GENERATE},
        first_token={name: _spread(values) for name, values in firsts.items()},
        n_prompts=len(kept),
        n_ended_early=len(prompts) - len(kept),
        n_skipped_pairs=skipped,
        new_tokens=new_tokens,
        rounds=len(totals[GENERATE]),
        data={"source": data.source, "layout": data.layout, "sha256": data.sha256},
        **guard_identity(guard),
        device=guard.model.device.type,
        threads=torch.get_num_threads(),
        versions=installed_versions("modelassay", "torch", "transformers"),
        milliseconds={
            name: _spread(1000 * total for total, _ in found) for name, found in measured.items()
        },
        first_milliseconds={
            name: _spread(1000 * first for _, first in found) for name, found in measured.items()
        },
        tokens_per_second={
            name: _spread(new_tokens / total for total, _ in found)
            for name, found in measured.items()
        },
        classifier_calls=calls,
        n_responses=n_responses,
    )


def _ways(guard: Guard, new_tokens: int) -> dict[str, Way]:
    alone = replace(guard, classifier=None, monitor=None)

    def stream(guard: Guard, guarded: bool) -> Way:
        counting, classifier = counted(guard)

        def way(prompt: str) -> _Run:
            before = 0 if classifier is None else classifier.calls
            run = _time_stream(counting, prompt, new_tokens, guarded)
            after = 0 if classifier is None else classifier.calls
            return replace(run, classifier_calls=after - before)

        return way

    ways: dict[str, Way] = {
        GENERATE: lambda prompt: _time_generate(guard.model, prompt, new_tokens),
        RAW: stream(alone, False),
        PROBE: stream(alone, True),
    }
    if guard.monitor is not None:
        ways[MONITOR] = stream(replace(guard, classifier=None), True)
    if guard.classifier is not None:
        ways[CLASSIFIER] = stream(replace(guard, monitor=None), True)
    return ways


def _time_stream(guard: Guard, prompt: str, new_tokens: int, guarded: bool) -> _Run:
    """Times the guard's generator; `n_tokens` is 0 for a response that ended too early."""
    _synchronize(guard.model)
    started = time.perf_counter()
    first = None
    reason, index = None, 0
    for event in guard.stream(prompt, max_new_tokens=new_tokens, guarded=guarded):
        if first is None and event.text:
            first = time.perf_counter() - started
        reason, index = event.reason, event.index
    total = time.perf_counter() - started
    return _Run(total, total if first is None else first, index if reason == "length" else 0)


class _FirstToken:
    """A streamer that notes when `generate` hands over its first token; the prompt comes before."""

    def __init__(self) -> None:
        self.calls = 0
        self.at: float | None = None

    def put(self, _value: Any) -> None:
        self.calls += 1
        if self.calls == 2:
            self.at = time.perf_counter()

    def end(self) -> None:
        """Nothing is held."""


def _time_generate(model: LoadedModel, prompt: str, new_tokens: int) -> _Run:
    """Times `generate`, tokenizing and decoding included, as the guard does both as well."""
    config = greedy_config(model, new_tokens)
    streamer = _FirstToken()
    _synchronize(model)
    started = time.perf_counter()
    ids = encode_chat(model, [{"role": "user", "content": prompt}])
    inputs = torch.tensor([list(ids)], device=model.device)
    output = run_generate(
        model, config, inputs, attention_mask=torch.ones_like(inputs), streamer=streamer
    )
    new = output[0, len(ids) :].tolist()
    model.tokenizer.decode(new, skip_special_tokens=True)
    total = time.perf_counter() - started
    first = streamer.at - started if streamer.at is not None else total
    ended = bool(new) and new[-1] in end_tokens(model)
    return _Run(total, first, 0 if ended else len(new))


def _synchronize(model: LoadedModel) -> None:
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _turned(names: Sequence[str], by: int) -> list[str]:
    """The names, another one first each time: what comes after what can matter to caches."""
    by %= len(names)
    return [*names[by:], *names[:by]]


def _spread(values: Iterable[float]) -> Spread:
    values = list(values)
    return Spread(statistics.median(values), min(values), max(values), len(values))
