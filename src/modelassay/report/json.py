"""A report as JSON text."""

from __future__ import annotations

import json
import math
from typing import Any, Protocol


class Report(Protocol):
    """Anything that has a form of JSON-ready values."""

    def to_dict(self) -> dict[str, Any]:
        """The values."""
        ...


def to_dict(report: Report) -> dict[str, Any]:
    """The report as values of strict JSON: floats at 6 significant digits, null for NaN."""
    return finite(report.to_dict())


def to_json(report: Report) -> str:
    """The same as text, indented, ending in a line break."""
    return dumps(to_dict(report))


def dumps(values: Any) -> str:
    """Values of strict JSON as text, indented, ending in a line break."""
    return json.dumps(values, indent=2, allow_nan=False) + "\n"


def finite(value: Any) -> Any:
    """Values as strict JSON allows them: 6 significant digits, null for NaN, text as keys."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
