"""A server of a guarded tiny model on loopback, and OpenAI's own clients for it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from modelassay.guard import Guard
from modelassay.hub.listening import listen
from modelassay.serving.app import build_app
from modelassay.serving.running import http_server
from modelassay.serving.service import Service, Settings

NAME = "tiny"


@contextmanager
def serving(guard: Guard, **settings: Any) -> Iterator[tuple[str, Service]]:
    """The server's base URL, and what is behind it, while it runs."""
    service = Service(guard, Settings(**{"name": NAME, **settings}))
    with listen("127.0.0.1", 0) as listening:
        server = http_server(build_app(service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}", service
        finally:
            server.should_exit = True
            thread.join(20)
            service.close()
            assert not thread.is_alive()


def client_of(url: str, **options: Any) -> Any:
    """OpenAI's client."""
    from openai import OpenAI

    return OpenAI(**{"base_url": f"{url}/v1", "api_key": "none", "max_retries": 0, **options})
