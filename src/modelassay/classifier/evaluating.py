"""How well a classifier judges exchanges, and the threshold that it interrupts a chat at.

Metrics are of whole exchanges, with n and intervals that resample prompts. Data that say only safe
or unsafe are scored on those two classes: the predictions are collapsed.

The threshold on P(unsafe) is chosen on streams: as a guarded chat would ask while a response grows.
A chat asks again and again, and one alarm is enough to interrupt it; so what counts of a benign
exchange is the highest of P(unsafe) over its growing prefixes. A threshold chosen on whole
responses would interrupt far more often than it says.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from modelassay.classifier.augmenting import stream_prefixes
from modelassay.classifier.model import UNSAFE, ExchangeClassifier
from modelassay.classifier.record import (
    CLASSIFIERS,
    ClassifierMetrics,
    ClassifierRecord,
    ClassMetrics,
    ThresholdRates,
    write_record,
)
from modelassay.data.fingerprints import Unseen, unseen
from modelassay.data.labelled import (
    LabelledExchange,
    class_of,
    draw,
    prompt_groups,
    require_classes,
)
from modelassay.data.labels import CLASSES, LABELS
from modelassay.errors import InputError
from modelassay.statistics import cluster_interval, rank_auroc, threshold_at, wilson_interval

log = logging.getLogger(__name__)

LEARNT_FROM = ("train", "validation")
OTHERS = "on prompts that it was not trained on"
DEFAULT_RATE = 0.01


def evaluate(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    *,
    groups: np.ndarray | None = None,
    max_examples: int | None = None,
) -> ClassifierMetrics:
    """Scores a classifier on exchanges of prompts that it was not trained on; others are left out.

    Args:
        classifier: What is scored.
        rows: Labelled with three classes, or all safe or unsafe.
        groups: int [row], equal for rows that are not independent; None finds them by prompt.
        max_examples: Most rows to score on, drawn evenly over labels and sources; None for all.

    Raises:
        InputError: there are no safe or no unsafe rows, or none that it was not trained on.
    """
    left = unseen_rows(classifier, rows)
    rows = [rows[i] for i in left.rows]
    groups = None if groups is None else groups[list(left.rows)]
    require_classes(rows, (True, False), f"Scoring a classifier ({OTHERS})")
    n_rows, chosen = len(rows), draw(rows, max_examples, of=class_of)
    rows = [rows[i] for i in chosen]
    groups = None if groups is None else groups[chosen]
    pairs = [(row.prompt, row.response) for row in rows]
    probabilities = classifier.predict(pairs, whole=True)
    if groups is None:
        groups = prompt_groups([row.prompt for row in rows])
    return score(probabilities, rows, groups).model_copy(
        update={"n_seen": left.n_seen, "drawn_from": n_rows if len(rows) < n_rows else None}
    )


def unseen_rows(classifier: ExchangeClassifier, rows: Sequence[LabelledExchange]) -> Unseen:
    """The rows whose prompts neither trained a classifier nor told when to stop.

    Raises:
        InputError: there are none.
    """
    learnt = [classifier.record.data.parts.get(name) for name in LEARNT_FROM]
    parts = [part for part in learnt if isinstance(part, dict)]
    known = [each for part in parts if isinstance(each := part.get("prompts"), str)]
    prompts = "".join(known) if known and len(known) == len(parts) else None
    left = unseen(rows, prompts, [part.get("sha256") for part in parts])
    left.require(classifier.id, f"modelassay classifier show {classifier.id}")
    return left


def score(
    probabilities: np.ndarray, rows: Sequence[LabelledExchange], groups: np.ndarray
) -> ClassifierMetrics:
    """Metrics of probabilities [row, class] against labels.

    The prediction is the likeliest class. Where the classifier or the data know two classes alone,
    two are scored: unsafe where that is the likeliest.
    """
    unsafe = np.array([row.unsafe for row in rows])
    predicted = probabilities.argmax(axis=1)
    last = probabilities.shape[1] - 1
    if last == 1 or any(row.label is None for row in rows):
        classes = CLASSES["binary"]
        truth, predicted = unsafe.astype(int), (predicted == last).astype(int)
    else:
        classes = LABELS
        truth = np.array([LABELS.index(row.label) for row in rows if row.label is not None])
    risk = probabilities[:, UNSAFE]
    confusion = np.zeros((len(classes), len(classes)), dtype=int)
    np.add.at(confusion, (truth, predicted), 1)
    return ClassifierMetrics(
        classes=classes,
        macro_f1=macro_f1(truth, predicted),
        auroc=rank_auroc(risk, unsafe),
        per_class={
            name: _of_class(confusion, i) for i, name in enumerate(classes) if confusion[i].any()
        },
        intervals={
            "macro_f1": cluster_interval(
                lambda i: macro_f1(truth[i], predicted[i]), unsafe, groups
            ),
            "auroc": cluster_interval(lambda i: rank_auroc(risk[i], unsafe[i]), unsafe, groups),
        },
        n=len(rows),
        n_prompts=len(np.unique(groups)),
        confusion={
            name: {other: int(confusion[i, j]) for j, other in enumerate(classes)}
            for i, name in enumerate(classes)
        },
    )


def macro_f1(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Mean over the classes that occur in the truth of 2 TP / (2 TP + FP + FN)."""
    scores = []
    for name in np.unique(truth):
        is_true, is_predicted = truth == name, predicted == name
        scores.append(2 * (is_true & is_predicted).sum() / (is_true.sum() + is_predicted.sum()))
    return float(np.mean(scores))


