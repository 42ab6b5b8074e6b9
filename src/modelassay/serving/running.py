"""Runs the server until it is interrupted."""

from __future__ import annotations

import logging
import socket
from importlib.util import find_spec
from typing import Any

from modelassay.errors import UnavailableError

GOODBYE = 10
"""Seconds that answers may still take once the server was told to stop."""
LIBRARIES = ("fastapi", "uvicorn", "prometheus_client")


def check_installed() -> None:
    """Refuses to go on without what serves.

    Raises:
        UnavailableError: says how to install it.
    """
    if any(find_spec(name) is None for name in LIBRARIES):
        raise UnavailableError("Serving needs more packages: pip install 'modelassay[serve]'")


def http_server(app: Any) -> Any:
    """A uvicorn server of an application; `run(sockets=[...])` answers until it is stopped."""
    import uvicorn

    # No log of its own: a URL may hold what somebody said, and headers the key.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL + 1)
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        log_level="critical",
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=GOODBYE,
    )
    return uvicorn.Server(config)


def run_server(app: Any, listening: socket.socket) -> None:
    """Answers until it is interrupted."""
    http_server(app).run(sockets=[listening])
