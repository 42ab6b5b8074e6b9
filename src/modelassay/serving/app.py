"""The HTTP side: OpenAI's chat completions, models, health and metrics.

What a client sends is bounded in size and time before it is read, and nothing of it is logged.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import logging
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from modelassay.hub.endpoint import is_this_machine
from modelassay.serving import errors
from modelassay.serving.errors import RequestError
from modelassay.serving.logs import log_request
from modelassay.serving.replies import ALIVE, DONE, sent
from modelassay.serving.requests import parse_chat
from modelassay.serving.service import Service, Talk

log = logging.getLogger(__name__)

CHAT, MODELS, HEALTH, METRICS = "/v1/chat/completions", "/v1/models", "/health", "/metrics"
OPEN_PLACES = frozenset({HEALTH})
"""What is answered without a key."""
ALIVE_EVERY = 15.0
"""Seconds of silence after which a stream shows that it is alive."""
JSON = "application/json"


def build_app(service: Service) -> Any:
    """The ASGI application that serves a model."""
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False)

    @app.post(CHAT)
    async def chat(request: Request) -> Response:
        if request.headers.get("content-type", "").split(";")[0].strip().lower() != JSON:
            raise errors.bad_request(f"Send the request as Content-Type: {JSON}.")
        with service.handling():
            asked = parse_chat(await _body(request, service))
            talk = await service.begin(asked)
        request.scope["modelassay"] = talk
        return _Stream(talk, asked.include_usage) if asked.stream else _Whole(talk)

    @app.get(MODELS)
    async def models() -> Response:
        return _json({"object": "list", "data": [_model(service)]})

    @app.get(MODELS + "/{name:path}")
    async def model(name: str) -> Response:
        if name != service.settings.name:
            raise errors.no_such_model(name)
        return _json(_model(service))

    @app.get(HEALTH)
    async def health() -> Response:
        engine = service.engine
        found = {
            "status": "ok" if engine.is_alive else "stopped",
            "model": service.settings.name,
            "running": engine.n_live,
            "waiting": engine.n_waiting,
            "batched": engine.alone_because is None,
        }
        return _json(found, 200 if engine.is_alive else 503)

    @app.get(METRICS)
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=service.metrics.content_type)

    @app.exception_handler(RequestError)
    async def refuse(_request: Request, error: RequestError) -> Response:
        return _json(error.body(), error.status, error.headers)

    @app.exception_handler(HTTPException)
    async def not_there(request: Request, error: HTTPException) -> Response:
        say = errors.not_allowed if error.status_code == 405 else errors.no_such_place
        found = say(request.method, request.url.path)
        return _json(found.body(), found.status, error.headers)

    return _Door(app, service)


class _Door:
    """Lets requests in that may be answered; counts and logs all of them."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":  # no websockets
            return
        start, status, request_id = time.monotonic(), 0, f"req_{uuid.uuid4().hex}"

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                kept = [*message["headers"], (b"x-request-id", request_id.encode())]
                message = {**message, "headers": kept}
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, answer)
        except RequestError as error:
            await _json(error.body(), error.status, error.headers)(scope, receive, answer)
        except Exception as error:
            log.error("A request failed (%s).", type(error).__name__)
            if not status:
                found = errors.failed()
                await _json(found.body(), found.status)(scope, receive, answer)
        finally:
            self._note(scope, status, time.monotonic() - start, request_id)

    def _check(self, scope: Any) -> None:
        """Refuses a request that names another host, or lacks the key.

        Raises:
            RequestError: says which.
        """
        settings, headers = self.service.settings, scope["headers"]
        given = dict(headers)
        if settings.local_hosts_only and not _names_this_machine(given.get(b"host", b"")):
            raise RequestError(
                403, "This server answers on this machine alone; ask it as localhost."
            )
        if settings.key is None or scope["path"] in OPEN_PLACES:
            return
        scheme, _, found = given.get(b"authorization", b"").partition(b" ")
        found = found.strip() if scheme.lower() == b"bearer" else b""
        if not hmac.compare_digest(found, settings.key.encode()):
            raise errors.wrong_key(bool(found))

    def _note(self, scope: Any, status: int, seconds: float, request_id: str) -> None:
        path = scope["path"]
        place = path if path in (CHAT, MODELS, HEALTH, METRICS) else "other"
        place = MODELS if path.startswith(f"{MODELS}/") else place
        metrics = self.service.metrics
        metrics.requests.labels(place, str(status or "gone")).inc()
        talk: Talk | None = scope.get("modelassay")
        told: dict[str, Any] = {}
        if talk is not None:
            reply = talk.reply
            metrics.seconds.observe(seconds)
            metrics.tokens.labels("prompts").inc(reply.prompt_tokens)
            metrics.tokens.labels("responses").inc(reply.completion_tokens)
            told = {
                "completion": reply.id,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "reasons": [c.end.reason if c.end else "unfinished" for c in reply.choices],
                "prompt_risk": reply.choices[0].prompt_risk,
                "highest_risks": [c.highest_risk for c in reply.choices],
                "seconds_to_text": talk.first_text and round(talk.first_text, 4),
            }
        if place != HEALTH or status != 200:
            log_request(
                id=request_id,
                place=place,
                status=status or "gone",
                seconds=round(seconds, 4),
                **told,
            )


