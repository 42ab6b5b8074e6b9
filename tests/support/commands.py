"""The commands of modelassay, and which of them take a model."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import typer
from typer.models import ArgumentInfo, OptionInfo

from modelassay.cli.main import app as modelassay_app

LOADING = {"device", "dtype", "load_8bit", "load_4bit", "token", "trust_remote_code"}
PARTS = {"revision", "adapter", "gguf_file"}
IN_TEMPLATE = ("no_chat_template",)  # means nothing outside of a chat template:
EXCEPTIONS = {
    "verify": IN_TEMPLATE,  # the template is part of what is verified
    "baseline create": IN_TEMPLATE,  # likewise
    "circuit find": IN_TEMPLATE,  # a model refuses as it was taught to, inside its template
    "features find": IN_TEMPLATE,
    "jailbreak explain": IN_TEMPLATE,
    "monitor circuit": IN_TEMPLATE,
    # LoRA goes over plain weights, and an adapter names its base by id alone.
    "organism train": (
        *IN_TEMPLATE,
        *("revision", "adapter", "gguf_file"),
        *("dtype", "load_8bit", "load_4bit", "trust_remote_code"),
    ),
}
"""What commands lack that take a MODEL."""


def model_commands() -> dict[str, set[str]]:
    """Commands that take a model, with the options that each has to have."""
    found = {}
    for name, command in commands_of(modelassay_app):
        parameters = inspect.signature(command, eval_str=True).parameters.values()
        names = {}
        for each in parameters:
            marks = getattr(each.annotation, "__metadata__", ())
            info = next((m for m in marks if isinstance(m, OptionInfo | ArgumentInfo)), None)
            shown = (getattr(info, "metavar", None) or "").split("|")
            if {"MODEL", "BASE", "CANDIDATE"} & set(shown):
                names[each.name] = info
        names.pop("compare", None)  # of `scan`: another model, loaded as the first one is
        if not names:
            continue
        wanted = {*LOADING, *IN_TEMPLATE}
        two = {n for n in names if n == "candidate" or (n == "base" and name != "organism train")}
        for role in two:
            wanted |= {f"{role}_{part}" for part in PARTS}
        if not two:
            wanted |= {*PARTS, "base"}
        found[name] = wanted
    return found


def commands_of(app: typer.Typer, path: str = "") -> Iterator[tuple[str, Callable[..., Any]]]:
    for found in app.registered_commands:
        assert found.callback is not None
        yield f"{path} {found.name or found.callback.__name__}".strip(), found.callback
    for group in app.registered_groups:
        assert group.typer_instance is not None
        yield from commands_of(group.typer_instance, f"{path} {group.name}")
