"""A report with something of every kind in it."""

from __future__ import annotations

from dataclasses import dataclass

from modelassay.report import Column, Report, Section, Status, Table
from modelassay.report.charts import new_figure

EVIL = "[red]<img src=x onerror=alert(1)>\x1b[31m\n\u202e![a](http://b) | `c`"


def draw():
    figure = new_figure("A chart", "x", "y")
    figure.add_scatter(x=[1, 2], y=[0.25, 0.75], name="line")
    return figure


@dataclass(frozen=True)
class Example(Report):
    """A report with something of every kind in it."""

    text: str = "harmless"

    def sections(self) -> list[Section]:
        text = self.text
        rows = [(text, "0.25", "same", "only on a page", ""), ("b", "0.75", "differs", "", "short")]
        table = Table(
            (
                Column("name"),
                Column("value", "right"),
                Column("outcome", tones={"same": "good", "differs": "bad"}),
                Column("wide", shown="wide"),
                Column("narrow", shown="narrow"),
            ),
            rows,
            records=lambda: [{"name": name, "value": float(value)} for name, value, *_ in rows],
            best=1,
        )
        return [
            Section("verdict", status=Status("CRITICAL", "bad", (text, "`code`"), text)),
            Section("table", f"a table of {text}", table=table, note=text),
            Section("facts", "facts", facts=[(text, text)], lines=(text,), items=(text,)),
            Section("code", "values", code='{\n "a": 1\n}', numbered=True, items=("one", "two")),
            Section("nothing", chart=lambda: None),
            Section("chart", chart=draw),
        ]

    def to_dict(self) -> dict:
        return {"schema": "example/1", "value": 1 / 3, "text": self.text}
