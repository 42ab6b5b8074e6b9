"""What a report of a verification shows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from modelassay.errors import InputError
from modelassay.measures.weight_sketch import AblationMark
from modelassay.verify import Kind
from modelassay.verify.report import Check, VerificationReport
from rounding import ROUNDED, changed


def test_tables_and_charts_hold_the_numbers():
    checks = (Check("weights", "differs", "by 5%"), Check("tokenizer", "same", "<b>"))
    found = replace(
        ROUNDED,
        weights=replace(changed(0.0, b27=0.05), mark=AblationMark(0.5, (27,), True)),
        cosines={"harmful_content": {9: 0.5, 29: 0.25}},
    )
    report = VerificationReport(
        model="a/<script>",
        revision=None,
        verified=False,
        kind=Kind.ABLATED,
        checks=checks,
        baseline=None,
        baseline_model=None,
        reasons=("A direction is gone.",),
        differences=found,
    )
    frame = report.to_dataframe()
    assert list(frame["outcome"]) == ["differs", "same"]
    cosine, signature = report.figure("likeness").data
    assert list(cosine.y) == [0.5, 0.25]
    assert list(signature.y) == pytest.approx([0.93, 0.94])
    marked = next(trace for trace in report.figure("weights").data if "ablation" in trace.name)
    assert (list(marked.x), list(marked.y)) == ([27], [0.05])
    html = report._repr_html_()
    assert "NOT VERIFIED: ablated" in html
    assert "<script>" not in html
    with pytest.raises(InputError, match="nothing to draw"):
        replace(report, differences=None).figure()
