"""Benign fine-tunes of a base, as a file: what each stream of evidence reads for them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from modelassay.diff.suites import Suite
from modelassay.errors import InputError
from modelassay.files import records as untrusted
from modelassay.files import shipped
from modelassay.files.atomic import write_text_atomically
from modelassay.files.records import Line, Record, Sha256
from modelassay.models import ModelInfo

CALIBRATION_SCHEMA = "modelassay.diff-calibration/1"
MAX_CALIBRATION_BYTES = 1_000_000


class BenignRow(Record):
    """What the streams read for one benign fine-tune."""

    id: Line
    weights_sha256: Sha256
    streams: dict[Line, float | None]


class Calibration(Record):
    """Benign fine-tunes of one base, read with one suite."""

    schema_: Literal["modelassay.diff-calibration/1"] = Field(
        default=CALIBRATION_SCHEMA, alias="schema"
    )
    base: Line
    base_sha256: Sha256
    suite_sha256: Sha256
    answer_tokens: int = Field(ge=0, lt=10_000)
    rows: tuple[BenignRow, ...] = Field(min_length=1, max_length=10_000)


def load_calibration(path: Path) -> Calibration:
    """Reads a calibration.

    Raises:
        InputError: it is missing or damaged.
    """
    return untrusted.read_record(path, Calibration, "calibration", MAX_CALIBRATION_BYTES)


def save_calibration(calibration: Calibration, path: Path) -> None:
    """Writes a calibration."""
    write_text_atomically(path, calibration.model_dump_json(by_alias=True, indent=1) + "\n")


def known_calibration(base: ModelInfo, suite: Suite, answer_tokens: int) -> Calibration | None:
    """The shipped benign fine-tunes of a base read with a suite, if there are any."""
    for path in sorted(_folder().glob("*.json")):
        found = load_calibration(path)
        if (found.base_sha256, found.suite_sha256, found.answer_tokens) == (
            base.weights_sha256,
            suite.sha256,
            answer_tokens,
        ):
            return found
    return None


def without_candidate(known: Calibration | None, candidate: ModelInfo) -> Calibration | None:
    """The benign fine-tunes without the candidate, which is no measure of itself; None if none."""
    rows = known.rows if known else ()
    others = tuple(row for row in rows if row.weights_sha256 != candidate.weights_sha256)
    return known.model_copy(update={"rows": others}) if known and others else None


def check_calibration(
    found: Calibration, base: ModelInfo, suite: Suite, answer_tokens: int
) -> None:
    """Refuses a calibration of another base or suite.

    Raises:
        InputError: says which.
    """
    if found.base_sha256 != base.weights_sha256:
        raise InputError(f"The calibration is of {found.base}, not of {base.id} as it is here.")
    if found.suite_sha256 != suite.sha256:
        raise InputError("The calibration was read with another suite; calibrate with this one.")
    if found.answer_tokens != answer_tokens:
        raise InputError(
            f"The calibration was read with answers of {found.answer_tokens} tokens, not"
            f" {answer_tokens}; pass --answers {found.answer_tokens}."
        )


def _folder() -> Path:
    return shipped.shipped_folder("calibrations")
