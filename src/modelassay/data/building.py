"""Builds a file of labelled exchanges from a public data set: streamed, sampled, without repeats.

Rows come one at a time and are not held. What was taken lies in a journal beside the file until the
file is complete, so the same command goes on where a stopped one was. A sample is the rows whose
prompts have the smallest hashes under the seed: one pass finds it, whatever the order of the data.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from modelassay.data.labelled import At
from modelassay.data.labels import Scheme, unlabelled
from modelassay.data.public_sets import (
    LABELLED,
    Example,
    LayoutError,
    LeftOutError,
    PublicSet,
    public_set,
    reader_of,
)
from modelassay.data.wording import plain_words
from modelassay.errors import AssayError, InputError
from modelassay.files.atomic import write_rows_atomically
from modelassay.files.journal import Journal, check_out, open_journal
from modelassay.files.provenance import file_hash
from modelassay.files.tables import NumberedRow
from modelassay.hub import check_place, check_table, dataset_facts, open_rows
from modelassay.progress import OnProgress

BUILD_SCHEMA = "modelassay.data-build/1"
MARK_EVERY = 500
"""Rows of the source between two marks, from which a stopped build goes on."""
UNUSABLE = "a text in it cannot be used (empty, too long or no text)"
MALFORMED = "it cannot be read"
TAKEN = "its prompt was taken already"
REPEATED = "prompt and response were taken already"
ELSEWHERE = "its prompt is in the data to leave out"


@dataclass(frozen=True)
class BuildOptions:
    """Which rows are taken."""

    at: At = "answer"
    """What labels are of: the response, or the prompt alone."""
    limit: int | None = None
    """Most rows."""
    seed: int | None = None
    """Draw the rows by this seed; None takes the first ones."""
    balanced: bool = False
    """Take as many rows of each label."""
    per_prompt: int = 1
    """Most rows of one prompt; 0 for no bound."""
    labels: Scheme | None = None
    """What 0, 1 and 2 stand for in rows of this project's own layout."""
    licence: str | None = None
    """In place of what the Hub or the table of sets says."""

    def __post_init__(self) -> None:
        """Refuses what cannot be.

        Raises:
            InputError: says which option.
        """
        if self.at not in get_args(At):
            raise InputError(f"--at is {' or '.join(get_args(At))}, not {self.at!r}.")
        if self.limit is not None and self.limit < 1:
            raise InputError(f"--limit must be at least 1, got {self.limit}.")
        if self.per_prompt < 0:
            raise InputError(f"--per-prompt must be at least 0, got {self.per_prompt}.")
        if self.samples and self.limit is None:
            raise InputError("--seed and --balanced draw a sample; say how large with --limit.")

    @property
    def samples(self) -> bool:
        """Whether the whole source is read before it is known which rows are taken."""
        return self.balanced or self.seed is not None


@dataclass(frozen=True)
class BuiltData:
    """What a build made."""

    schema: str
    file: str
    rows: int
    labels: dict[str, int]
    """Rows of each label; `none` where the set says nothing of it."""
    source: str
    layout: str
    config: str | None
    split: str | None
    commit: str | None
    """Of the data set on the Hub."""
    licence: str | None
    rows_read: int
    left_out: dict[str, int]
    """Why rows were left out, and how many."""
    first_left_out: dict[str, int]
    """The number of the first row that was left out for each reason."""
    sampled: bool
    resumed_at: int
    """Rows of the source that a stopped build had read; 0 for a build from the beginning."""


