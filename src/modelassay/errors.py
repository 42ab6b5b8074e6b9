"""The one family of errors a user can fix.

Every message is one line that says what is wrong and what to do about it. The CLI prints that line
alone and exits with the error's `exit_code`; the page shows it as text.
"""

from __future__ import annotations

EXIT_PASS = 0
EXIT_SCAN_FAILED = 1
EXIT_IDENTITY_FAILED = 2
EXIT_INCONCLUSIVE = 3
EXIT_BAD_INPUT = 64
EXIT_UNAVAILABLE = 69
EXIT_INTERNAL = 70
EXIT_INTERRUPTED = 130
EXIT_PIPE = 141
"""The reader of the output has gone; no verdict has this code."""


class AssayError(Exception):
    """Base of all errors that carry a message for the user."""

    exit_code: int = EXIT_INTERNAL

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class InputError(AssayError):
    """What the user gave cannot be used: a model, a file, an option."""

    exit_code = EXIT_BAD_INPUT


class UnavailableError(AssayError):
    """Something that is needed is not there now: network, permission, device, disk, package."""

    exit_code = EXIT_UNAVAILABLE


def with_article(noun: str) -> str:
    """`a probe`, `an encoder`, `an SAE`."""
    first = noun[0]
    vowel = first in "AEFHILMNORSX" if noun.isupper() else first.lower() in "aeiou"
    return f"{'an' if vowel else 'a'} {noun}"


def first_line(error: BaseException, limit: int = 200) -> str:
    """The first line of another library's error, short enough to quote in one of ours."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0].strip()
    return line if len(line) <= limit else line[: limit - 1] + "…"
