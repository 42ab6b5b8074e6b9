"""A comparison as JSON."""

from __future__ import annotations

from typing import Any

from modelassay.diff import DiffReport
from modelassay.report.json import dumps, finite


def diff_values(report: DiffReport, *, show_answers: bool = False) -> dict[str, Any]:
    """The report as values of strict JSON, schema `modelassay.diff/1`.

    Args:
        report: The comparison.
        show_answers: Give prompts and answers as text; otherwise their hashes.
    """
    return finite(report.to_dict(show_answers=show_answers))


def diff_json(report: DiffReport, *, show_answers: bool = False) -> str:
    """The same as text, indented, ending in a line break."""
    return dumps(diff_values(report, show_answers=show_answers))
