"""A report that is kept: its JSON values and its sections, as plain data.

What comes back is a report like any other: every renderer shows it, without the classes that made
it. It may be a stranger's, so it is read field by field, bounded in size, and text is all there is.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError, field_validator, model_validator

from modelassay.errors import InputError
from modelassay.files.records import Record, first_problem
from modelassay.report.base import Report
from modelassay.report.chart_data import KeptChart, check_chart, keep_chart
from modelassay.report.json import finite
from modelassay.report.sections import Column, Section, Status, Table, Tone

SCHEMA = "modelassay.stored-report/1"
MAX_BYTES = 2_000_000
"""Of a kept report."""
Text = Annotated[str, StringConstraints(max_length=4_000)]
Key = Annotated[str, StringConstraints(max_length=200)]


class _Status(Record):
    value: Key
    tone: Tone
    reasons: tuple[Text, ...] = Field(default=(), max_length=100)
    subject: Text = ""


class _Column(Record):
    name: Key
    align: Literal["left", "right"] = "left"
    shown: Literal["always", "wide", "narrow"] = "always"
    whole: bool = False
    tones: dict[Key, Tone] = Field(default={}, max_length=100)


class _Table(Record):
    columns: tuple[_Column, ...] = Field(min_length=1, max_length=60)
    rows: tuple[tuple[Text, ...], ...] = Field(default=(), max_length=5_000)
    best: int | None = None
    most: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _fits(self) -> _Table:
        if any(len(row) != len(self.columns) for row in self.rows):
            raise ValueError("a row has another number of cells than there are columns")
        return self

    def opened(self) -> Table:
        columns = tuple(Column(**vars(column)) for column in self.columns)
        return Table(columns, self.rows, best=self.best, most=self.most)


class _Section(Record):
    name: Key = ""
    title: Text = ""
    level: int = Field(default=2, ge=1, le=3)
    lines: tuple[Text, ...] = Field(default=(), max_length=500)
    items: tuple[Text, ...] = Field(default=(), max_length=2_000)
    numbered: bool = False
    code: Annotated[str, StringConstraints(max_length=200_000)] = ""
    table: _Table | None = None
    facts: tuple[tuple[Key, Text], ...] = Field(default=(), max_length=500)
    chart: dict[str, Any] | None = None
    status: _Status | None = None
    note: Text = ""

    @field_validator("chart")
    @classmethod
    def _drawable(cls, chart: dict[str, Any] | None) -> dict[str, Any] | None:
        if chart is None:
            return None
        try:
            return check_chart(chart)
        except InputError as error:
            raise ValueError(str(error)) from error

    def opened(self) -> Section:
        values = {name: getattr(self, name) for name in type(self).model_fields}
        return Section(
            **values
            | {
                "table": self.table and self.table.opened(),
                "chart": None if self.chart is None else KeptChart(self.chart),
                "status": self.status and Status(**vars(self.status)),
            }
        )


class _Kept(Record):
    schema_: Literal["modelassay.stored-report/1"] = Field(alias="schema")
    values: dict[str, Any]
    sections: tuple[_Section, ...] = Field(min_length=1, max_length=300)


@dataclass(frozen=True)
class StoredReport(Report):
    """A report as it was kept."""

    values: Mapping[str, Any]
    """As the report's own JSON, with its schema."""
    kept: tuple[Section, ...]

    def sections(self, **_options: Any) -> list[Section]:
        """Its parts in reading order, the verdict first."""
        return list(self.kept)

    def to_dict(self, **_options: Any) -> dict[str, Any]:
        """The JSON values of the report that was kept."""
        return dict(self.values)

    @property
    def product(self) -> str:
        """What made it, such as `scan`."""
        found = re.fullmatch(
            r"modelassay\.([a-z][a-z_-]{0,40})/\d{1,4}", str(self.values.get("schema"))
        )
        return found[1] if found else "report"

    @property
    def status(self) -> Status | None:
        """The verdict that leads it, if there is one."""
        return next((section.status for section in self.kept if section.status is not None), None)

    def to_json(self) -> str:
        """All of it as JSON text, which `read_report` takes."""
        sections = [_plain(section) for section in self.kept]
        kept = {"schema": SCHEMA, "values": finite(dict(self.values)), "sections": sections}
        return json.dumps(kept, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"


def as_stored(report: Report) -> StoredReport:
    """Any product's report in the form that is kept, its charts drawn.

    Args:
        report: What was found.

    Returns:
        The same report as plain data. Numbers have 6 significant digits, in charts 5.
    """
    if isinstance(report, StoredReport):
        return report
    return StoredReport(finite(report.to_dict()), tuple(map(_kept, report.sections())))


def read_report(text: str | bytes) -> StoredReport:
    """A kept report from its JSON text, whoever wrote it.

    Args:
        text: As `StoredReport.to_json` gives it.

    Raises:
        InputError: it is too large, or no such report; the message says where.
    """
    if len(text) > MAX_BYTES:
        raise InputError(f"The report is larger than the {MAX_BYTES} bytes that it may have.")
    try:
        kept = _Kept.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, whole="the report")
        raise InputError(f"This is not a report that modelassay kept: {problem}.") from error
    return StoredReport(finite(kept.values), tuple(each.opened() for each in kept.sections))


def _kept(section: Section) -> Section:
    """A section with its chart drawn, and the texts of its table alone."""
    table = section.table
    if table is not None:
        rows = [[str(cell) for cell in row] for row in table.rows]
        table = replace(table, rows=rows, records=None)
    return replace(section, chart=keep_chart(section.chart), table=table)


def _plain(section: Section) -> dict[str, Any]:
    """A section's values, without what it lacks."""
    table, status = section.table, section.status
    values: dict[str, Any] = {
        name: getattr(section, name)
        for name, default in _DEFAULTS.items()
        if getattr(section, name) != default
    }
    if table is not None:
        columns = [
            {name: each for name, each in vars(column).items() if each != _COLUMN[name]}
            for column in table.columns
        ]
        values["table"] = {
            "columns": columns,
            "rows": table.rows,
            "best": table.best,
            "most": table.most,
        }
    if status is not None:
        values["status"] = vars(status)
    if (chart := keep_chart(section.chart)) is not None:
        values["chart"] = chart.values
    return values


_DEFAULTS = {
    name: getattr(Section(), name)
    for name in ("name", "title", "level", "lines", "items", "numbered", "code", "facts", "note")
}
_COLUMN = {**vars(Column("")), "name": None}
