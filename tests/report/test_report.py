"""One report through all renderers: what a stranger wrote is only text in each of them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
from rich.console import Console

from modelassay.errors import InputError
from modelassay.report import (
    Column,
    Report,
    Section,
    Table,
    print_report,
    to_html,
    to_json,
    to_markdown,
)
from modelassay.report.charts import bars_of_change, new_figure
from modelassay.report.html import fragment
from modelassay.report.sections import columns, table_of
from modelassay.report.terminal import to_text
from modelassay.report.text import cut, number_runs, p_text, plain_line, with_interval
from reporting import EVIL, Example, draw


def printed(report, width=80) -> str:
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        print_report(report, console)
    return capture.get()


def test_the_terminal_shows_all_and_the_verdict_last():
    out = printed(Example())
    assert out.index("a table of harmless") < out.index("facts") < out.index("CRITICAL")
    assert "• harmless" in out
    assert "1. one" in out
    assert "short" in out
    assert "only on a page" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert "\x1b" not in out


def test_a_list_is_not_broken_and_prose_is():
    long = "word " * 40
    items = printed([Section(items=(long,))])
    assert items.splitlines() == [long]
    lines = printed([Section(lines=(long,))]).splitlines()
    assert len(lines) > 1
    assert max(map(len, lines)) <= 80


def test_a_page_has_card_tables_and_charts_and_nothing_from_outside():
    page = to_html(Example())
    assert page.endswith("</html>\n")
    assert "CRITICAL</h1>" in page
    assert "<code>code</code>" in page
    assert "A table of harmless</h2>" in page
    assert "only on a page" in page
    assert "short" not in page.partition("<script")[0]
    assert page.count('<figure class="chart"') == 1
    assert page.count("newPlot(at") == 1
    ours = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "http" not in ours
    assert not re.search(r"<script[^>]*src=|<link|@import", page)


def test_strangers_texts_are_only_text():
    evil = Example(EVIL)
    shown = printed(evil, width=300)
    assert "[red]<img src=x" in shown
    for text in (shown, to_html(evil), fragment(evil), evil._repr_html_(), to_markdown(evil)):
        assert not {"\x1b", "\u202e"} & set(text)
    for text in (to_html(evil), evil._repr_html_(), to_markdown(evil)):
        assert "<img" not in text
        assert "&lt;img src=x" in text
    markdown = to_markdown(evil)
    assert "![a]" not in markdown
    cells = next(line for line in markdown.splitlines() if "0.25" in line)
    assert len(re.findall(r"(?<!\\)\|", cells)) == 5
    assert "\\`c\\`" in cells


def test_markdown_holds_every_part():
    text = to_markdown(Example())
    for part in (
        "harmless: **CRITICAL**",
        "* `code`",
        "## A table of harmless",
        "| name | value | outcome | wide |",
        "|---|---:|---|---|",
        "* **harmless**: harmless",
        "1. one\n2. two",
        '```json\n{\n "a": 1\n}\n```',
    ):
        assert part in text


def test_a_notebook_shows_tables_and_draws_charts_when_asked():
    html = Example()._repr_html_()
    assert "CRITICAL</h1>" in html
    assert "<table>" in html
    assert "plotly" not in html
    assert list(Example().figure().data[0].y) == [0.25, 0.75]
    assert Example().figure("chart") == draw()


def test_a_notebook_gives_text_without_the_fields_values():
    bundle = Example(EVIL)._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain"}
    assert "CRITICAL" in bundle["text/plain"]
    assert "Example(" not in bundle["text/plain"]
    assert "\x1b" not in bundle["text/plain"]
    assert max(map(len, to_text(Example()).splitlines())) <= 80


def test_tables_are_data_frames_of_numbers():
    frame = Example().to_dataframe()
    assert list(frame.columns) == ["name", "value"]
    assert frame["value"].sum() == 1.0
    assert Example().to_dataframe("table").equals(frame)


@dataclass(frozen=True)
class Bare(Report):
    def sections(self) -> list[Section]:
        return [Section("words", lines=("nothing else",))]

    def to_dict(self) -> dict[str, Any]:
        return {}


def test_what_a_report_lacks_is_named():
    for ask, message in (
        (lambda: Example().figure("levels"), "no chart 'levels'; there are nothing, chart"),
        (lambda: Example().figure("nothing"), "nothing to draw"),
        (lambda: Example().to_dataframe("levels"), "no table 'levels'; there are table"),
        (lambda: Bare().figure(), "nothing to draw"),
        (lambda: Bare().to_dataframe(), "has no table"),
    ):
        with pytest.raises(InputError, match=message):
            ask()


def test_a_terminal_shows_few_rows_and_a_page_all():
    table = Table(columns("n", right=(0,)), [(str(i),) for i in range(100, 130)], most=10)
    assert "109" in printed([Section(table=table)])
    assert "110" not in printed([Section(table=table)])
    assert "129" in to_html([Section(table=table)])
    assert printed([Section(table=replace(table, rows=[]), facts=[("a", "b")])]).split() == [*"ab"]


def test_json_is_strict():
    assert '"value": 0.333333' in to_json(Example())


def test_numbers_and_texts():
    assert plain_line("a\x1b\n\u202e") == r"a\x1b\n\u202e"
    assert cut("abcdef", 4) == "abc…"
    assert with_interval(0.5, (0.25, 0.75), ".0%") == "50% (25% to 75%)"
    assert with_interval(1.5, (1, 2), ".1f", unit="σ") == "1.5σ (1.0 to 2.0)"
    assert (p_text(0.0004), p_text(0.04)) == ("<.001", "0.040")


def test_a_table_of_dataclasses_has_their_texts_and_numbers():
    @dataclass(frozen=True)
    class Found:
        name: str
        size: float

    found = [Found("a", 0.5), Found("b", 0.25)]
    cells = [(Column("name", whole=True), lambda x: x.name), ("size", lambda x: f"{x.size:.0%}")]
    table = table_of(found, cells, right=(1,), most=1)
    assert [(column.name, column.align) for column in table.columns] == [
        ("name", "left"),
        ("size", "right"),
    ]
    assert table.rows == [["a", "50%"], ["b", "25%"]]
    assert list(table.records()) == [{"name": "a", "size": 0.5}, {"name": "b", "size": 0.25}]
    named = table_of(found, cells, record=lambda x: {"of": x.name})
    assert list(named.records()) == [{"of": "a"}, {"of": "b"}]


def test_layers_with_the_mark_of_ablation_have_bars_of_their_own():
    figure = new_figure("title", "layer", "change")
    bars_of_change(figure, {1: 0.1, 2: 0.2, 3: 0.3}, (2,))
    bars = {bar.name: (list(bar.x), list(bar.y)) for bar in figure.data}
    assert bars == {
        "changed": ([1, 3], [0.1, 0.3]),
        "changed as ablation does": ([2], [0.2]),
    }


def test_numbers_that_follow_each_other_are_joined():
    assert number_runs([3, 5, 6, 7, 9], " to ") == ["3", "5 to 7", "9"]
    assert number_runs([], "-") == []
