"""`modelassay serve`: a guarded model as a service that OpenAI's clients speak to.

The key is read from the environment alone: a command line is seen by everybody on the machine.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.cli.chat import Guarding
from modelassay.cli.secrets import find_secret, how_to_set
from modelassay.errors import InputError
from modelassay.hub import silence_downloads

KEY_VARIABLE = "MODELASSAY_SERVE_KEY"


def _room(
    conversations: Annotated[
        int, typer.Option(min=1, max=1024, help="Most conversations that are answered at once.")
    ] = 32,
    queue: Annotated[
        int, typer.Option(min=0, max=100_000, help="Most that may wait; others are told to retry.")
    ] = 64,
    cache_tokens: Annotated[
        int,
        typer.Option(
            min=64,
            help="Room for what was read: conversations at once times tokens of the longest.",
        ),
    ] = 32_768,
) -> Any:
    from modelassay.serving.engine import Room

    return Room(conversations, queue, cache_tokens)


def _limits(
    room: Annotated[Any, options.From(_room)],
    name: Annotated[
        str | None, typer.Option(help="What clients call the model; MODEL if left out.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, help="Longest response that a client may ask for.")
    ] = 1024,
    max_prompt_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Longest conversation; what the model reads if left out."),
    ] = None,
    max_body_bytes: Annotated[int, typer.Option(min=1000, help="Largest request.")] = 1_000_000,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="That an answer may take, waiting included.")
    ] = 300.0,
) -> dict[str, Any]:
    if not 0 < timeout < float("inf"):
        raise InputError(f"--timeout must be more than 0, got {timeout:g}.")
    if name is not None and not (name.strip() and name.isprintable()):
        raise InputError("--name must be some text that prints.")
    return {
        "room": room,
        "name": name,
        "most_tokens": max_new_tokens,
        "most_prompt_tokens": max_prompt_tokens,
        "most_bytes": max_body_bytes,
        "seconds": timeout,
    }


@options.grouped
def serve_command(
    model: options.Model,
    limits: Annotated[dict[str, Any], options.From(_limits)],
    parts: options.GuardParts,
    guarding: Guarding,
    loading: options.Loading,
    progress: options.Progress,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 need a key.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port to listen on; 0 for any that is free.")
    ] = 8000,
    key_env: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the key that requests have to bear; without one, all"
            " are answered.",
        ),
    ] = KEY_VARIABLE,
    log: Annotated[
        bool, typer.Option("--log/--no-log", help="Log requests as JSON lines, without texts.")
    ] = True,
) -> None:
    """Serve MODEL, guarded, to clients of OpenAI's chat completions."""
    from modelassay.hub.endpoint import is_this_machine
    from modelassay.hub.listening import address_of, listen
    from modelassay.serving.running import check_installed, run_server

    check_installed()
    guarding.check(parts)
    key = find_secret((key_env,), "key")
    if key is None and key_env != KEY_VARIABLE:
        raise InputError(
            f"The environment variable {key_env} is empty; set it, {how_to_set(key_env)}."
        )
    local = is_this_machine(host)
    if key is None and not local:
        raise InputError(
            f"{host} is reached from other machines, so requests need a key in the environment"
            f" variable {KEY_VARIABLE}: set it, {how_to_set(KEY_VARIABLE)}."
        )
    from modelassay.guard import load_guard
    from modelassay.serving.app import build_app
    from modelassay.serving.logs import logging_as_json
    from modelassay.serving.service import Service, Settings, served_name

    silence_downloads()
    logs = logging_as_json() if log else nullcontext()
    with logs, listen(host, port) as listening:
        with progress() as on_progress:
            guard = load_guard(model, **parts, **loading, on_progress=on_progress)
        given: dict[str, Any] = {**limits}
        given["name"] = limits["name"] or served_name(guard.model.info.id)
        service = Service(
            guard,
            Settings(**given, key=key, guarding=guarding.of(guard), local_hosts_only=local),
        )
        try:
            if not local:
                typer.echo(
                    f"modelassay: {host} is reached from other machines, and keys and texts are"
                    " sent as plain text; put TLS before it.",
                    err=True,
                )
            how = service.engine.alone_because
            shared = "conversations share passes" if how is None else f"one at a time: {how}"
            typer.echo(
                f"Serving {given['name']} at http://{address_of(listening, host)}/v1 ({shared})",
                err=True,
            )
            run_server(build_app(service), listening)
        finally:
            service.close()
