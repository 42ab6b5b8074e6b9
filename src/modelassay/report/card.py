"""A report as a picture to share: a PNG card of verdict, symbol, model, commit, numbers, date."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelassay.errors import UnavailableError
from modelassay.report.headline import Headline
from modelassay.report.html import COLOURS

if TYPE_CHECKING:
    from PIL.ImageDraw import ImageDraw

WIDTH, HEIGHT = 1200, 630
"""What sites that show links take as it is."""
MARGIN = 72
INK, FAINT, PAPER, RULE = "#1f2328", "#57606a", "#ffffff", "#d0d7de"
SMALLEST = 26
ROWS = 4
FONTS = Path(__file__).parent / "fonts"
CLAIM = "One run, on English prompts: evidence, and no promise of safety."


def to_png(found: Headline) -> bytes:
    """The card as a PNG file, with a description in its metadata for those who cannot see it.

    Args:
        found: What the report comes down to.

    Raises:
        UnavailableError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageDraw
        from PIL.PngImagePlugin import PngInfo
    except ImportError as error:
        raise UnavailableError(
            "Cards need Pillow; install it with `pip install 'modelassay[app]'`."
        ) from error

    image = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    draw = ImageDraw.Draw(image)
    colour = COLOURS[found.tone]
    draw.rectangle((0, 0, WIDTH, 16), fill=colour)
    draw.text((MARGIN, 56), f"modelassay {found.product}", FAINT, _font(30, bold=True))
    _line(draw, found.subject, 100, 46, INK, bold=True)
    commit = f"commit {found.commit[:12]}" if found.commit else ""
    about = "  ·  ".join(part for part in (commit, found.date or "") if part)
    draw.text((MARGIN, 166), about, FAINT, _font(28))
    _symbol(draw, found.tone, (MARGIN + 54, 284), 54, colour)
    _line(draw, found.verdict, 240, 78, colour, bold=True, left=MARGIN + 140)
    draw.line((MARGIN, 372, WIDTH - MARGIN, 372), RULE, 2)
    top = 390
    for label, value in found.numbers[:ROWS]:
        draw.text((MARGIN, top), _fitted(label, 30, WIDTH * 0.45)[0], FAINT, _font(30))
        text, size = _fitted(value, 30, WIDTH * 0.42)
        draw.text((WIDTH - MARGIN, top), text, INK, _font(size, bold=True), anchor="ra")
        top += 44
    version = f"modelassay {found.version}" if found.version else "modelassay"
    draw.text((MARGIN, HEIGHT - 48), CLAIM, FAINT, _font(22))
    draw.text((WIDTH - MARGIN, HEIGHT - 48), version, FAINT, _font(22), anchor="ra")
    described = PngInfo()
    described.add_text("Software", version)
    described.add_itxt("Description", str(found))
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=described)
    return file.getvalue()


def _font(size: int, *, bold: bool = False) -> Any:
    from PIL import ImageFont

    name = "Inter-SemiBold.otf" if bold else "Inter-Regular.otf"
    # Without a shaping engine: texts are strangers', and the card is the same on every machine.
    return ImageFont.truetype(FONTS / name, size, layout_engine=ImageFont.Layout.BASIC)


def _fitted(text: str, size: int, width: float, *, bold: bool = True) -> tuple[str, int]:
    """The text and a size at which it is at most so wide: smaller first, then cut in its middle."""
    while size > SMALLEST and _font(size, bold=bold).getlength(text) > width:
        size -= 2
    font, kept = _font(size, bold=bold), len(text)
    shown = text
    while font.getlength(shown) > width:
        kept -= 2
        shown = f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}"
    return shown, size


def _line(
    draw: ImageDraw,
    text: str,
    top: int,
    size: int,
    colour: str,
    *,
    bold: bool = False,
    left: int = MARGIN,
) -> None:
    """Text on one line, centred on where it would be at its full size."""
    shown, smaller = _fitted(text, size, WIDTH - MARGIN - left, bold=bold)
    middle = top + size * 0.6
    draw.text((left, middle), shown, colour, _font(smaller, bold=bold), anchor="lm")


def _symbol(draw: ImageDraw, tone: str, at: tuple[int, int], radius: int, colour: str) -> None:
    """A verdict's symbol, drawn: no font has to have it, and its shape tells it without colour."""
    x, y = at
    r = radius
    if tone == "warning":
        draw.polygon([(x, y - r), (x + r, y + r * 0.8), (x - r, y + r * 0.8)], fill=colour)
        draw.line([(x, y - r * 0.35), (x, y + r * 0.25)], PAPER, 13)
        draw.ellipse((x - 7, y + r * 0.42, x + 7, y + r * 0.42 + 14), fill=PAPER)
        return
    if tone == "bad":
        c = r * 0.42
        corners = [(-c, -r), (c, -r), (r, -c), (r, c), (c, r), (-c, r), (-r, c), (-r, -c)]
        draw.polygon([(x + dx, y + dy) for dx, dy in corners], fill=colour)
        for sign in (1, -1):
            arm = r * 0.38
            draw.line([(x - arm, y - sign * arm), (x + arm, y + sign * arm)], PAPER, 14)
        return
    draw.ellipse((x - r, y - r, x + r, y + r), fill=colour)
    if tone == "good":
        points = [
            (x - r * 0.45, y + r * 0.02),
            (x - r * 0.1, y + r * 0.38),
            (x + r * 0.5, y - r * 0.36),
        ]
        draw.line(points, PAPER, 14, joint="curve")
    else:
        mark = "?" if tone == "neutral" else "–"
        draw.text((x, y + 2), mark, PAPER, _font(int(r * 1.3), bold=True), anchor="mm")
