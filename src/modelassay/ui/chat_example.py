"""A guarded response that was kept, which the chat tab opens on."""

from __future__ import annotations

import json
from functools import partial

from modelassay.guard import GuardEvent, Thresholds
from modelassay.guard.charts import risk_curve
from modelassay.report.html import page_html
from modelassay.report.sections import Section
from modelassay.ui.look import ASSETS

CHAT_FILE = ASSETS / "chat.json"
"""`scripts/reports.py` writes it."""


def chat_example(thresholds: Thresholds) -> str:
    """The example as HTML: what was asked and answered, and the risk of each token.

    Args:
        thresholds: Of the response's risk, which are drawn.
    """
    kept = json.loads(CHAT_FILE.read_text(encoding="utf-8"))
    events = [GuardEvent(**{"smoothed": None, "risk": None, **each}) for each in kept["events"]]
    shown = " ".join("".join(event.text for event in events).split())
    tokens = [event.risk for event in events if event.kind == "token" and event.risk is not None]
    facts = [
        ("asked", kept["message"]),
        ("answered", shown),
        ("risk of the prompt", f"{events[0].risk or 0:.3f}"),
        ("highest risk of a token", f"{max(tokens, default=0.0):.3f}"),
        ("end", f"after {events[-1].index} tokens: {events[-1].reason}"),
    ]
    section = Section(
        "example",
        f"example: what {kept['model']} answered, and how risky each token was",
        facts=facts,
        chart=partial(risk_curve, events, thresholds),
    )
    return f'<div class="assay">{page_html([section])}</div>'