class _Answer(Response, ABC):
    """A response that is made while it is sent; it ends what runs when the client has gone."""

    def __init__(self, talk: Talk) -> None:
        super().__init__()
        self.talk = talk

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with _while_connected(receive):
            try:
                await self.answer(scope, receive, send)
            finally:
                self.talk.cancel()

    @abstractmethod
    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        """Sends it."""


class _Whole(_Answer):
    """A chat completion, sent when every choice has ended."""

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        seconds = self.talk.service.settings.seconds
        with anyio.move_on_after(seconds) as limit:
            try:
                async for _ in self.talk.events(ALIVE_EVERY):
                    pass
                response = _json(self.talk.reply.completion())
            except RequestError as error:
                response = _json(error.body(), error.status, error.headers)
            await response(scope, receive, send)
        if limit.cancelled_caught:
            error = errors.timed_out(seconds)
            await _json(error.body(), error.status, error.headers)(scope, receive, send)


class _Stream(_Answer):
    """Server-sent events: a chunk for each text, and what may be wrong at the end."""

    def __init__(self, talk: Talk, include_usage: bool) -> None:
        super().__init__(talk)
        self.include_usage = include_usage

    async def answer(self, scope: Any, receive: Any, send: Any) -> None:
        async def write(data: bytes, more: bool = True) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": more})

        headers = [
            (b"content-type", b"text/event-stream; charset=utf-8"),
            (b"cache-control", b"no-cache"),
            (b"x-accel-buffering", b"no"),
        ]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        seconds = self.talk.service.settings.seconds
        with anyio.move_on_after(seconds) as limit:
            try:
                async for data in self.chunks():
                    await write(data)
            except RequestError as error:
                await write(sent(error.body()), more=False)
                return
        if limit.cancelled_caught:
            with anyio.move_on_after(ALIVE_EVERY):  # to a client that may not read
                await write(sent(errors.timed_out(seconds).body()), more=False)
            return
        await write(DONE, more=False)

    async def chunks(self) -> AsyncIterator[bytes]:
        reply = self.talk.reply
        async for found in self.talk.events(ALIVE_EVERY):
            if found is None:
                yield ALIVE
            else:
                for choice in found[0].chunks(found[1]):
                    yield sent(reply.chunk(choice, counted=self.include_usage))
        if self.include_usage:
            yield sent(reply.count())


@asynccontextmanager
async def _while_connected(receive: Any) -> AsyncIterator[None]:
    """Cancels what runs within when the client goes away."""

    async def wait() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        group.cancel_scope.cancel()

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        yield
        group.cancel_scope.cancel()


async def _body(request: Request, service: Service) -> bytes:
    """A request's body, refused as soon as it is too large or too slow."""
    settings = service.settings
    with suppress(ValueError):
        if int(request.headers.get("content-length", "0")) > settings.most_bytes:
            raise errors.too_large(settings.most_bytes)
    received = bytearray()
    with anyio.move_on_after(settings.seconds_to_send) as limit:
        async for part in request.stream():
            received += part
            if len(received) > settings.most_bytes:
                raise errors.too_large(settings.most_bytes)
    if limit.cancelled_caught:
        raise errors.too_slow(settings.seconds_to_send)
    return bytes(received)


def _names_this_machine(host: bytes) -> bool:
    name = host.decode("latin-1").strip()
    name = name[: name.index("]") + 1] if name.startswith("[") and "]" in name else name
    name = name if name.startswith("[") else name.rpartition(":")[0] or name
    with suppress(ValueError):
        return ipaddress.ip_address(name.strip("[]")).is_loopback
    return is_this_machine(name)


def _model(service: Service) -> dict[str, Any]:
    return {
        "id": service.settings.name,
        "object": "model",
        "created": service.created,
        "owned_by": "modelassay",
    }


def _json(
    data: dict[str, Any], status: int = 200, headers: Any = None, media_type: str = JSON
) -> Response:
    body = json.dumps(data, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    return Response(body, status, headers, media_type)
