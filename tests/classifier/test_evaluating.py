"""Scores and thresholds that hold a rate."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import numpy as np
import pytest

from exchanges import synthetic
from modelassay.artifacts import Origin
from modelassay.classifier import evaluate, evaluating, load_classifier
from modelassay.classifier.evaluating import find_threshold, fit_threshold, recalibrate, score
from modelassay.classifier.record import CLASSIFIERS
from modelassay.data.labelled import LabelledExchange
from modelassay.data.labels import LABELS
from modelassay.errors import InputError


class Judge:
    """Says of an answer what its last word says, as a percentage; what a stream may provoke."""

    def unsafe(self, pairs, batch=16):
        return np.array([int(r.split()[-1]) / 100 for _, r in pairs], dtype=np.float32)


def stream(numbers, unsafe) -> LabelledExchange:
    text = " ".join(str(n) for n in numbers)
    return LabelledExchange("p", text, unsafe, None, "made up")


def test_a_stream_counts_by_its_highest_risk():
    numbers = [0] * 7 + [90] + [0] * 12
    (risk,) = evaluating.growing_risks(Judge(), [("p", stream(numbers, False).response)])
    assert risk == pytest.approx(0.9)


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.05, 0.2])
def test_calibration_holds_the_rate_of_benign_streams(rate):
    draw = random.Random(0)  # noqa: S311
    rows = [stream([draw.randrange(60) for _ in range(40)], False) for _ in range(300)]
    rows += [stream([draw.randrange(40, 100) for _ in range(40)], True) for _ in range(100)]
    found = fit_threshold(Judge(), rows, rate)
    assert found.block_rate <= rate
    assert found.interval[0] <= found.block_rate <= found.interval[1]
    assert (found.n, found.n_unsafe) == (300, 100)
    assert found.tpr > 0.8
    again = fit_threshold(Judge(), rows, rate, threshold=found.threshold)
    assert again == found


def test_ties_and_certainty_do_not_break_the_rate():
    benign = np.ones(50, dtype=np.float32)
    assert (benign >= find_threshold(benign, 0.01)).mean() == 0
    risks = np.linspace(0, 1, 1001, dtype=np.float32)
    for rate in (0.001, 0.01, 0.1):
        assert (risks >= json.loads(json.dumps(find_threshold(risks, rate)))).mean() <= rate


def test_calibration_needs_benign_rows():
    with pytest.raises(InputError, match="needs safe exchanges"):
        fit_threshold(Judge(), [stream([1], True)])


def test_recalibrating_writes_a_copy_or_the_own_folder(copy, tmp_path):
    classifier, rows = load_classifier(str(copy), device="cpu"), synthetic(90, seed=7, first=500)
    record = recalibrate(classifier, rows, 0.2, out=tmp_path / "new")
    assert CLASSIFIERS.open(tmp_path / "new").record.threshold == record.threshold
    assert load_classifier(str(tmp_path / "new"), device="cpu").threshold == record.threshold
    assert CLASSIFIERS.open(copy).record.threshold == classifier.threshold
    recalibrate(classifier, rows, 0.2)
    assert CLASSIFIERS.open(copy).record.threshold == record.threshold
    with pytest.raises(InputError, match="--out"):
        recalibrate(replace(classifier, origin=Origin("embedded", "shipped")), rows)


def test_scores_of_three_classes():
    rows = synthetic(90)
    truth = np.eye(3)[[LABELS.index(row.label) for row in rows]]
    perfect = score(0.1 + 0.7 * truth, rows, np.arange(90) // 3)
    assert (perfect.macro_f1, perfect.auroc, perfect.n, perfect.n_prompts) == (1, 1, 90, 30)
    assert perfect.classes == LABELS
    low, high = perfect.intervals["macro_f1"]
    assert 0.8 < low < high == 1  # no error in thirty rows is not a proof of none
    assert json.loads(json.dumps(perfect.to_dict()))["per_class"]["safe_refusal"]["n"] == 30
    never = np.tile([0.6, 0.3, 0.1], (90, 1))
    poor = score(never, rows, np.arange(90) // 3)
    assert poor.macro_f1 == pytest.approx((2 * 30 / 120) / 3)
    assert poor.auroc == 0.5
    assert poor.per_class["unsafe_compliance"].precision is None
    frame = poor.to_dataframe().set_index("class")
    assert frame.loc["unsafe_compliance", "n"] == 30
    chart = poor.figure().data[0]
    assert [list(row) for row in chart.z] == [list(row.values()) for row in poor.confusion.values()]
    assert "none predicted" in poor._repr_html_()


def test_binary_data_are_scored_on_two_classes():
    rows = [replace(row, label=None) for row in synthetic(90)]
    truth = np.eye(3)[[1 if not row.unsafe else 2 for row in rows]]
    found = score(truth, rows, np.arange(90) // 3)  # a refusal is safe
    assert found.classes == ("safe", "unsafe")
    assert found.macro_f1 == 1
    assert set(found.per_class) == {"safe", "unsafe"}


def test_scoring_needs_both_sides(trained):
    rows = [row for row in synthetic(30, first=500) if not row.unsafe]
    with pytest.raises(InputError, match=r"unsafe \(1\)"):
        evaluate(load_classifier(str(trained), device="cpu"), rows)
