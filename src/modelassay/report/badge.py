"""A report as a badge, and what a model card says with it; made here, asked of no other host."""

from __future__ import annotations

import re
from html import escape

from modelassay.report.headline import Headline
from modelassay.report.html import COLOURS
from modelassay.report.markdown import markdown_table
from modelassay.report.sections import Table, columns

LABEL = "#3d444d"
HEIGHT, PADDING, FONT_SIZE = 20, 8, 11
BADGE_FILE = "modelassay-badge.svg"
BEGIN, END = "<!-- modelassay:begin -->", "<!-- modelassay:end -->"
"""Around what is ours in somebody's model card."""
NARROW, WIDE = "fijlrtI1.,:;|!'()[] ", "mwMW@%&"
LIMITS = (
    "It tells what one run found on English prompts and in the weights. It does not promise that"
    " the model is safe."
)


def to_svg(found: Headline) -> str:
    """The badge as an SVG file: what was done on the left, the verdict with its symbol right.

    Args:
        found: What the report comes down to.
    """
    label, verdict = f"modelassay {found.product}", f"{found.symbol} {found.verdict}"
    left, right = (_width(text) + 2 * PADDING for text in (label, verdict))
    texts = "".join(
        f'<text x="{start + PADDING}" y="14" textLength="{width - 2 * PADDING}"'
        f' lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for text, start, width in ((label, 0, left), (verdict, left, right))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="{HEIGHT}"'
        f' role="img" aria-label="{escape(str(found))}"><title>{escape(str(found))}</title>'
        f'<clipPath id="r"><rect width="{left + right}" height="{HEIGHT}" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{left}" height="{HEIGHT}" fill="{LABEL}"/>'
        f'<rect x="{left}" width="{right}" height="{HEIGHT}" fill="{COLOURS[found.tone]}"/></g>'
        f'<g fill="#fff" font-family="Verdana,DejaVu Sans,sans-serif" font-size="{FONT_SIZE}">'
        f"{texts}</g></svg>\n"
    )


def snippet(found: Headline, *, image: str = BADGE_FILE, link: str = "") -> str:
    """One line of Markdown that shows the badge.

    Args:
        found: What the report comes down to.
        image: Where the badge's file lies, from the model card's point of view.
        link: What it leads to; empty for nothing.
    """
    shown = f"![{_alt(str(found))}]({image})"
    return f"[{shown}]({link})" if link else shown


def card_section(found: Headline, *, link: str = "", badge: str = "") -> str:
    """What a model card says of a report, in Markdown, between marks by which it is found again.

    Args:
        found: What the report comes down to.
        link: Address of the whole report; empty for none.
        badge: Where the badge's file lies, from the card's point of view; empty for none.
    """
    table = Table(columns("evidence", "found"), [list(row) for row in found.numbers])
    source = f" [The whole report]({link})." if link else ""
    lines = [
        BEGIN,
        "## Safety assay",
        "",
        *([snippet(found, image=badge, link=link), ""] if badge else []),
        f"{_alt(str(found))}.{source}",
        "",
        *([*markdown_table(table), ""] if found.numbers else []),
        LIMITS,
        END,
    ]
    return "\n".join(lines)


def with_section(card: str | None, section: str) -> str:
    """A model card with this section in place of its earlier one, or at its end.

    Args:
        card: The card as it is; None where there is none.
        section: As `card_section` gives it.
    """
    text = card or ""
    found = re.search(rf"{re.escape(BEGIN)}.*?{re.escape(END)}", text, re.DOTALL)
    if found:
        return text[: found.start()] + section + text[found.end() :]
    return f"{text.rstrip()}\n\n{section}\n".lstrip("\n")


def _alt(text: str) -> str:
    """Text that is neither the end of a link nor a tag nor emphasis."""
    return re.sub(r"([\\`*_\[\]])", r"\\\1", escape(text, quote=False))


def _width(text: str) -> int:
    """About how wide a text is, in pixels; it is stretched to exactly that."""
    widths = (4 if c in NARROW else 10 if c in WIDE else 7.5 if c.isupper() else 6.6 for c in text)
    return round(sum(widths))
