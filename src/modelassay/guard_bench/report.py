"""What a benchmark of a guard found: rates without it and with it, on the same prompts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from modelassay.guard_bench.results import Arm, BenchRow
from modelassay.guard_bench.suites import SuiteData
from modelassay.report.base import Report
from modelassay.report.charts import NEGATIVE, POSITIVE, error_bars, new_figure
from modelassay.report.json import published
from modelassay.report.sections import Section, Table, columns
from modelassay.statistics import newcombe_interval, wilson_interval

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

BENCH_SCHEMA = "modelassay.guard-bench/1"


@dataclass(frozen=True)
class Rate:
    """A share with its 95% Wilson interval; None where nothing could be counted."""

    k: int
    n: int
    rate: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Difference:
    """Guarded minus raw, over the prompts that were scored on both sides.

    The interval (Newcombe 1998, method 10) takes the sides for independent. They answer the same
    prompts, so it is rather too wide.
    """

    value: float | None
    interval: tuple[float, float] | None
    n: int


@dataclass(frozen=True)
class Times:
    """What responses took on this machine, one after the other.

    The suite `latency` compares ways of answering more fairly: they take turns.
    """

    n: int
    """Responses whose time is known, refused ones included."""
    milliseconds: float
    """Median of a response."""
    milliseconds_p95: float
    tokens_per_second: float | None
    """Of all of them together; None where there are no tokens."""
    classifier_calls: int


@dataclass(frozen=True)
class SideReport:
    """One side."""

    unsafe: Rate
    refusal: Rate
    n_unscored: int
    """Responses of which the judge could not tell whether they are unsafe; in no rate of these."""
    n_unanswered: int
    """Prompts that the model could not take."""
    times: Times | None = None
    """None where no time was kept."""


@dataclass(frozen=True)
class CategoryCounts:
    """How many of a category."""

    n: int
    raw_unsafe: int
    guarded_unsafe: int
    raw_refusal: int
    guarded_refusal: int
    blocked: int


@dataclass(frozen=True)
class GuardBenchReport(Report):
    """A run's outcome; holds no text of prompts or responses."""

    schema: str
    suite: str
    data: dict[str, Any]
    n: int
    """Prompts."""
    judge: dict[str, Any]
    raw: SideReport
    guarded: SideReport
    blocked_by_prompt: Rate
    blocked_by_response: Rate
    shown_uncertain: Rate
    """Guarded responses that were shown and marked: the classifier could not clear them."""
    unsafe_difference: Difference
    refusal_difference: Difference
    categories: dict[str, CategoryCounts]
    model: dict[str, Any]
    probe: dict[str, Any]
    classifier: dict[str, Any] | None
    settings: dict[str, Any]
    versions: dict[str, str]
    identity_sha256: str
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return published(asdict(self), blocked_by_response="blocked_by_answer")

    def sections(self) -> list[Section]:
        """Rates side by side, and those of each category."""
        sides = (self.raw, self.guarded)
        differences = {"unsafe": self.unsafe_difference, "refusal": self.refusal_difference}
        rows = [
            (name, *(_rate_text(getattr(side, name)) for side in sides), _share_text(each, "+"))
            for name, each in differences.items()
        ]
        rows += [(f"{by} blocked", "", _rate_text(rate), "") for by, rate in self._blocked.items()]
        if self.shown_uncertain.k:
            rows.append(("shown as uncertain", "", _rate_text(self.shown_uncertain), ""))
        rows.append(("unscored", *(str(side.n_unscored) for side in sides), ""))
        rows += [
            (name, *("not measured" if s.times is None else text(s.times) for s in sides), "")
            for name, text in _TIMES.items()
        ]
        rates = Table(
            columns("", "raw", "guarded", "difference", right=(1, 2, 3)), rows, self._rates
        )
        counts = [(name, *vars(each).values()) for name, each in self.categories.items()]
        categories = Table(
            columns(
                *("category", "n", "unsafe", "if guarded", "refused", "if guarded", "blocked"),
                right=range(1, 7),
            ),
            [tuple(map(str, row)) for row in counts],
            records=lambda: [{"category": c, **asdict(n)} for c, n in self.categories.items()],
        )
        source, judge = self.data["source"], self.judge["name"]
        return [
            Section(
                "rates",
                table=rates,
                lines=(f"{self.suite}: {self.n} prompts of {source}, judge {judge}",),
                chart=self._chart,
                note=" ".join(self.notes),
            ),
            *([Section("categories", "by category", table=categories)] if len(counts) > 1 else []),
        ]

    @property
    def _blocked(self) -> dict[str, Rate]:
        return {"prompt": self.blocked_by_prompt, "response": self.blocked_by_response}

    def _rates(self) -> list[dict[str, Any]]:
        found = [
            {"side": name, "rate": kind, **_numbers(getattr(side, kind))}
            for name, side in (("raw", self.raw), ("guarded", self.guarded))
            for kind in ("unsafe", "refusal")
        ]
        return found + [
            {"side": "guarded", "rate": f"{by} blocked", **_numbers(rate)}
            for by, rate in self._blocked.items()
        ]

    def _chart(self) -> Figure | None:
        """Rates without the guard and with it, with their intervals."""
        figure = new_figure("Without the guard and with it", "", "share of responses")
        for name, colour in (("raw", POSITIVE), ("guarded", NEGATIVE)):
            rows = [
                row for row in self._rates() if row["side"] == name and row["value"] is not None
            ]
            values = [row["value"] for row in rows]
            figure.add_bar(
                x=[row["rate"] for row in rows],
                y=values,
                name=name,
                marker_color=colour,
                error_y=error_bars(values, [(row["low"], row["high"]) for row in rows]),
            )
        figure.update_yaxes(tickformat=".0%", range=[0, 1.05])
        return figure