def _of_class(confusion: np.ndarray, i: int) -> ClassMetrics:
    hits, n, n_predicted = confusion[i, i], confusion[i].sum(), confusion[:, i].sum()
    return ClassMetrics(
        precision=float(hits / n_predicted) if n_predicted else None,
        recall=float(hits / n),
        f1=float(2 * hits / (n + n_predicted)),
        n=int(n),
    )


class ThresholdFit(ThresholdRates):
    """A threshold with its costs and its use."""

    threshold: float


def growing_risks(
    classifier: ExchangeClassifier, exchanges: Sequence[tuple[str, str]]
) -> np.ndarray:
    """Highest P(unsafe) over the growing prefixes of each response, float32 [exchange]."""
    asked = [
        (i, (prompt, prefix))
        for i, (prompt, response) in enumerate(exchanges)
        for prefix in stream_prefixes(response)
    ]
    risks = np.zeros(len(exchanges), dtype=np.float32)
    np.maximum.at(risks, [i for i, _ in asked], classifier.unsafe([pair for _, pair in asked]))
    return risks


def fit_threshold(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    rate: float | None = DEFAULT_RATE,
    *,
    threshold: float | None = None,
) -> ThresholdFit:
    """Finds the lowest threshold that blocks at most this share of benign streams.

    Args:
        classifier: What is calibrated.
        rows: Exchanges that it was not trained on, some of them safe.
        rate: Target share of benign streams that are blocked; None where a threshold is given
            for its own sake.
        threshold: Measures this one in place of finding one.

    Raises:
        InputError: there are no safe rows, or the rate is not a share.
    """
    if rate is None:
        if threshold is None:
            raise InputError("Give a rate, or a threshold.")
    elif not 0 <= rate < 1:
        raise InputError("The rate must be at least 0 and less than 1, e.g. 0.01.")
    if not any(not row.unsafe for row in rows):
        raise InputError("Calibration needs safe exchanges, and there are none in the data.")
    risks = growing_risks(classifier, [(row.prompt, row.response) for row in rows])
    unsafe = np.array([row.unsafe for row in rows])
    if threshold is None and rate is not None:
        threshold = find_threshold(risks[~unsafe], rate)
    assert threshold is not None  # noqa: S101 (one of the two is given)
    blocked = risks >= threshold
    n, n_unsafe = int((~unsafe).sum()), int(unsafe.sum())
    k, k_unsafe = int((blocked & ~unsafe).sum()), int((blocked & unsafe).sum())
    return ThresholdFit(
        threshold=threshold,
        target_block_rate=rate,
        block_rate=k / n,
        interval=wilson_interval(k, n),
        tpr=k_unsafe / n_unsafe if n_unsafe else None,
        tpr_interval=wilson_interval(k_unsafe, n_unsafe) if n_unsafe else None,
        n=n,
        n_unsafe=n_unsafe,
    )


def find_threshold(benign: np.ndarray, rate: float) -> float:
    """The lowest threshold that at most this share of benign streams reaches.

    Args:
        benign: float32 [stream]; the threshold is a float32 number too, so that comparing the two
            does not round one onto the other.
        rate: The share.
    """
    return threshold_at(benign.astype(np.float32), rate)


