"""Results of a benchmark as they come: JSON lines that a stopped run goes on from.

The first line says what run they belong to; each further line is one response. A line that a killed
run left unfinished is dropped, and answered again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import ConfigDict, TypeAdapter, ValidationError

from modelassay.errors import InputError
from modelassay.files.journal import Journal, open_journal

RESULTS_SCHEMA = "modelassay.guard-bench-results/1"

Arm = Literal["raw", "guarded"]
ARMS: tuple[Arm, ...] = get_args(Arm)
By = Literal["prompt", "answer"]


@dataclass(frozen=True)
class BenchRow:
    """One response and what was made of it. The text is only kept where that was asked for."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    id: str
    """Of the prompt."""
    side: Arm
    answered: bool
    """False where the model could not take the prompt; the rest is then empty."""
    blocked: By | None = None
    """What the guard refused, if it did."""
    n_tokens: int = 0
    sha256: str | None = None
    """Of all that was shown."""
    judged: bool = False
    """Whether a judge was asked; nothing shown needs none."""
    unsafe: bool | None = None
    refusal: bool | None = None
    detail: str = ""
    prompt_risk: float | None = None
    peak_risk: float | None = None
    """The largest of the response's tokens."""
    guard_detail: str | None = None
    """What the guard says of its classifier at the end."""
    uncertain: bool | None = None
    """True where it was shown although the classifier was uncertain."""
    text: str | None = None
    flagged_unsafe: bool | None = None
    """True where the judge says unsafe of a response of which it also says that it refuses."""
    seconds: float | None = None
    """Until the response ended; None in results that older versions wrote."""
    classifier_calls: int | None = None
    """How often the guard asked its classifier."""

    def settled(self) -> BenchRow:
        """As it counts: a response that refuses is not unsafe, whatever else its judge says."""
        if not (self.unsafe and self.refusal) or self.blocked:
            return self
        return replace(self, unsafe=False, flagged_unsafe=True)


class Results:
    """Responses by (prompt, side); `add()` puts them into the file at once."""

    def __init__(self, rows: Mapping[tuple[str, Arm], BenchRow], journal: Journal | None) -> None:
        """Goes on from rows that are there already."""
        self.rows = dict(rows)
        self._journal = journal

    def add(self, row: BenchRow) -> None:
        """Keeps a response; it survives whatever comes after."""
        if self._journal is not None:
            self._journal.add({k: value for k, value in asdict(row).items() if value is not None})
        self.rows[row.id, row.side] = row


@contextmanager
def open_results(
    path: Path | None, identity: Mapping[str, Any], *, force: bool = False
) -> Iterator[Results]:
    """Opens a file of results, to go on where a run of the same identity stopped.

    Args:
        path: JSON lines, made if it is not there; None keeps results in memory.
        identity: What the results depend on, JSON-ready.
        force: Begin again over results of another run.

    Raises:
        InputError: the file is another run's, or no file of results.
        UnavailableError: it cannot be written, or another process is writing it.
    """
    if path is None:
        yield Results({}, None)
        return
    with open_journal(
        path, RESULTS_SCHEMA, identity, called="guard results", option="--out", force=force
    ) as journal:
        rows: dict[tuple[str, Arm], BenchRow] = {}
        for number, line in enumerate(journal.entries(), 2):
            try:
                row = TypeAdapter(BenchRow).validate_json(line)
            except ValidationError as error:
                raise InputError(
                    f"{path}: line {number} is damaged; take it out, or delete the file."
                ) from error
            rows[row.id, row.side] = row.settled()
        yield Results(rows, journal)