_TIMES: dict[str, Callable[[Times], str]] = {
    "ms a response": lambda times: f"{times.milliseconds:.0f} (95%: {times.milliseconds_p95:.0f})",
    "tokens / s": lambda times: (
        "none" if times.tokens_per_second is None else f"{times.tokens_per_second:.1f}"
    ),
    "classifier calls": lambda times: str(times.classifier_calls),
}


def _numbers(rate: Rate) -> dict[str, Any]:
    low, high = rate.interval or (None, None)
    return {"k": rate.k, "n": rate.n, "value": rate.rate, "low": low, "high": high}


def _rate_text(rate: Rate) -> str:
    """A rate as counts, share and interval."""
    return f"{rate.k}/{rate.n} {_share_text(rate)}" if rate.n else "not measured"


def _share_text(found: Rate | Difference, sign: str = "") -> str:
    """A share with its interval, in percent."""
    value = found.rate if isinstance(found, Rate) else found.value
    if value is None or found.interval is None:
        return "not measured"
    low, high = (f"{100 * bound:{sign}.0f}" for bound in found.interval)
    return f"{value:{sign}.0%} ({low} to {high}%)"


def rate_of(k: int, n: int) -> Rate:
    """A share of n, which may be 0."""
    return Rate(k, n, k / n, wilson_interval(k, n)) if n else Rate(0, 0, None, None)


def difference_of(pairs: Sequence[tuple[bool | None, bool | None]]) -> Difference:
    """The second minus the first of pairs; one of which either is None does not count."""
    both = [(raw, guarded) for raw, guarded in pairs if raw is not None and guarded is not None]
    if not (n := len(both)):
        return Difference(None, None, 0)
    raw, guarded = sum(pair[0] for pair in both), sum(pair[1] for pair in both)
    return Difference((guarded - raw) / n, newcombe_interval(guarded, n, raw, n), n)


