"""What gradio offers and this page does not: uploads, its own monitoring, requests passed on."""

from __future__ import annotations

import re
from typing import Any

from modelassay.ui.limits import refuse

CLOSED = re.compile(
    r"(/gradio_api)?/("
    r"upload|process_recording|deep_link|monitoring|vibe-edit|undo-vibe-edit|vibe-code"
    r"|component_server|run-history|stream|proxy=|dev"
    r")(?![A-Za-z]).*"
)
"""Paths under which nothing of the page's is: no form takes a file, and nothing is fetched for a
visitor but models from the Hub."""


class Closed:
    """A layer of the page's server, for which these paths are not there."""

    def __init__(self, app: Any) -> None:
        """Stands before an ASGI application."""
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Passes a request on, or answers it with 404."""
        if scope["type"] == "http" and CLOSED.match(re.sub(r"/{2,}", "/", scope["path"])):
            await refuse(send, 404, "There is nothing here.")
            return
        await self.app(scope, receive, send)
