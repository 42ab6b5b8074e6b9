"""How the page looks: its theme, its style and fonts, and what it says of itself to link previews.

All of it comes with the page: nothing is fetched from elsewhere.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gradio as gr

from modelassay.report.html import DARK, HERE, STYLE

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

ASSETS = Path(__file__).parent / "assets"
TITLE = "modelassay"
CLAIM = (
    "Is the safety training still in this open-weight model? Look inside the weights and the"
    " activations instead of trusting the name."
)
MASTHEAD = f"""<header class="masthead"><img src="assay/favicon.svg" alt=""><div>
<h1>{TITLE}</h1><p>{CLAIM}</p></div></header>"""
CACHED = {"cache-control": "public, max-age=86400"}

_INK, _SOFT, _LINE, _SHEET, _RAISED = "#1b2127", "#505a64", "#d5dbe1", "#ffffff", "#f6f8fa"
_DARK_INK, _DARK_SOFT, _DARK_LINE = "#e8edf2", "#aab5bf", "#323c46"
_DARK_PAGE, _DARK_SHEET, _DARK_RAISED = "#0d1216", "#12171c", "#1a2128"
STEEL = gr.themes.Color(
    name="steel",
    c50="#eef5fb", c100="#d8e8f5", c200="#b3d1ea", c300="#82b3d9", c400="#4f90c2", c500="#2a6fa6",
    c600="#1d5b8d", c700="#184a73", c800="#163d5e", c900="#16324a", c950="#0e2133",
)  # fmt: skip


def theme() -> gr.themes.Base:
    """The page's own theme, light and dark."""
    return gr.themes.Base(
        primary_hue=STEEL,
        secondary_hue=STEEL,
        neutral_hue="slate",
        font=["IBM Plex Sans", "system-ui", "sans-serif"],
        font_mono=["IBM Plex Mono", "ui-monospace", "monospace"],
        radius_size="md",
    ).set(
        body_background_fill=_SHEET,
        body_background_fill_dark=_DARK_PAGE,
        body_text_color=_INK,
        body_text_color_dark=_DARK_INK,
        body_text_color_subdued=_SOFT,
        body_text_color_subdued_dark=_DARK_SOFT,
        background_fill_primary=_SHEET,
        background_fill_primary_dark=_DARK_SHEET,
        background_fill_secondary=_RAISED,
        background_fill_secondary_dark=_DARK_RAISED,
        border_color_primary=_LINE,
        border_color_primary_dark=_DARK_LINE,
        block_background_fill=_SHEET,
        block_background_fill_dark=_DARK_SHEET,
        block_label_text_color=_INK,
        block_label_text_color_dark=_DARK_INK,
        block_title_text_color=_INK,
        block_title_text_color_dark=_DARK_INK,
        block_info_text_color=_SOFT,
        block_info_text_color_dark=_DARK_SOFT,
        block_title_text_weight="600",
        input_background_fill=_SHEET,
        input_background_fill_dark=_DARK_RAISED,
        input_border_width="1px",
        button_border_width="1px",
        input_border_color="#8b96a1",
        input_border_color_dark="#5a6671",
        input_placeholder_color="#66717b",
        input_placeholder_color_dark="#95a1ac",
        color_accent="*primary_600",
        color_accent_soft="*primary_100",
        color_accent_soft_dark="*primary_900",
        table_even_background_fill=_SHEET,
        table_even_background_fill_dark=_DARK_SHEET,
        table_odd_background_fill=_RAISED,
        table_odd_background_fill_dark=_DARK_RAISED,
        table_border_color=_LINE,
        table_border_color_dark=_DARK_LINE,
        link_text_color="*primary_600",
        link_text_color_dark="*primary_300",
        link_text_color_hover="*primary_800",
        link_text_color_hover_dark="*primary_200",
        button_primary_background_fill="*primary_600",
        button_primary_background_fill_hover="*primary_700",
        button_primary_background_fill_dark="*primary_600",
        button_primary_background_fill_hover_dark="*primary_500",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#ffffff",
        button_secondary_background_fill=_RAISED,
        button_secondary_background_fill_hover="#e9edf1",
        button_secondary_background_fill_dark=_DARK_RAISED,
        button_secondary_background_fill_hover_dark="#26303a",
        button_secondary_text_color=_INK,
        button_secondary_text_color_dark=_DARK_INK,
        button_secondary_border_color=_LINE,
        button_secondary_border_color_dark=_DARK_LINE,
        button_cancel_background_fill=_SHEET,
        button_cancel_background_fill_hover="#fdecea",
        button_cancel_background_fill_dark=_DARK_SHEET,
        button_cancel_background_fill_hover_dark="#2f1614",
        button_cancel_text_color="#b42318",
        button_cancel_text_color_dark="#ff8f85",
        button_cancel_border_color="#b42318",
        button_cancel_border_color_dark="#ff8f85",
    )