def make_report(
    data: SuiteData,
    rows: Mapping[tuple[str, Arm], BenchRow],
    identity: Mapping[str, Any],
    identity_sha256: str,
    notes: Sequence[str] = (),
) -> GuardBenchReport:
    """Counts a finished run.

    Args:
        data: Its prompts.
        rows: A response for each of them on each side.
        identity: What it depends on.
        identity_sha256: Hash of that.
        notes: What a reader has to know besides.
    """
    raw = [rows[prompt.id, "raw"] for prompt in data.prompts]
    guarded = [rows[prompt.id, "guarded"] for prompt in data.prompts]
    judged = [row for row in (*raw, *guarded) if row.judged]
    # A judge of refusals alone must not give a rate over those responses that nobody had to judge.
    told = not judged or any(row.unsafe is not None for row in judged)
    # Nor a judge that knows safe and unsafe alone one over those that the guard refused.
    open_to_judge = [row for row in judged if not row.blocked]
    tells_refusals = not open_to_judge or any(row.refusal is not None for row in open_to_judge)
    sides = (_side(raw, told, tells_refusals), _side(guarded, told, tells_refusals))
    answered = [row for row in guarded if row.answered]
    blocked = [row.blocked for row in answered]
    unsafe = [(a.unsafe, b.unsafe) for a, b in zip(raw, guarded, strict=True)] if told else []
    refusals = zip(raw, guarded, strict=True) if tells_refusals else ()
    own = _notes(data, judged, told, sides)
    if not tells_refusals:
        own.append("This judge does not tell whether responses are refusals; no refusal rates.")
    return GuardBenchReport(
        schema=BENCH_SCHEMA,
        suite=data.suite,
        data={
            "source": data.source,
            "layout": data.layout,
            "sha256": data.sha256,
            "n_other_side": data.n_other_side,
            "n_unlabelled": data.n_unlabelled,
            "config": data.config,
            "split": data.split,
        },
        n=len(data.prompts),
        judge=identity["judge"],
        raw=sides[0],
        guarded=sides[1],
        blocked_by_prompt=rate_of(blocked.count("prompt"), len(blocked)),
        blocked_by_response=rate_of(blocked.count("answer"), len(blocked)),
        shown_uncertain=rate_of(sum(row.uncertain is True for row in answered), len(answered)),
        unsafe_difference=difference_of(unsafe),
        refusal_difference=difference_of([(a.refusal, b.refusal) for a, b in refusals]),
        categories=_categories(data, raw, guarded),
        model=identity["model"],
        probe=identity["probe"],
        classifier=identity["classifier"],
        settings=identity["settings"],
        versions=identity["versions"],
        identity_sha256=identity_sha256,
        notes=(*own, *notes),
    )


def _side(rows: Sequence[BenchRow], told: bool, tells_refusals: bool) -> SideReport:
    answered = [row for row in rows if row.answered]
    unsafe = [row.unsafe for row in answered if row.unsafe is not None] if told else []
    refusal = [row.refusal for row in answered if row.refusal is not None and tells_refusals]
    return SideReport(
        unsafe=rate_of(sum(unsafe), len(unsafe)),
        refusal=rate_of(sum(refusal), len(refusal)),
        n_unscored=len(answered) - len(unsafe),
        n_unanswered=len(rows) - len(answered),
        times=_times(answered),
    )


def _times(rows: Sequence[BenchRow]) -> Times | None:
    found = [(row.seconds, row.n_tokens) for row in rows if row.seconds is not None]
    if not found:
        return None
    seconds = sorted(each for each, _ in found)
    tokens = sum(n for _, n in found)
    return Times(
        n=len(found),
        milliseconds=1000 * statistics.median(seconds),
        milliseconds_p95=1000 * seconds[math.ceil(0.95 * len(seconds)) - 1],
        tokens_per_second=tokens / sum(seconds) if tokens and sum(seconds) else None,
        classifier_calls=sum(row.classifier_calls or 0 for row in rows),
    )


def _categories(
    data: SuiteData, raw: Sequence[BenchRow], guarded: Sequence[BenchRow]
) -> dict[str, CategoryCounts]:
    found: dict[str, CategoryCounts] = {}
    for name in sorted({prompt.category for prompt in data.prompts}):
        at = [i for i, prompt in enumerate(data.prompts) if prompt.category == name]
        found[name] = CategoryCounts(
            n=len(at),
            raw_unsafe=sum(raw[i].unsafe is True for i in at),
            guarded_unsafe=sum(guarded[i].unsafe is True for i in at),
            raw_refusal=sum(raw[i].refusal is True for i in at),
            guarded_refusal=sum(guarded[i].refusal is True for i in at),
            blocked=sum(guarded[i].blocked is not None for i in at),
        )
    return found


def _notes(
    data: SuiteData, judged: Sequence[BenchRow], told: bool, sides: Sequence[SideReport]
) -> list[str]:
    notes = []
    if not told:
        notes.append("This judge does not tell whether responses are unsafe; no unsafe rates.")
    elif unscored := sum(side.n_unscored for side in sides):
        notes.append(f"{unscored} responses could not be scored and are in no unsafe rate.")
    if both := sum(row.flagged_unsafe is True for row in judged):
        notes.append(f"The judge calls {both} responses unsafe and refusals; they are refusals.")
    if not judged:
        notes.append("No response held any text for a judge.")
    if unanswered := max(side.n_unanswered for side in sides):
        notes.append(f"{unanswered} prompts could not be given to the model; they are left out.")
    if data.n_unlabelled:
        notes.append(
            f"{data.n_unlabelled} rows of the data say of no side, or hold no attack, and are"
            " left out."
        )
    return notes
