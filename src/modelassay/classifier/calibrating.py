"""The threshold on P(unsafe), chosen on streams: as a guarded chat would ask while an answer grows.

A chat asks again and again, and one alarm is enough to interrupt it; so what counts of a benign
exchange is the highest of P(unsafe) over its growing prefixes. A threshold chosen on whole answers
would interrupt far more often than it says.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from modelassay.classifier.augmenting import stream_prefixes
from modelassay.classifier.card import Card, CardCalibration, write_card
from modelassay.classifier.model import ExchangeClassifier
from modelassay.data.exchanges import LabelledExchange
from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors, locked, new_folder
from modelassay.models.encoder import ENCODER_ID
from modelassay.statistics import threshold_at, wilson_interval

DEFAULT_RATE = 0.01


@dataclass(frozen=True)
class Calibration:
    """A threshold with its costs and its use; 95% Wilson intervals."""

    threshold: float
    target_block_rate: float
    block_rate: float
    """Share of benign streams that reach the threshold at least once."""
    interval: tuple[float, float]
    tpr: float | None
    """Share of unsafe streams that do; None where there are none."""
    tpr_interval: tuple[float, float] | None
    n: int
    """Benign streams."""
    n_unsafe: int

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def stream_risks(
    classifier: ExchangeClassifier, exchanges: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Highest P(unsafe) over the growing prefixes of each answer, float32 [exchange]."""
    asked = [
        (i, (prompt, prefix))
        for i, (prompt, response) in enumerate(exchanges)
        for prefix in stream_prefixes(response)
    ]
    risks = np.zeros(len(exchanges), dtype=np.float32)
    np.maximum.at(risks, [i for i, _ in asked], classifier.unsafe([pair for _, pair in asked]))
    return risks


def calibrate(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    rate: float = DEFAULT_RATE,
    *,
    threshold: float | None = None,
) -> Calibration:
    """Finds the lowest threshold that blocks at most this share of benign streams.

    Args:
        classifier: What is calibrated.
        rows: Exchanges that it was not trained on, some of them safe.
        rate: Target share of benign streams that are blocked.
        threshold: Measures this one in place of finding one.

    Raises:
        InputError: there are no safe rows, or the rate is no share.
    """
    if not 0 <= rate < 1:
        raise InputError("The rate must be at least 0 and less than 1, e.g. 0.01.")
    if not any(not row.unsafe for row in rows):
        raise InputError("Calibration needs safe exchanges, and there are none in the data.")
    risks = stream_risks(classifier, [(row.prompt, row.response) for row in rows])
    unsafe = np.array([row.unsafe for row in rows])
    if threshold is None:
        threshold = find_threshold(risks[~unsafe], rate)
    return measure(risks, unsafe, threshold, rate)


def find_threshold(benign: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most this share of benign streams reaches.

    Args:
        benign: float32 [stream]; the threshold is a float32 number too, so that comparing the two
            does not round one onto the other.
        rate: The share.
    """
    return threshold_at(benign.astype(np.float32), rate)


def measure(risks: np.ndarray, unsafe: np.ndarray, threshold: float, rate: float) -> Calibration:
    """What a threshold costs and catches.

    Args:
        risks: Highest P(unsafe) of each stream, [stream].
        unsafe: bool [stream]; some are False.
        threshold: From which a stream is blocked.
        rate: The target, for the record.
    """
    blocked = risks >= threshold
    n, n_unsafe = int((~unsafe).sum()), int(unsafe.sum())
    k, k_unsafe = int((blocked & ~unsafe).sum()), int((blocked & unsafe).sum())
    return Calibration(
        threshold=float(threshold),
        target_block_rate=rate,
        block_rate=k / n,
        interval=wilson_interval(k, n),
        tpr=k_unsafe / n_unsafe if n_unsafe else None,
        tpr_interval=wilson_interval(k_unsafe, n_unsafe) if n_unsafe else None,
        n=n,
        n_unsafe=n_unsafe,
    )


def calibrate_card(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    rate: float,
    test: Sequence[LabelledExchange] = (),
) -> Card:
    """The card with a new threshold, and what that does on rows that did not choose it."""
    found = calibrate(classifier, rows, rate)
    entry = _entry(found)
    if any(not row.unsafe for row in test):
        seen = calibrate(classifier, test, rate, threshold=found.threshold)
        entry = entry.model_copy(update={"held_out": _entry(seen)})
    return classifier.card.model_copy(update={"threshold": found.threshold, "calibration": entry})


def recalibrate(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    rate: float = DEFAULT_RATE,
    *,
    out: Path | None = None,
) -> Card:
    """Chooses a new threshold and writes it down.

    Args:
        classifier: What is calibrated.
        rows: Exchanges that it was not trained on.
        rate: Target share of benign streams that are blocked.
        out: New folder for a copy with the new threshold; None changes the classifier's own, which
            must be a folder of the user's.

    Returns:
        The new card.

    Raises:
        InputError: as `calibrate`, or `out` exists, or is needed and not given.
    """
    own = Path(classifier.id).expanduser()
    if out is None and (classifier.id == ENCODER_ID or not own.is_dir()):
        raise InputError(f"{classifier.id} is not yours to change; give a new folder with --out.")
    if out is not None and out.exists():
        raise InputError(f"{out} exists already; give a new folder for --out.")
    card = calibrate_card(classifier, rows, rate)
    if out is None:
        write_card(own, card)
        return card
    with explain_os_errors(f"writing {out}"), locked(out), new_folder(out) as partial:
        for file in classifier.folder.iterdir():
            if file.is_file():
                shutil.copyfile(file, partial / file.name)
        write_card(partial, card)
    return card


def _entry(found: Calibration) -> CardCalibration:
    fields = found.to_dict()
    del fields["threshold"]
    return CardCalibration(**fields)
