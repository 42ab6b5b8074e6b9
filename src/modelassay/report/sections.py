"""A report as a list of frozen sections, which every renderer reads and no product prints itself.

A product's report is a frozen dataclass that inherits `base.Report` and lists its `sections()`.
Texts in them are plain: renderers escape what they write, and no markup in them is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

T = TypeVar("T")
Tone = Literal["good", "warning", "bad", "neutral", "muted"]
Draw = Callable[[], "Figure | None"]
"""Makes a plotly figure; None where there is nothing to draw."""
Records = Callable[[], Iterable[Mapping[str, Any]]]
"""Gives the numbers of a table, one mapping a row."""


@dataclass(frozen=True)
class Status:
    """A verdict and what it rests on."""

    value: str
    tone: Tone
    reasons: tuple[str, ...] = ()
    subject: str = ""
    """What it is about, such as a model's id."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    name: str
    align: Literal["left", "right"] = "left"
    shown: Literal["always", "wide", "narrow"] = "always"
    """`wide`: only on a page; `narrow`: only in a terminal, whose 80 characters are few."""
    whole: bool = False
    """Whether cells keep to one line in a terminal."""
    tones: Mapping[str, Tone] = field(default_factory=dict)
    """Colours of cells, by their text."""


@dataclass(frozen=True)
class Table:
    """Rows of text under named columns, and the numbers behind them."""

    columns: tuple[Column, ...]
    rows: Sequence[Sequence[str]]
    records: Records | None = None
    """Columns of a data frame, as numbers."""
    best: int | None = None
    """Index of a row to point out."""
    most: int | None = None
    """Rows that a terminal shows; None for all."""

    def seen(self, *, wide: bool) -> tuple[list[Column], list[list[str]]]:
        """Columns and cells to show on a page (wide) or in a terminal."""
        hidden = "narrow" if wide else "wide"
        kept = [i for i, column in enumerate(self.columns) if column.shown != hidden]
        rows = self.rows if wide or self.most is None else self.rows[: self.most]
        return [self.columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


@dataclass(frozen=True)
class Section:
    """One part of a report; what it lacks is left out."""

    name: str = ""
    """Finds its table and its chart: `report.to_dataframe(name)`, `report.figure(name)`."""
    title: str = ""
    level: int = 2
    """Of the heading, 1 to 3."""
    lines: tuple[str, ...] = ()
    """Paragraphs."""
    items: tuple[str, ...] = ()
    """A list; a terminal does not break them, so that they can be searched line by line."""
    numbered: bool = False
    """Whether the items are counted from 1."""
    code: str = ""
    """JSON, whose line breaks count."""
    table: Table | None = None
    facts: Sequence[tuple[str, str]] = ()
    """Names and values."""
    chart: Draw | None = None
    status: Status | None = None
    """A page shows it at the head of the section, a terminal at its end."""
    note: str = ""
    """Small print."""

    @property
    def has_text(self) -> bool:
        """Whether there is anything to read besides the title and the note."""
        table = self.table is not None and bool(self.table.rows)
        return bool(table or self.lines or self.items or self.code or self.facts or self.status)


@runtime_checkable
class HasSections(Protocol):
    """A report, as renderers see it."""

    def sections(self) -> list[Section]:
        """Its parts in reading order, the verdict first."""
        ...


def columns(*names: str, right: Sequence[int] = ()) -> tuple[Column, ...]:
    """Columns of these names; those at the indices `right` hold numbers."""
    return tuple(Column(name, "right" if i in right else "left") for i, name in enumerate(names))


def table_of(
    found: Sequence[T],
    cells: Sequence[tuple[str | Column, Callable[[T], str]]],
    *,
    right: Sequence[int] = (),
    record: Callable[[Any], Mapping[str, Any]] = asdict,
    most: int | None = None,
) -> Table:
    """A table with one row for each thing that was found.

    Args:
        found: What the rows are of.
        cells: Each column, or its name, and how its cells are written.
        right: As in `columns`.
        record: Gives the numbers of a row: the fields of a dataclass.
        most: Rows that a terminal shows; None for all.
    """
    shown = [
        name if isinstance(name, Column) else Column(name, "right" if i in right else "left")
        for i, (name, _) in enumerate(cells)
    ]
    rows = [[write(each) for _, write in cells] for each in found]
    return Table(tuple(shown), rows, lambda: map(record, found), most=most)


def sections_of(report: HasSections | Iterable[Section]) -> list[Section]:
    """A report's sections, or those given."""
    return report.sections() if isinstance(report, HasSections) else list(report)
