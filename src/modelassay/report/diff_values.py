"""A comparison as JSON, with the names of its features."""

from __future__ import annotations

from typing import Any

from modelassay.diffing import DiffReport
from modelassay.diffing.dictionaries import FeatureLabels
from modelassay.report.json import dumps, finite


def diff_values(
    report: DiffReport, labels: FeatureLabels | None = None, *, show_answers: bool = False
) -> dict[str, Any]:
    """The report as values of strict JSON, schema `modelassay.diff/1`.

    Args:
        report: The comparison.
        labels: Names of features; each feature gets a `label`, null where there is none.
        show_answers: Give prompts and answers as text; otherwise their hashes.
    """
    values = report.to_dict(show_answers=show_answers)
    known = labels or {}
    for feature in values["features"]:
        feature["label"] = known.get((feature["dictionary"], feature["feature"]))
    return finite(values)


def diff_json(
    report: DiffReport, labels: FeatureLabels | None = None, *, show_answers: bool = False
) -> str:
    """The same as text, indented, ending in a line break."""
    return dumps(diff_values(report, labels, show_answers=show_answers))
