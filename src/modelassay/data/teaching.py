"""Labels exchanges by what teachers say: language models behind an OpenAI-compatible endpoint.

Every answer is kept in a journal at once, by what it is about: the same command goes on where a
stopped one was, and a file with more, fewer or other rows keeps the answers to those that it still
has. Nothing that was paid for is asked twice. A row that no plain verdict is given for, or that
teachers disagree on, gets no label; it is counted and named.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelassay.data.exchanges import numbered_rows
from modelassay.data.judging import (
    FILTERED,
    INSTRUCTION,
    TOO_LONG,
    UNCLEAR,
    Judgement,
    ask_judge,
)
from modelassay.data.labelled import exchange_of
from modelassay.data.labels import (
    LABEL_FIELDS,
    LABELS,
    NAME_FIELD,
    Label,
    Scheme,
    ambiguous,
    is_labelled,
    label_of,
    scheme_of,
)
from modelassay.errors import InputError, UnavailableError
from modelassay.files.atomic import write_rows_atomically
from modelassay.files.journal import Journal, check_out, open_journal
from modelassay.files.provenance import text_hash
from modelassay.hub import check_place
from modelassay.hub.chat_completions import ChatModel, Usage
from modelassay.hub.prices import Prices
from modelassay.progress import OnProgress

TEACHING_SCHEMA = "modelassay.data-label/1"
KEY_DIGITS = 24
NONSENSE = 10
"""Answers in a row without any verdict after which nothing more is paid for."""
NO_VERDICT = "the teacher gave no plain verdict"
DECLINED = "the endpoint's own filter declined"
UNREAD = "it is longer than the teacher reads"
NO_REFUSAL = "the teacher does not say whether it is a refusal"
CONTRADICTION = "the teacher calls it unsafe and a refusal"
DISAGREEMENT = "the teachers disagree"
OTHERWISE = "the teacher disagrees with the row's own label"
NO_RESPONSE = "it has no response"


@dataclass(frozen=True)
class Budget:
    """When to stop, counted over all runs together; None for no bound.

    The answer that reaches a bound is the last one.
    """

    rows: int | None = None
    """Rows that teachers were asked about."""
    tokens: int | None = None
    prices: Prices = field(default_factory=Prices)
    """What tokens cost, and what may be spent."""

    def __post_init__(self) -> None:
        """Refuses what cannot be counted.

        Raises:
            InputError: says which option.
        """
        for name, value in (("--max-rows", self.rows), ("--max-tokens", self.tokens)):
            if value is not None and value < 1:
                raise InputError(f"{name} must be at least 1, got {value}.")

    def cost_of(self, usage: Usage) -> float | None:
        """What tokens cost; None without prices."""
        return self.prices.cost(usage.prompt, usage.response)

    def reached(self, asked: int, usage: Usage, *, told: bool) -> str | None:
        """The bound that is reached, if one is.

        Args:
            asked: Rows so far.
            usage: Tokens so far.
            told: Whether every answer told its tokens.

        Raises:
            InputError: the endpoint does not tell what a bound is about.
        """
        if self.counts_tokens and not told:
            raise InputError(
                "The endpoint does not tell how many tokens it uses; bound the run by --max-rows,"
                " without --max-tokens and --max-cost. What was answered is kept."
            )
        if self.rows is not None and asked >= self.rows:
            return f"--max-rows {self.rows}"
        if self.tokens is not None and usage.prompt + usage.response >= self.tokens:
            return f"--max-tokens {self.tokens}"
        cost, most = self.cost_of(usage), self.prices.most
        if most is not None and cost is not None and cost >= most:
            return f"--max-cost {most:g}"
        return None

    @property
    def counts_tokens(self) -> bool:
        """Whether the endpoint must tell how many tokens it used."""
        return self.tokens is not None or self.prices.most is not None


@dataclass(frozen=True)
class TaughtData:
    """What a run labelled."""

    schema: str
    file: str
    rows: int
    """Of the data."""
    asked: int
    """Rows of the data that teachers were asked about, in this run and before."""
    labelled: int
    """Rows of the file: those with a label now."""
    had_label: int
    """Of these, rows that had one before and were not asked about."""
    left: int
    """Rows that were not asked about yet."""
    labels: dict[str, int]
    unlabelled: dict[str, int]
    """Why rows got no label, and how many."""
    named: dict[str, list[int]]
    """The numbers of these rows."""
    agreed: int | None
    """Rows whose own label the teacher confirms; None unless these were asked about too."""
    models: list[str]
    host: str
    other_hosts: list[str]
    """Where answers that were kept before came from, if from elsewhere."""
    tokens_in: int | None
    tokens_out: int | None
    """Tokens in all runs; None where the endpoint does not tell."""
    cost: float | None
    stopped_by: str | None
    """The bound that was reached; None if all rows were asked about."""


def label_data(
    where: str | Path,
    out: Path,
    teachers: Sequence[ChatModel],
    budget: Budget | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    recheck: bool = False,
    retry: bool = False,
    labels: Scheme | None = None,
    token: str | bool | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> TaughtData:
    """Labels rows and writes those that have a label now.

    Args:
        where: Rows of exchanges: a file or Hub data set.
        out: JSON lines; what was answered is kept beside it, in `OUT.progress`.
        teachers: Each is asked about each row; all must say the same.
        budget: When to stop.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set; None for `train`.
        recheck: Ask about rows that have a label as well; one that is contradicted gets none.
        retry: Ask again about rows of which a teacher gave no plain verdict.
        labels: What the numbers 0, 1 and 2 stand for in rows that have a label.
        token: Hub token, None for the stored one.
        force: Begin again over what other teachers gave.
        on_progress: Told how many rows are done.

    Raises:
        InputError: no such data, a malformed row, a file that is there already, an endpoint that
            does not take such questions, or teachers whose answers are no verdicts.
        UnavailableError: the endpoint or the disk fails; what was answered is kept.
    """
    budget = budget or Budget()
    progress = out.with_name(f"{out.name}.progress")
    check_out(where, out, replaces=force or progress.exists())
    rows = _read(where, config, split, labels, token)
    wanted = [row for row in rows if row.response and (recheck or row.own is None)]
    names = [teacher.model for teacher in teachers]
    identity = {"models": names, "instruction": text_hash(INSTRUCTION)}
    if not wanted:
        raise InputError(
            f"{where} has no rows to label: all have a label"
            " (--recheck asks about these too) or no response."
        )
    with open_journal(
        progress,
        TEACHING_SCHEMA,
        identity,
        called="teachers' answers",
        option="--out",
        force=force,
    ) as journal:
        spent = _Spent(budget, journal, names, _host(teachers))
        try:
            if retry:
                spent.forget_unclear()
            stopped_by = _ask_all(wanted, teachers, spent, on_progress)
        except UnavailableError as error:
            raise UnavailableError(
                f"{error} {spent.answered(wanted)} of {len(wanted)} rows are answered and kept."
            ) from error
        asked_about = {row.number for row in wanted}
        settled = {
            row.number: _settle(row, spent.of(row) if row.number in asked_about else None)
            for row in rows
        }
        counts = _write(out, rows, settled, spent)
    n_asked = spent.answered(wanted)
    unlabelled: dict[str, list[int]] = {}
    for number, (label, reason) in settled.items():
        if label is None and reason is not None:
            unlabelled.setdefault(reason, []).append(number)
    return TaughtData(
        schema=TEACHING_SCHEMA,
        file=str(out),
        rows=len(rows),
        asked=n_asked,
        labelled=sum(counts.values()),
        had_label=0 if recheck else sum(row.own is not None for row in rows),
        left=len(wanted) - n_asked,
        labels=dict(sorted(counts.items())),
        unlabelled={reason: len(numbers) for reason, numbers in unlabelled.items()},
        named=unlabelled,
        agreed=_agreed(rows, settled, spent) if recheck else None,
        models=names,
        host=spent.host,
        other_hosts=sorted(spent.hosts_of(wanted) - {spent.host}),
        tokens_in=spent.usage.prompt if spent.told else None,
        tokens_out=spent.usage.response if spent.told else None,
        cost=budget.cost_of(spent.usage) if spent.told else None,
        stopped_by=stopped_by,
    )


@dataclass(frozen=True)
class _Row:
    """A row of the data."""

    number: int
    values: Mapping[str, Any]
    prompt: str
    response: str
    own: str | None
    """Its own label: a class, `safe` or `unsafe`."""

    @property
    def key(self) -> str:
        """Of what a teacher is asked about: rows that say the same share an answer."""
        return text_hash(json.dumps([self.prompt, self.response]))[:KEY_DIGITS]


def _read(
    where: str | Path, config: str | None, split: str | None, labels: Scheme | None, token: Any
) -> list[_Row]:
    """All rows; a malformed one is refused before anything is paid for."""
    found = []
    check_place(where, config, split)
    numbered = list(numbered_rows(where, config=config, split=split or "train", token=token))
    scheme = labels or scheme_of(values for _, values in numbered if is_labelled(values))
    for number, values in numbered:
        name = f"Row {number} of {Path(where).name}"
        prompt, response = exchange_of(values, name, "prompt")
        own: str | None = None
        if is_labelled(values):
            label, unsafe = label_of(values, name, scheme or "binary")
            own = label or ("unsafe" if unsafe else "safe")
        found.append(_Row(number, values, prompt, response, own))
    if not found:
        raise InputError(f"{where} has no rows.")
    if scheme is None:  # a malformed row is named first
        raise ambiguous(where, option="")
    return found


@dataclass
class _Spent:
    """What was asked and used, in this run and those before."""

    budget: Budget
    journal: Journal
    models: Sequence[str]
    host: str
    """Where teachers are asked now."""
    verdicts: dict[str, dict[str, Judgement]] = field(default_factory=dict)
    """By what was asked about, and model."""
    hosts: dict[str, str] = field(default_factory=dict)
    """Where the answers came from."""
    asked: int = 0
    """Exchanges of which all teachers have answered, whether the data still has them or not."""
    usage: Usage = field(default_factory=lambda: Usage(0, 0))
    told: bool = True
    """Whether every answer told its tokens."""

    def __post_init__(self) -> None:
        """Takes up what was answered before."""
        for line in self.journal.entries():
            entry = json.loads(line)
            self._count(**entry)

    def of(self, row: _Row) -> list[Judgement] | None:
        """What all teachers say of a row; None if one was not asked about it yet."""
        told = self.verdicts.get(row.key, {})
        return [told[each] for each in self.models] if len(told) == len(self.models) else None

    def hosts_of(self, rows: Sequence[_Row]) -> set[str]:
        """Where the answers about these rows came from."""
        return {self.hosts[row.key] for row in rows if row.key in self.hosts}

    def answered(self, rows: Sequence[_Row]) -> int:
        """How many of these rows all teachers have answered about."""
        return sum(self.of(row) is not None for row in rows)

    def add(self, row: _Row, model: str, verdict: Judgement, usage: Usage | None) -> None:
        """Keeps a teacher's answer about a row."""
        entry = {
            "about": row.key,
            "model": model,
            "host": self.host,
            "verdict": [verdict.unsafe, verdict.refusal, verdict.detail],
            "usage": None if usage is None else [usage.prompt, usage.response],
        }
        self.journal.add(entry)
        self._count(**entry)

    def _count(
        self, about: str, model: str, host: str, verdict: list[Any], usage: list[int] | None
    ) -> None:
        told, used = self.verdicts.setdefault(about, {}), usage
        self.hosts[about] = host
        self.asked += model not in told and len(told) + 1 == len(self.models)
        told[model] = Judgement(*verdict)
        if used is None:
            self.told = False
        else:
            self.usage = Usage(self.usage.prompt + used[0], self.usage.response + used[1])

    def forget_unclear(self) -> None:
        """Lets what is no plain verdict be asked for again; what it took stays counted."""
        self.verdicts = {
            about: {model: each for model, each in told.items() if each.unsafe is not None}
            for about, told in self.verdicts.items()
        }
        self.asked = sum(len(told) == len(self.models) for told in self.verdicts.values())


