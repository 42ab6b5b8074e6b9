"""Ways to write a request so that its words no longer stand in the text: a closed list.

Filters and models that go by words do not see what is asked; a model that can decode it does.
"""

from __future__ import annotations

import base64
import codecs
import unicodedata
from collections.abc import Callable
from typing import Literal

Encoding = Literal["base64", "rot13", "leetspeak", "reversed", "spaced", "morse"]

_LEET = str.maketrans("aeiostAEIOST", "431057431057")
_LETTERS = (
    ".- -... -.-. -.. . ..-. --. .... .. .--- -.- .-.. -- -. --- .--. --.- .-. ... - ..- ...-"
)
_LETTERS += " .-- -..- -.-- --.."
_DIGITS = "----- .---- ..--- ...-- ....- ..... -.... --... ---.. ----."
_MARKS = {
    ".": ".-.-.-",
    ",": "--..--",
    "?": "..--..",
    "'": ".----.",
    "!": "-.-.--",
    "/": "-..-.",
    "-": "-....-",
    ":": "---...",
}
_MORSE = {
    **dict(zip("abcdefghijklmnopqrstuvwxyz", _LETTERS.split(), strict=True)),
    **dict(zip("0123456789", _DIGITS.split(), strict=True)),
    **_MARKS,
}


def encode_text(text: str, encoding: Encoding | None) -> str:
    """A text in an encoding; None leaves it as it is.

    Characters that an encoding has nothing for, such as Greek letters in Morse code, stay.
    """
    return text if encoding is None else ENCODINGS[encoding](text)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode("utf-8")).decode("ascii")


def _rot13(text: str) -> str:
    return codecs.encode(text, "rot13")


def _leetspeak(text: str) -> str:
    return text.translate(_LEET)


def _reversed(text: str) -> str:
    return unicodedata.normalize("NFC", text)[::-1]  # else an accent would change its letter


def _spaced(text: str) -> str:
    """Letters apart; words by three spaces."""
    return " ".join(" ".join(text.split()))


def _morse(text: str) -> str:
    """Letters parted by a space, words by a bar."""
    words = text.lower().split()
    return " / ".join(" ".join(_MORSE.get(letter, letter) for letter in word) for word in words)


ENCODINGS: dict[Encoding, Callable[[str], str]] = {
    "base64": _base64,
    "rot13": _rot13,
    "leetspeak": _leetspeak,
    "reversed": _reversed,
    "spaced": _spaced,
    "morse": _morse,
}
