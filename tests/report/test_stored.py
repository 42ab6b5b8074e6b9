"""A report that is kept reads as it did; one that a stranger wrote can only be text and numbers."""

from __future__ import annotations

import json

import pytest

from modelassay.errors import InputError
from modelassay.report import to_html, to_json, to_markdown
from modelassay.report.chart_data import KeptChart, chart_data, check_chart
from modelassay.report.charts import counted_bars, new_figure
from modelassay.report.stored import MAX_BYTES, as_stored, read_report
from modelassay.report.terminal import to_text
from reporting import EVIL, Example


def kept(report) -> dict:
    return json.loads(as_stored(report).to_json())


def read(values: dict):
    return read_report(json.dumps(values))


@pytest.mark.parametrize("text", ["harmless", EVIL])
def test_a_kept_report_reads_as_it_did(text):
    report = Example(text)
    again = read_report(as_stored(report).to_json())
    assert to_text(again) == to_text(report)
    assert to_markdown(again) == to_markdown(report)
    assert to_json(again) == to_json(report)
    shown, before = (to_html(each).partition("<script")[0] for each in (again, report))
    assert shown == before
    assert list(again.figure("chart").data[0].y) == [0.25, 0.75]
    assert [section.chart is None for section in again.sections()] == [True] * 5 + [False]
    assert again.status is not None
    assert (again.status.value, again.product) == ("CRITICAL", "report")
    assert again.to_json() == as_stored(again).to_json() == as_stored(report).to_json()


def test_what_a_stranger_wrote_is_bounded_and_named_in_the_error():
    for change, message in (
        ({"schema": "modelassay.stored-report/2"}, "schema"),
        ({"values": "text"}, "values"),
        ({"sections": []}, "sections"),
        ({"sections": [{}] * 301}, "sections"),
        ({"sections": [{"level": 7}]}, "sections.0.level"),
        ({"sections": [{"title": "x" * 4001}]}, "sections.0.title"),
        ({"sections": [{"status": {"value": "PASS", "tone": "url(x)"}}]}, "status.tone"),
        ({"sections": [{"table": {"columns": [{"name": "a"}], "rows": [["1", "2"]]}}]}, "cells"),
        ({"sections": [{"chart": {"data": [{"type": "scattermap"}]}}]}, "scattermap"),
        ({"sections": [{"chart": {"data": [{"y": [1] * 50_001}]}}]}, "50000 values"),
        ({"sections": [{"facts": [["a", {"b": "c"}]]}]}, "facts"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            read({**kept(Example()), **change})
        assert "\n" not in str(caught.value)
    for text in ("", "[]", "{", "[" * 100_000, '{"schema": NaN}', "\ud800" * 3, b"\xff\xfe"):
        with pytest.raises(InputError):
            read_report(text)
    with pytest.raises(InputError, match="larger than"):
        read_report(" " * (MAX_BYTES + 1))


def test_charts_keep_numbers_and_nothing_that_is_fetched_or_clicked():
    figure = new_figure("<a href='http://b'>x</a><br>y", "x", "y")
    figure.add_scatter(x=["<img src=x>", "b"], y=[1.23456789, float("nan")], name="z")
    figure.update_layout(images=[{"source": "http://b/pixel.png"}], height=10**6)
    figure.update_traces(meta={"a": 1}, hovertemplate="%{y}<extra></extra>")
    values = chart_data(figure)
    painted = check_chart({"data": [{"marker": {"color": ["url(http://b)", "#fff"]}}]})
    assert painted["data"][0]["marker"]["color"] == [None, "#fff"]
    text = json.dumps(values)
    assert "<a" not in text
    assert "<img" not in text
    assert "pixel.png" not in text
    assert '"template"' not in text
    (curve,) = values["data"]
    assert curve["y"] == [1.2346, None]
    assert curve["hovertemplate"] == "%{y}<extra></extra>"
    assert values["layout"]["height"] == 2000
    assert values["layout"]["title"]["text"] == "&lt;a href='http://b'>x&lt;/a><br>y"
    assert check_chart(values) == values
    assert KeptChart(values)().layout.xaxis.title.text == "x"
    with pytest.raises(InputError, match="cannot be drawn"):
        KeptChart(check_chart({"data": [{"type": "bar", "orientation": "sideways"}]}))()
    for broken in (None, [], {"data": 5}, {"data": [5]}, {"data": [{"type": {}}]}):
        with pytest.raises(InputError):
            check_chart(broken)
    deep: dict = {}
    for _ in range(50):
        deep = {"line": deep}
    with pytest.raises(InputError):
        check_chart({"data": [deep]})


def test_thousands_of_values_are_counted_before_they_are_drawn():
    figure = new_figure("counts", "value", "n")
    counted_bars(figure, [i / 1000 for i in range(5000)], 40, name="swaps")
    bars = figure.data[0]
    assert sum(bars.y) == 5000
    assert len(bars.x) == 40
    assert len(json.dumps(chart_data(figure))) < 2_000