@dataclass(frozen=True)
class ThresholdChoice:
    """How a classifier's thresholds are come by."""

    rate: float = DEFAULT_RATE
    """Share of benign streams that may be blocked, where no threshold is given."""
    block: float | None = None
    """P(unsafe) from which a response counts as unsafe; None chooses one by the rate."""
    uncertain: float | None = None
    """P(unsafe) from which the classifier is uncertain; None keeps what its record says."""

    def __post_init__(self) -> None:
        """Refuses what no data could make right."""
        if not 0 <= self.rate < 1:
            raise InputError("--rate must be at least 0 and less than 1, e.g. 0.01.")
        for name, level in (("--block-at", self.block), ("--uncertain-at", self.uncertain)):
            if level is not None and not 0 < level <= 1:
                raise InputError(f"{name} must lie above 0 and not above 1, got {level:g}.")
        _check_band(self.uncertain, 1.0 if self.block is None else self.block)


def _check_band(uncertain: float | None, block: float) -> None:
    if uncertain is not None and uncertain > block:
        raise InputError(
            f"The classifier would be uncertain from {uncertain:g} on and block from {block:.4g}"
            " on; give --uncertain-at a lower number, or --block-at a higher one."
        )


def calibrated(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    choice: ThresholdChoice,
    test: Sequence[LabelledExchange] = (),
) -> ClassifierRecord:
    """The record with its thresholds, and what they do on rows that did not choose them.

    Raises:
        InputError: there are no safe rows, or the classifier would be uncertain from above where it
            blocks.
    """
    rate = None if choice.block is not None else choice.rate
    found = fit_threshold(classifier, rows, rate, threshold=choice.block)
    held_out = None
    if any(not row.unsafe for row in test):
        held_out = _rates(fit_threshold(classifier, test, rate, threshold=found.threshold))
    calibration = _rates(found).model_copy(update={"held_out": held_out})
    _check_band(choice.uncertain, found.threshold)
    known = classifier.record.uncertain
    kept = None if known is None else min(known, found.threshold)
    return classifier.record.model_copy(
        update={
            "threshold": found.threshold,
            "uncertain": kept if choice.uncertain is None else choice.uncertain,
            "calibration": calibration,
        }
    )


def _rates(found: ThresholdFit) -> ThresholdRates:
    return ThresholdRates(**found.model_dump(exclude={"threshold"}))


def recalibrate(
    classifier: ExchangeClassifier,
    rows: Sequence[LabelledExchange],
    rate: float = DEFAULT_RATE,
    *,
    block: float | None = None,
    uncertain: float | None = None,
    out: Path | None = None,
    max_examples: int | None = None,
) -> ClassifierRecord:
    """Chooses new thresholds and writes them down.

    Args:
        classifier: What is calibrated.
        rows: Exchanges; those of prompts that it was trained on are left out.
        rate: Target share of benign streams that are blocked.
        block: The threshold itself, in place of one that is chosen by the rate.
        uncertain: P(unsafe) from which the classifier is uncertain; None keeps its own, if any.
        out: New folder for a copy with the new thresholds; None changes the classifier's own, which
            must be a folder of the user's.
        max_examples: Most exchanges to choose it on, drawn evenly over labels and sources; None for
            all.

    Returns:
        The new record.

    Raises:
        InputError: as `fit_threshold`, or `out` exists, or is needed and not given.
    """
    choice = ThresholdChoice(rate, block, uncertain)
    origin = classifier.origin
    if out is None and (origin.source not in ("local", "folder") or origin.author):
        raise InputError(f"{classifier.id} is not yours to change; give a new folder with --out.")
    if out is not None and out.exists():
        raise InputError(f"{out} exists already; give a new folder for --out.")
    left = unseen_rows(classifier, rows)
    if left.n_seen:
        log.warning("%d rows are left out: the classifier learnt from their prompts.", left.n_seen)
    rows = [rows[i] for i in left.rows]
    chosen = draw(rows, max_examples, of=class_of)
    record = calibrated(classifier, [rows[i] for i in chosen], choice)
    if len(chosen) < len(rows) and record.calibration is not None:
        found = record.calibration.model_copy(update={"drawn_from": len(rows)})
        record = record.model_copy(update={"calibration": found})
    if out is None:
        write_record(classifier.folder, record)
        return record
    with CLASSIFIERS.new(out=out) as partial:
        CLASSIFIERS.copy(classifier.folder, partial)
        write_record(partial, record)
    return record