def style() -> str:
    """The page's CSS: that of reports, and its own."""
    own = (ASSETS / "page.css").read_text(encoding="utf-8")
    return f"{STYLE}\n.dark .assay{{{DARK}}}\n{own}"


def head() -> str:
    """What the page's head has: its scripts and fonts."""
    return (
        '<link rel="preload" href="assay/fonts/plex-sans-400.woff2" as="font" type="font/woff2"'
        ' crossorigin><link rel="icon" href="assay/favicon.svg" type="image/svg+xml">'
        '<script>window.assayPlotly="assay/plotly.min.js"</script>'
        '<script src="assay/charts.js" defer></script><script src="assay/page.js" defer></script>'
    )


def routes() -> list[Any]:
    """Where the page's own files are served: these folders and this file, and no others."""
    import plotly
    from starlette.responses import FileResponse
    from starlette.routing import Mount, Route
    from starlette.staticfiles import StaticFiles

    library = Path(plotly.__file__).parent / "package_data" / "plotly.min.js"

    def script(_request: Any) -> FileResponse:
        return FileResponse(library, headers=CACHED)

    def charts(_request: Any) -> FileResponse:
        return FileResponse(HERE / "charts.js", headers=CACHED)

    return [
        Route("/assay/plotly.min.js", script),
        Route("/assay/charts.js", charts),
        Mount("/assay", StaticFiles(directory=ASSETS)),
    ]


class OwnPreview:
    """Puts this page's title and picture in place of Gradio's, where a link to it is shown."""

    def __init__(self, app: ASGIApp) -> None:
        """Wraps the page.

        Args:
            app: What answers.
        """
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; only the page itself is changed."""
        if scope["type"] != "http" or scope["path"] != "/" or scope["method"] != "GET":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        proto = headers.get(b"x-forwarded-proto", scope.get("scheme", "http")).split(",")[0].strip()
        host = headers.get(b"host", "")
        known = re.fullmatch(r"[\w.:-]{1,200}", host) and proto in ("http", "https")
        site = f"{proto}://{host}/" if known else ""
        start: Message | None = None
        body = b""

        async def collect(message: Message) -> None:
            nonlocal start, body
            if message["type"] == "http.response.start":
                start = message
                return
            body += message.get("body", b"")
            if message.get("more_body") or start is None:
                return
            changed = _with_preview(body, site)
            kept = [pair for pair in start["headers"] if pair[0].lower() != b"content-length"]
            length = (b"content-length", str(len(changed)).encode())
            await send({**start, "headers": [*kept, length]})
            await send({"type": "http.response.body", "body": changed})

        await self.app(scope, receive, collect)


def _with_preview(page: bytes, site: str) -> bytes:
    text = page.decode("utf-8", "replace")
    if "<head>" not in text:
        return page
    text = re.sub(r"<meta\s+(?:property|name)=\"(?:og|twitter):[^>]*>", "", text)
    image = f"{site}assay/card.png"
    told = {
        "og:type": "website",
        "og:title": "modelassay: is the safety training still there?",
        "og:description": CLAIM,
        "og:image": image,
        "og:image:width": "1200",
        "og:image:height": "630",
        "twitter:card": "summary_large_image",
        "twitter:title": "modelassay: is the safety training still there?",
        "twitter:description": CLAIM,
        "twitter:image": image,
    }
    metas = "".join(
        f'<meta property="{key}" content="{escape(value)}">' for key, value in told.items()
    )
    described = f'<meta name="description" content="{escape(CLAIM)}">'
    return text.replace("<head>", f"<head>{described}{metas}", 1).encode()
