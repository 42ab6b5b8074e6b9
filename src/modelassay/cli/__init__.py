"""The `modelassay` command: options in, one report out, exit codes that scripts can rely on."""

from modelassay.cli.main import main

__all__ = ["main"]