def _ask_all(
    rows: Sequence[_Row],
    teachers: Sequence[ChatModel],
    spent: _Spent,
    on_progress: OnProgress | None,
) -> str | None:
    """Asks about each row that was not asked about; gives the bound that ended it, if one did."""
    nonsense, budget = 0, spent.budget
    for done, row in enumerate(rows):
        if on_progress:
            on_progress(done, len(rows))
        if spent.of(row) is not None:
            continue
        if (bound := budget.reached(spent.asked, spent.usage, told=spent.told)) is not None:
            return bound
        for teacher in teachers:
            if teacher.model not in spent.verdicts.get(row.key, {}):
                verdict, usage = ask_judge(teacher, row.prompt, row.response)
                spent.add(row, teacher.model, verdict, usage)
        only_nonsense = all(each == UNCLEAR for each in spent.verdicts[row.key].values())
        nonsense = nonsense + 1 if only_nonsense else 0
        if nonsense >= NONSENSE:
            raise InputError(
                f"The teacher's last {NONSENSE} answers hold no verdict; check --model"
                f" ({', '.join(teacher.model for teacher in teachers)}). What was answered is kept."
            )
    if on_progress:
        on_progress(len(rows), len(rows))
    return None


def _settle(row: _Row, verdicts: Sequence[Judgement] | None) -> tuple[str | None, str | None]:
    """A row's label, or None and why; both None if it was not asked about yet."""
    if verdicts is None:
        if row.own is None and not row.response:
            return None, NO_RESPONSE
        return row.own, None
    told = [_class_of(each) for each in verdicts]
    reasons = [reason for _, reason in told if reason is not None]
    if reasons:
        return None, reasons[0]
    labels = {label for label, _ in told}
    if len(labels) > 1:
        return None, DISAGREEMENT
    label = labels.pop()
    if row.own is not None and not _agree(row.own, label):
        return None, OTHERWISE
    return label, None


