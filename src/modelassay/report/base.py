"""What the report of every product can do: data frames, charts, and its display in a notebook."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from modelassay.errors import InputError
from modelassay.report.sections import Section

if TYPE_CHECKING:
    from pandas import DataFrame
    from plotly.graph_objects import Figure


class Report(ABC):
    """What a product found: its sections, JSON values, tables as data frames, charts."""

    @abstractmethod
    def sections(self) -> list[Section]:
        """Its parts in reading order, the verdict first."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """JSON-ready values, with the schema."""

    def to_dataframe(self, table: str | None = None) -> DataFrame:
        """A table's numbers as a pandas data frame.

        Args:
            table: Name of its section; the first table if left out.

        Raises:
            InputError: the report has no such table.
        """
        from pandas import DataFrame

        tables = {s.name: s.table.records for s in self.sections() if s.table and s.table.records}
        return DataFrame.from_records([dict(row) for row in _named(tables, table, "table")()])

    def figure(self, chart: str | None = None) -> Figure:
        """A chart as a plotly figure.

        Args:
            chart: Name of its section; the first chart with something in it if left out.

        Raises:
            InputError: the report has no such chart, or there is nothing to draw.
        """
        charts = {s.name: s.chart for s in self.sections() if s.chart}
        if chart is None:
            drawn = (draw() for draw in charts.values())
            figure = next((one for one in drawn if one is not None), None)
        else:
            figure = _named(charts, chart, "chart")()
        if figure is None:
            raise InputError("There is nothing to draw here.")
        return figure

    def _repr_html_(self) -> str:
        """Verdict, tables and facts for a notebook; `figure()` gives the charts."""
        from modelassay.report.html import fragment

        return fragment(self)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, str]:
        """The same beside plain text as a terminal shows it, in place of the fields' values."""
        from modelassay.report.terminal import to_text

        return {"text/html": self._repr_html_(), "text/plain": to_text(self)}


def _named(found: Mapping[str, Any], name: str | None, kind: str) -> Any:
    if not found:
        raise InputError(f"This report has no {kind}.")
    if name is None:
        return next(iter(found.values()))
    if name not in found:
        raise InputError(f"This report has no {kind} {name!r}; there are {', '.join(found)}.")
    return found[name]
