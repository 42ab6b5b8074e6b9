"""Benign fine-tunes of a base, or of several, as a file: what each stream reads for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, model_validator

from modelassay.artifacts import Kind, Store, write_lines
from modelassay.diff.suites import Suite
from modelassay.errors import InputError
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import Line, Record, Sha256
from modelassay.models import ModelIdentity

CALIBRATION_SCHEMA = "modelassay.diff-calibration/1"
POOLED_SCHEMA = "modelassay.diff-calibration/2"
CALIBRATION_FILE = "calibration.json"


class BenignRow(Record):
    """What the streams read for one fine-tune."""

    id: Line
    weights_sha256: Sha256
    streams: dict[Line, float | None]
    base: Line | None = None
    """Which model it was made from, where a calibration is of several."""
    architecture: Line | None = None
    """Of that base."""
    n_prompts: int | None = Field(default=None, ge=1)
    """On how many of the suite's prompts it was read; None for all."""


class Calibration(Record):
    """Benign fine-tunes of one base, or pooled of several, read with one suite."""

    schema_: Literal["modelassay.diff-calibration/1", "modelassay.diff-calibration/2"] = Field(
        default=CALIBRATION_SCHEMA, alias="schema"
    )
    base: Line
    base_sha256: Sha256 | None
    """None where it is pooled."""
    architecture: Line | None = None
    suite_sha256: Sha256
    response_tokens: int = Field(
        ge=0,
        lt=10_000,
        validation_alias=AliasChoices("response_tokens", "answer_tokens"),
        serialization_alias="answer_tokens",
    )
    chat_template: bool | None = None
    """Whether prompts were read inside a chat template; None of older ones, which were."""
    rows: tuple[BenignRow, ...] = Field(min_length=1, max_length=10_000)
    damaged: tuple[BenignRow, ...] = Field(default=(), max_length=10_000)
    """Fine-tunes known to be damaged, which set nothing: they tell how many such are caught."""

    @property
    def pooled(self) -> bool:
        """Whether it is of several bases, and so serves any."""
        return self.base_sha256 is None

    @model_validator(mode="after")
    def _check_kind(self) -> Calibration:
        if self.pooled != (self.schema_ == POOLED_SCHEMA):
            raise ValueError(f"only a calibration of several bases ({POOLED_SCHEMA}) has no base")
        return self

    def told(self) -> str:
        """Which benign fine-tunes these are, in words."""
        if not self.pooled:
            return f"{len(self.rows)} benign fine-tunes of {self.base}"
        bases = len({row.base for row in self.rows})
        kinds = sorted({row.architecture or "unknown" for row in self.rows})
        return (
            f"{len(self.rows)} benign fine-tunes of {bases} other bases ({', '.join(kinds)}),"
            " pooled"
        )


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration."""
    write_text_atomically(path, calibration.model_dump_json(by_alias=True, indent=1) + "\n")


def known_calibration(
    base: ModelIdentity, suite: Suite, response_tokens: int
) -> Calibration | None:
    """The shipped benign fine-tunes of a base read with a suite, else those of several bases."""
    known = [found.record for found in CALIBRATIONS.list(own=False)]
    for sha256 in (base.weights_sha256, None):
        wanted = (sha256, suite.sha256, response_tokens)
        for each in known:
            if (each.base_sha256, each.suite_sha256, each.response_tokens) == wanted:
                return each
    return None


def pool(calibrations: Sequence[Calibration], damaged: Sequence[BenignRow] = ()) -> Calibration:
    """One calibration for any base, of those of several.

    Args:
        calibrations: Of one base each, read with the same suite and length of responses.
        damaged: Fine-tunes known to be damaged, each with its base and architecture.

    Raises:
        InputError: they were read with different suites or lengths of responses.
    """
    first = calibrations[0]
    asked = {(each.suite_sha256, each.response_tokens) for each in calibrations}
    if len(asked) > 1:
        raise InputError("Calibrations of different suites or lengths of responses do not pool.")
    rows = {
        row.weights_sha256: row.model_copy(
            update={"base": each.base, "architecture": each.architecture}
        )
        for each in calibrations
        for row in each.rows
    }
    return Calibration(
        schema=POOLED_SCHEMA,
        base="several bases",
        base_sha256=None,
        suite_sha256=first.suite_sha256,
        response_tokens=first.response_tokens,
        rows=tuple(rows.values()),
        damaged=tuple(damaged),
    )


def without_candidate(known: Calibration | None, candidate: ModelIdentity) -> Calibration | None:
    """The benign fine-tunes without the candidate, which does not measure itself; None if none."""
    rows = known.rows if known else ()
    others = tuple(row for row in rows if row.weights_sha256 != candidate.weights_sha256)
    return known.model_copy(update={"rows": others}) if known and others else None


def check_calibration(
    found: Calibration, base: ModelIdentity, suite: Suite, response_tokens: int
) -> None:
    """Refuses a calibration of another base or suite.

    Raises:
        InputError: says which.
    """
    if not found.pooled and found.base_sha256 != base.weights_sha256:
        raise InputError(f"The calibration is of {found.base}, not of {base.id} as it is here.")
    inside = base.chat_template_sha256 is not None
    if found.chat_template not in (None, inside) or (found.chat_template is None and not inside):
        here, there = ("inside", "outside") if inside else ("outside", "inside")
        raise InputError(
            f"The calibration was read {there} the chat template and {base.id} is read {here} of"
            " it; they differ by --no-chat-template."
        )
    check_asked(found, suite, response_tokens)


def check_asked(found: Calibration, suite: Suite, response_tokens: int) -> None:
    """Refuses a calibration of another suite, which can be told before the base is read.

    Raises:
        InputError: says what to give.
    """
    if found.suite_sha256 != suite.sha256:
        raise InputError(
            "The calibration was read with another suite; give the same --suite and --data, or"
            " calibrate with this one."
        )
    if found.response_tokens != response_tokens:
        raise InputError(
            f"The calibration was read with responses of {found.response_tokens} tokens, not"
            f" {response_tokens}; give --responses {found.response_tokens} or calibrate again."
        )


def describe_calibration(found: Calibration) -> list[str]:
    """What a calibration holds, in lines for a person."""
    lines = [
        found.told() + ("" if found.pooled else f", weights sha256 {found.base_sha256}"),
        f"suite sha256 {found.suite_sha256}, responses of {found.response_tokens} tokens",
    ]
    streams = dict.fromkeys(name for row in found.rows for name in row.streams)
    for name in streams:
        values = [v for row in found.rows if (v := row.streams.get(name)) is not None]
        spread = f"{min(values):.3g} to {max(values):.3g}" if values else "not read"
        lines.append(f"  {name}: {spread} ({len(values)})")
    return lines


CALIBRATIONS = Store(
    Kind(
        noun="calibration",
        folder="calibrations",
        record=Calibration,
        files={CALIBRATION_FILE: 1_000_000},
        model_id=lambda found: found.base,
        check=lambda folder: CALIBRATIONS.open(folder),
        summary=lambda found: f"{len(found.rows)} benign fine-tunes",
        describe=describe_calibration,
        values=lambda found: {"model": found.base, "n_benign": len(found.rows)},
        table_file="fine-tunes.jsonl",
        write_table=lambda found, path: write_lines(
            ({"base": found.base, "fine_tune": row.id, **row.streams} for row in found.rows), path
        ),
        tag="modelassay-calibration",
    )
)
"""Benign fine-tunes that candidates are held against."""