def _class_of(verdict: Judgement) -> tuple[Label | None, str | None]:
    """The class that a verdict stands for, or why it stands for none. Nothing is guessed."""
    compliance, refusal, unsafe = LABELS
    if verdict == FILTERED:
        return None, DECLINED
    if verdict == TOO_LONG:
        return None, UNREAD
    if verdict.unsafe is None:
        return None, NO_VERDICT
    if verdict.unsafe:
        return (None, CONTRADICTION) if verdict.refusal else (unsafe, None)
    if verdict.refusal is None:
        return None, NO_REFUSAL
    return (refusal if verdict.refusal else compliance), None


def _agree(own: str, label: str | None) -> bool:
    if own in LABELS:
        return own == label
    return (own == "unsafe") == (label == "unsafe_compliance")


def _agreed(
    rows: Sequence[_Row], settled: Mapping[int, tuple[str | None, str | None]], spent: _Spent
) -> int:
    return sum(
        row.own is not None and spent.of(row) is not None and settled[row.number][0] is not None
        for row in rows
    )


def _write(
    out: Path,
    rows: Sequence[_Row],
    settled: Mapping[int, tuple[str | None, str | None]],
    spent: _Spent,
) -> Counter[str]:
    """Writes the rows that have a label, in their order; gives how many of each."""
    counts: Counter[str] = Counter()

    def labelled() -> Iterator[dict[str, Any]]:
        for row in rows:
            label, _ = settled[row.number]
            if label is None:
                continue
            values = {k: v for k, v in row.values.items() if k not in (*LABEL_FIELDS, NAME_FIELD)}
            if label != row.own:
                by = {"models": list(spent.models), "host": spent.hosts[row.key]}
                values |= {"labelled_by": by}
            counts[label] += 1
            yield values | {"label": label}

    write_rows_atomically(out, labelled())
    return counts


def _host(teachers: Sequence[ChatModel]) -> str:
    return urlsplit(teachers[0].endpoint.url).hostname or ""
