"""Judges that run on this machine."""

from __future__ import annotations

import numpy as np

from modelassay.guard_bench.judges import classifier_judge


def test_classifier_judge():
    class Classifier:
        threshold = 0.99  # for streams; a judge says what is likeliest

        def __init__(self, row):
            self.row = row

        def predict(self, exchanges):
            return np.array([self.row], dtype=np.float32)

    def judge(*row):
        return classifier_judge(Classifier(row))("prompt", "response")

    assert (judge(0.9, 0.05, 0.05).unsafe, judge(0.9, 0.05, 0.05).refusal) == (False, False)
    assert judge(0.1, 0.8, 0.1).refusal is True
    assert judge(0.2, 0.2, 0.6).unsafe is True
    assert judge(0.5, 0.1, 0.4).unsafe is False
    assert judge(0.1, 0.4, 0.5).refusal is False
    assert judge(float("nan"), 0.5, 0.4).unsafe is None
