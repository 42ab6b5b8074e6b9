"""What a server's requests have to bear, from the environment alone.

A command line is seen by everybody on the machine.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from modelassay.errors import InputError

SHORTEST = 16
"""Characters of a secret that cannot be guessed."""


def find_secret(names: Sequence[str], what: str) -> str | None:
    """The secret in the first of these environment variables that holds one.

    Args:
        names: Of the variables.
        what: What an error calls it, such as `token`.

    Raises:
        InputError: it can be guessed, or cannot stand in a header.
    """
    name = next((name for name in names if os.environ.get(name, "").strip()), None)
    if name is None:
        return None
    secret = os.environ[name].strip()
    if len(secret) < SHORTEST:
        raise InputError(
            f"The {what} in {name} has fewer than {SHORTEST} characters and can be guessed;"
            f" set a longer one, {how_to_set(names[0])}."
        )
    if not secret.isascii() or not secret.isprintable() or " " in secret:
        raise InputError(f"The {what} in {name} must be ASCII letters, digits and signs.")
    return secret


def how_to_set(name: str) -> str:
    """How a secret is put into an environment variable."""
    return f'for example with export {name}="$(openssl rand -hex 32)"'
