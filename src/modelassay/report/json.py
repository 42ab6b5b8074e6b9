"""A report as JSON text."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol


class HasDict(Protocol):
    """Anything that has a form of JSON-ready values."""

    @property
    def to_dict(self) -> Callable[..., dict[str, Any]]:
        """Gives the values."""
        ...


def to_dict(report: HasDict, **options: Any) -> dict[str, Any]:
    """The report as values of strict JSON: floats at 6 significant digits, null for NaN.

    Args:
        report: The report.
        **options: Of its own `to_dict`, such as a comparison's `show_answers`.
    """
    return finite(report.to_dict(**options))


def to_json(report: HasDict, **options: Any) -> str:
    """The same as text, indented, ending in a line break."""
    return json.dumps(to_dict(report, **options), indent=2, allow_nan=False) + "\n"


def published(values: Mapping[str, Any], **names: str) -> dict[str, Any]:
    """The values, each under the key that a published schema has for it.

    Args:
        values: By the names that the code has for them.
        **names: The published key of a name, where it is another one.
    """
    return {names.get(name, name): value for name, value in values.items()}


def finite(value: Any) -> Any:
    """Values as strict JSON allows them: 6 significant digits, null for NaN, text as keys."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [finite(entry) for entry in value]
    return value
