"""A report on the page: HTML and, where there is one, a chart for each of its sections."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import gradio as gr

from modelassay.report.html import fragment
from modelassay.report.sections import Report


class ReportView:
    """Components for some sections of a report, hidden until there is something in them."""

    def __init__(self, *names: str, charts: Collection[str] = ()) -> None:
        """Makes the components inside the current `gr.Blocks`.

        Args:
            names: Of the sections, in the order in which they are shown.
            charts: Those of them whose chart is shown as well.
        """
        self._parts: dict[str, tuple[gr.HTML, gr.Plot | None]] = {}
        for name in names:
            text = gr.HTML(visible=False, container=False)
            chart = gr.Plot(visible=False, show_label=False) if name in charts else None
            self._parts[name] = (text, chart)

    @property
    def components(self) -> list[Any]:
        """All of them."""
        return [each for part in self._parts.values() for each in part if each is not None]

    def updates(self, report: Report) -> list[Any]:
        """Updates of all components, in their order."""
        sections = {section.name: section for section in report.sections()}
        found = []
        for name, (_, chart) in self._parts.items():
            section = sections.get(name)
            shown = section is not None and section.has_text
            html = fragment([section]) if section is not None and shown else ""
            found.append(gr.update(value=html, visible=shown))
            if chart is not None:
                draw = section.chart if section is not None else None
                figure = draw() if draw is not None else None
                found.append(gr.update(value=figure, visible=figure is not None))
        return found