def build_data(
    where: str,
    out: Path,
    options: BuildOptions | None = None,
    *,
    config: str | None = None,
    split: str | None = None,
    without: str | None = None,
    is_refusal: Callable[[str], bool] | None = None,
    token: str | bool | None = None,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> BuiltData:
    """Builds a file of JSON lines `{"prompt", "response", "label", "source", …}`.

    Args:
        where: Name of a known set (`data.public_sets`), Hub id, or file in the layout of one.
        out: The file; it appears when it is complete.
        options: Which rows are taken.
        config: Configuration of a Hub data set.
        split: Split of a Hub data set.
        without: File whose prompts are left out, such as a test set.
        is_refusal: Tells refusals among responses that the set calls safe, so that all rows get one
            of three classes.
        token: Hub token, None for the stored one.
        force: Replace the file, and begin again over a build with other options.
        on_progress: Told how many rows were read, and of how many, as far as is known.

    Raises:
        InputError: no such data, an unknown layout, no row that can be used, or a file that is
            there already.
        UnavailableError: the Hub cannot be reached, the data set is gated, or the disk is full;
            what was taken is kept.
    """
    options = options or BuildOptions()
    if is_refusal is not None and options.at == "prompt":
        raise InputError("A label of a prompt tells no refusals; leave --three-class out.")
    check_out(where, out, replaces=force)
    source = _source_of(where, config, split, token, options.licence)
    excluded = _prompts_of(without) if without is not None else frozenset[bytes]()
    identity = {
        **source.identity(),
        "options": {**vars(options), "three_class": is_refusal is not None},
        "without": hashlib.sha256(b"".join(sorted(excluded))).hexdigest() if excluded else None,
    }
    progress = out.with_name(f"{out.name}.progress")
    with open_journal(
        progress, BUILD_SCHEMA, identity, called="a build", option="--out", force=force
    ) as journal:
        run = _Run(source, options, excluded, is_refusal, journal)
        run.resume()
        resumed_at = run.read
        try:
            run.go_on(token, on_progress)
        except AssayError as error:
            if isinstance(error, LayoutError) or not run.kept:  # there is nothing to go on with
                progress.unlink()
            raise
        try:
            chosen = run.chosen()
        except InputError:  # other options are needed
            progress.unlink()
            raise
        labels = _write(out, journal, chosen)
        built = BuiltData(
            schema=BUILD_SCHEMA,
            file=str(out),
            rows=sum(labels.values()),
            labels=dict(sorted(labels.items())),
            source=source.name,
            layout=run.layout or LABELLED,
            config=source.config,
            split=source.split,
            commit=source.commit,
            licence=source.licence,
            rows_read=run.read,
            left_out=dict(run.left_out),
            first_left_out=dict(run.first),
            sampled=options.samples,
            resumed_at=resumed_at,
        )
    progress.unlink(missing_ok=True)
    return built


@dataclass(frozen=True)
class _Source:
    """Data to build from."""

    name: str
    """Hub id or name of the file."""
    path: Path | None
    config: str | None
    split: str | None
    commit: str | None
    licence: str | None
    sha256: str | None
    """Of a file."""

    def identity(self) -> dict[str, Any]:
        """What tells the same data."""
        of_file = {"sha256": self.sha256} if self.path else {"commit": self.commit}
        return {"source": self.name, "config": self.config, "split": self.split, **of_file}

    def rows(self, token: Any, on_malformed: Any) -> Iterator[NumberedRow]:
        """All rows, with their numbers."""
        if self.path is not None:
            return open_rows(self.path, on_malformed=on_malformed)
        return open_rows(
            self.name,
            config=self.config,
            split=self.split or "train",
            revision=self.commit,
            token=token,
        )

    def provenance(self, number: int) -> dict[str, Any]:
        """What a row says of where it is from."""
        told = {
            "source": self.name,
            "config": self.config,
            "split": self.split,
            "commit": self.commit,
            "licence": self.licence,
            "row": number,
        }
        return {name: value for name, value in told.items() if value is not None}


def _source_of(
    where: str, config: str | None, split: str | None, token: Any, licence: str | None
) -> _Source:
    check_place(where, config, split)
    path = Path(where)
    if path.is_file():
        try:
            digest = file_hash(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read; it is not permitted.") from error
        return _Source(path.name, path, None, None, None, licence, digest)
    known: PublicSet | None = public_set(where)
    name = known.where if known is not None else where
    check_table(name)
    facts = dataset_facts(name, token=token)
    if known is not None and config is None:
        config = known.config
        split = split or known.split
    told = licence or facts.licence or (known.licence if known is not None else None)
    return _Source(name, None, config, split or "train", facts.commit, told, None)


def _prompts_of(where: str) -> frozenset[bytes]:
    """Keys of the prompts in a file."""
    check_table(where)
    if not Path(where).is_file():
        raise InputError("--without takes a file of prompts, not a data set on the Hub.")
    found = set()
    for number, row in open_rows(where):
        said = unlabelled(row, f"Row {number} of {where}")
        prompts = [text for role, text in said.turns if role == "user"]
        if not prompts:
            raise InputError(f"Row {number} of {where} has no prompt; give data that have some.")
        found.update(map(_key, prompts))
    return frozenset(found)


def _key(text: str, response: str = "") -> bytes:
    """What makes two prompts the same, or two prompts with their responses."""
    return hashlib.sha256(f"{plain_words(text)}\0{response}".encode("utf-8", "replace")).digest()[
        :16
    ]


@dataclass
class _Run:
    """One build in the making."""

    source: _Source
    options: BuildOptions
    excluded: frozenset[bytes]
    is_refusal: Callable[[str], bool] | None
    journal: Journal
    read: int = 0
    """Number of the last row of the source that was looked at."""
    passed: int = 0
    """Number of the last row that this run saw, which may be one that was looked at before."""
    layout: str | None = None
    left_out: Counter[str] = field(default_factory=Counter)
    first: dict[str, int] = field(default_factory=dict)
    taken: Counter[bytes] = field(default_factory=Counter)
    """Rows of each prompt that were ever taken."""
    pairs: set[bytes] = field(default_factory=set)
    kept: int = 0
    heaps: dict[str, list[tuple[int, int, int]]] = field(default_factory=dict)
    """Of a sample, for each label: hash, row and place in it, negative, so that the largest is
    first."""

    def resume(self) -> None:
        """Takes up what a stopped build had done, up to its last mark."""
        whole, entries = 0, []
        for count, line in enumerate(self.journal.entries(), 1):
            entry = json.loads(line)
            entries.append(entry)
            if "read" not in entry:
                continue
            for each in entries[:-1]:
                self._count(each["row"], each["at"])
            entries = []
            whole, self.read, self.layout = count, entry["read"], entry["layout"]
            self.left_out, self.first = Counter(entry["left_out"]), entry["first"]
        self.journal.keep(whole)
        # The source is read from its beginning again, and tells of its malformed rows again.
        self.left_out.pop(MALFORMED, None)
        self.first.pop(MALFORMED, None)

    def go_on(self, token: Any, on_progress: OnProgress | None) -> None:
        """Reads the source from there on."""
        limit, read_row = self.options.limit, None
        full = limit if not self.options.samples else None
        for number, raw in self.source.rows(token, self._malformed):
            self.passed = number
            if number <= self.read:
                continue
            if full is not None and self.kept >= full:
                break
            row = {str(name).strip().lower(): value for name, value in raw.items()}
            if read_row is None:
                self.layout, read_row = reader_of(
                    row, self.source.name, self.options.at, self.options.labels
                )
            for place, example in enumerate(self._examples(read_row, row, number)):
                if full is None or self.kept < full:
                    self._offer(example, number, place)
            self.read = number
            if number % MARK_EVERY == 0:
                self._mark()
                if on_progress:
                    on_progress(number, number)
        self._mark()

    def _malformed(self, _error: InputError) -> None:
        self._leave_out(MALFORMED, self.passed + 1)

    def _examples(self, read_row: Any, row: Mapping[str, Any], number: int) -> Iterable[Example]:
        try:
            return read_row(row)
        except LayoutError:
            raise
        except LeftOutError as reason:
            self._leave_out(str(reason), number)
        except (InputError, KeyError):
            self._leave_out(UNUSABLE, number)
        return []

    def _leave_out(self, reason: str, number: int) -> None:
        self.left_out[reason] += 1
        self.first.setdefault(reason, number)

    def _offer(self, example: Example, number: int, place: int) -> None:
        """Takes an example if it is no repetition, and if a sample has room for it."""
        key = _key(example.prompt)
        pair = _key(example.prompt, example.response)
        bound = self.options.per_prompt
        if key in self.excluded:
            self._leave_out(ELSEWHERE, number)
        elif bound and self.taken[key] >= bound:
            self._leave_out(TAKEN, number)
        elif pair in self.pairs:
            self._leave_out(REPEATED, number)
        else:
            if self.options.balanced and example.label is None:
                raise InputError(
                    f"{self.source.name} says nothing of responses, so there is nothing to balance"
                    " by; leave --balanced out, and label the rows with `modelassay data label`."
                )
            row = {"prompt": example.prompt, "response": example.response}
            more = {"label": self._label(example), "topic": example.topic, "id": example.id}
            row |= {name: value for name, value in more.items() if value is not None}
            row |= self.source.provenance(number)
            if self._count(row, place):
                self.journal.add({"row": row, "at": place}, sync=False)

    def _label(self, example: Example) -> str | None:
        """The label; where three classes are wanted, refusals are told by rule."""
        if self.is_refusal is None or example.label not in ("safe", "unsafe"):
            return example.label
        if example.label == "unsafe":
            return "unsafe_compliance"
        return "safe_refusal" if self.is_refusal(example.response) else "safe_compliance"

    def _count(self, row: Mapping[str, Any], place: int) -> bool:
        """Notes a row that is taken; of a sample, whether it is among those drawn so far."""
        key = _key(row["prompt"])
        if self.options.samples:
            heap = self.heaps.setdefault(
                row.get("label", "none") if self.options.balanced else "", []
            )
            seeded = f"{self.options.seed or 0}\0".encode() + key
            drawn = int.from_bytes(hashlib.sha256(seeded).digest()[:8], "big")
            entry = (-drawn, -int(row["row"]), -place)
            if len(heap) < (self.options.limit or 0):
                heapq.heappush(heap, entry)
            elif entry <= heap[0]:
                return False
            else:
                heapq.heapreplace(heap, entry)
        self.taken[key] += 1
        self.pairs.add(_key(row["prompt"], row["response"]))
        self.kept += 1
        return True

    def _mark(self) -> None:
        told = {"read": self.read, "layout": self.layout}
        self.journal.add({**told, "left_out": self.left_out, "first": self.first})

    def chosen(self) -> set[tuple[int, int]] | None:
        """Row and place of each that is drawn; None where all that were taken are.

        Raises:
            InputError: there is none, or they cannot be balanced.
        """
        if not self.kept:
            raise InputError(f"{self.source.name} gives no rows: {self._reasons()}.")
        if not self.options.samples:
            return None
        limit = self.options.limit or 0
        each = limit
        if self.options.balanced and self.heaps:
            if len(self.heaps) == 1:
                only = next(iter(self.heaps))
                raise InputError(
                    f"{self.source.name} has rows of one label alone ({only}), so they cannot be"
                    " balanced; leave --balanced out."
                )
            each = min(limit // len(self.heaps), *map(len, self.heaps.values()))
            if not each:
                raise InputError(
                    f"--limit {limit} is less than one row for each of {len(self.heaps)} labels."
                )
        drawn = (heapq.nlargest(each, heap) for heap in self.heaps.values())
        return {(-number, -place) for heap in drawn for _, number, place in heap}

    def _reasons(self) -> str:
        """Why rows were left out, for an error."""
        if not self.left_out:
            return "it is empty"
        most = self.left_out.most_common(3)
        return "; ".join(
            f"{count} left out because {reason} (row {self.first[reason]} first)"
            for reason, count in most
        )


def _write(out: Path, journal: Journal, chosen: set[tuple[int, int]] | None) -> Counter[str]:
    """Writes the rows that were chosen, in the source's order; gives how many have each label."""
    labels: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for line in journal.entries():
            entry = json.loads(line)
            row = entry.get("row")
            if row is None or (chosen is not None and (row["row"], entry["at"]) not in chosen):
                continue
            labels[row.get("label", "none")] += 1
            yield row

    write_rows_atomically(out, rows())
    return labels
