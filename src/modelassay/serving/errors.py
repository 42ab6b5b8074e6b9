"""Errors as OpenAI's API gives them: a status, and a JSON object that says what was wrong."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RequestError(Exception):
    """A request that is not answered; the message is one line for the client."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Holds what is sent.

        Args:
            status: HTTP status.
            message: What is wrong.
            kind: Sort of the error.
            param: Field of the request that it is about.
            code: Short name of the error.
            headers: Of the response.
        """
        super().__init__(message)
        self.status, self.kind, self.param, self.code = status, kind, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The JSON object."""
        fields = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        # Halves of characters, which JSON may hold, can be sent by no server.
        whole = {n: v and v.encode("utf-8", "replace").decode() for n, v in fields.items()}
        return {"error": whole}


def bad_request(message: str, param: str | None = None, code: str | None = None) -> RequestError:
    """A request that asks for what there is not, or is none."""
    return RequestError(400, message, param=param, code=code)


def too_long(n_tokens: int | None, most: int) -> RequestError:
    """A conversation that is longer than is read."""
    has = "is longer" if n_tokens is None else f"has {n_tokens} tokens"
    return bad_request(
        f"The maximum context length of a conversation is {most} tokens here, and yours {has};"
        " shorten it.",
        "messages",
        "context_length_exceeded",
    )


def too_large(most: int) -> RequestError:
    """A body of too many bytes."""
    return RequestError(
        413,
        f"The request is larger than {most} bytes.",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def too_slow(seconds: float) -> RequestError:
    """A body that does not arrive."""
    return RequestError(
        408, f"The request did not arrive in {seconds:g} s.", headers={"Connection": "close"}
    )


def no_such_model(name: str) -> RequestError:
    """A model that is not served."""
    return RequestError(
        404, f"The model '{name[:100]}' does not exist here.", param="model", code="model_not_found"
    )


def no_such_place(method: str, path: str) -> RequestError:
    """A URL that nothing is behind."""
    return RequestError(404, f"Invalid URL ({method} {path[:100]})", code="unknown_url")


def not_allowed(method: str, path: str) -> RequestError:
    """A method that a URL does not take."""
    return RequestError(
        405, f"{method} is not allowed on {path[:100]}.", code="method_not_supported"
    )


def wrong_key(given: bool) -> RequestError:
    """A request without the key."""
    message = (
        "Incorrect API key provided."
        if given
        else "You did not provide an API key; send it as 'Authorization: Bearer KEY'."
    )
    headers = {"WWW-Authenticate": "Bearer"}
    return RequestError(401, message, code="invalid_api_key", headers=headers)


def busy(retry_after: int) -> RequestError:
    """As many wait as may."""
    return RequestError(
        429,
        f"Too many conversations wait; try again in {retry_after} s.",
        "rate_limit_error",
        code="rate_limit_exceeded",
        headers={"Retry-After": str(retry_after)},
    )


def timed_out(seconds: float) -> RequestError:
    """An answer that took too long. A client that asked again would wait as long again."""
    return RequestError(
        504,
        f"The answer was not finished in {seconds:g} s; ask for fewer tokens, or try again later.",
        "server_error",
        code="timeout",
        headers={"x-should-retry": "false"},
    )


def failed() -> RequestError:
    """What went wrong here; why is in the log, as the error may quote a conversation."""
    return RequestError(
        500, "The server had an error while it answered; try again.", "server_error"
    )


def closing() -> RequestError:
    """The server is being stopped."""
    return RequestError(503, "The server is stopping.", "server_error", code="stopping")
