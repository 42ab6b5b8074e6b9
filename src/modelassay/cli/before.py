"""Options that stand before the command, and what they mean for the command that follows.

    modelassay --device cpu --baselines-dir ./baselines scan MODEL

`--device`, `--dtype` and `--quiet` become the command's own options, where it is given none;
`--baselines-dir` holds for everything that the command does with baselines.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from modelassay.cli import options
from modelassay.errors import InputError

BASELINES = "MODELASSAY_BASELINES"
"""Environment variable with the folder of the user's own baselines."""


def _use_baselines_dir(context: typer.Context, folder: Path | None) -> Path | None:
    """Puts a folder in place of the store of baselines until the command ends."""
    if folder is None:
        return None
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is a file; give --baselines-dir a folder.")
    before = os.environ.get(BASELINES)
    os.environ[BASELINES] = str(folder)

    def restore() -> None:
        if before is None:
            os.environ.pop(BASELINES, None)
        else:
            os.environ[BASELINES] = before

    context.call_on_close(restore)
    return folder


BaselinesDir = Annotated[
    Path | None,
    typer.Option(
        "--baselines-dir",
        metavar="FOLDER",
        callback=_use_baselines_dir,
        help="Your baselines, in place of your store; those of ams-scanner (JSON) are read too.",
    ),
]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print what is found on the way.")
]


def with_baselines_dir(command: Callable[..., Any]) -> Callable[..., Any]:
    """Gives a command --baselines-dir, which needs nothing from the command itself."""
    return options.with_groups(command, baselines=_baselines)


def _baselines(baselines_dir: BaselinesDir = None) -> Path | None:
    return baselines_dir


def hand_on(context: typer.Context, **options: Any) -> None:
    """Makes options the defaults of the command that follows.

    Args:
        context: Of the root command; its `obj` is the words on the command line.
        **options: Values by the name of the command's parameter; None where none was given.
    """
    given = {name: value for name, value in options.items() if value is not None}
    if not given:
        return
    context.default_map = _of_all(context.command, given)
    path, takes = _command_of(context.command, context.obj or ())
    for name in given:
        if path and name not in takes and name != "quiet":  # all is quiet there anyway
            typer.echo(f"`--{name}` makes no difference to `modelassay {path}`.", err=True)


def show_log(context: typer.Context, verbose: bool) -> None:
    """Lets the package say on stderr what it finds on the way, until the command ends."""
    if verbose:
        log, handler = logging.getLogger("modelassay"), logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        level = log.level
        log.setLevel(logging.DEBUG)
        log.addHandler(handler)
        context.call_on_close(lambda: (log.setLevel(level), log.removeHandler(handler)))


def _of_all(command: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The options, for a command or for each command below it by name."""
    if not hasattr(command, "commands"):
        return given
    return {name: _of_all(each, given) for name, each in command.commands.items()}


def _command_of(command: Any, words: Sequence[str]) -> tuple[str, set[str]]:
    """The command that words on the command line name, and its parameters."""
    path: list[str] = []
    for word in words:
        if word in getattr(command, "commands", {}):
            command = command.commands[word]
            path.append(word)
    return " ".join(path), {each.name for each in command.params}
