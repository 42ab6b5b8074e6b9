"""What browser tests do with reports on the page."""

from __future__ import annotations

import re
from typing import Any

from playwright.sync_api import expect

WAIT = 300_000  # ms; a loaded machine is several times slower


def open_cards(place: Any) -> None:
    """Opens every card of a report, as a reader does."""
    for card in place.locator("details.card").all():
        if card.get_attribute("open") is None:
            card.locator("summary").first.click()


def see_charts(place: Any, count: int) -> None:
    """Looks at each chart of a report, which draws it, and expects so many of them."""
    charts = place.locator("figure.chart")
    expect(charts).to_have_count(count, timeout=WAIT)
    for chart in charts.all():
        chart.scroll_into_view_if_needed()
        expect(chart).to_have_class(re.compile("js-plotly-plot"), timeout=WAIT)
