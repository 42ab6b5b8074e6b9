"""The config of an audit as commands take it, and what of it they say.

Nothing large is imported before `load_audit_config` is called: `modelassay mcp` puts standard
output aside first.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

import typer

from modelassay.errors import InputError

if TYPE_CHECKING:
    from modelassay.audit import AuditConfig

CONFIG_VARIABLES = ["MODELASSAY_AUDIT_CONFIG", "FT_AUDIT_CONFIG"]
"""Environment variables that name a config."""
Profile = Literal["full", "behavior-only"]


def given_config(config: Path | None) -> Path:
    """The config's file.

    Raises:
        InputError: none was given.
    """
    if config is None:
        raise InputError("Give what is audited with --config FILE.")
    return config


def check_profile(given: str | None) -> Profile | None:
    """What --profile chooses, by either spelling; None for the file's.

    Raises:
        InputError: there is no such profile.
    """
    profile = given and given.replace("_", "-")
    if profile not in (None, "full", "behavior-only"):
        raise InputError(f"--profile is full or behavior-only, not {str(given)[:60]!r}.")
    return cast("Profile | None", profile)


def load_audit_config(
    config: Path, profile: Profile | None = None, *, blind: bool = False
) -> AuditConfig:
    """The config; what of it has no counterpart is told on standard error.

    Args:
        config: Its file.
        profile: In place of the file's.
        blind: Blind, whatever the file says.

    Raises:
        InputError: one line that names the key or the variable.
    """
    from modelassay.audit import load_config

    found = load_config(config, profile=profile, blind=blind or None)
    for note in found.notes:
        typer.echo(f"modelassay: {config.name}: {note}", err=True)
    return found
