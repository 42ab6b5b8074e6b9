"""From token ids to text that can be shown, a complete character at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What a tokenizer decodes part of a character to."""
MOST_BYTES = 8
"""Tokens after which a character that stays unfinished is taken for what was generated."""


class IncrementalText:
    """Decodes an answer piece by piece, as decoding it whole would.

    Byte-level tokenizers split characters over tokens, and SentencePiece ones drop the space before
    a first word, so a token cannot be decoded alone: the difference between two decodings, with and
    without the new tokens, is what they add.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Starts an empty answer."""
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.context = 0  # first token that the next ones are decoded with
        self.shown = 0  # tokens whose text has been given out

    def push(self, token: int) -> str:
        """Adds a token; returns the text that is complete now, often one word, or nothing."""
        self.ids.append(token)
        text = self._new_text()
        if text.endswith(UNFINISHED) and len(self.ids) - self.shown < MOST_BYTES:
            return ""
        self.context, self.shown = self.shown, len(self.ids)
        return text

    def flush(self) -> str:
        """The rest, when no token follows: a character that stayed unfinished is dropped."""
        text = self._new_text().rstrip(UNFINISHED)
        self.context = self.shown = len(self.ids)
        return text

    def _new_text(self) -> str:
        before = self._decode(self.ids[self.context : self.shown])
        return self._decode(self.ids[self.context :])[len(before) :]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )


class StopStrings:
    """Ends an answer at the first stop string, and shows no part of it."""

    def __init__(self, stops: Sequence[str]) -> None:
        """Watches for any of these strings."""
        self.stops = [stop for stop in stops if stop]
        self.held = ""
        self.found = False

    def push(self, text: str) -> str:
        """The text that can be shown: up to a stop string, or to what may become one."""
        if self.found or not self.stops:
            return "" if self.found else text
        self.held += text
        ends = [self.held.find(stop) for stop in self.stops]
        if first := [end for end in ends if end >= 0]:
            self.found = True
            shown, self.held = self.held[: min(first)], ""
            return shown
        keep = max(_overlap(self.held, stop) for stop in self.stops)
        shown = self.held[: len(self.held) - keep]
        self.held = self.held[len(self.held) - keep :]
        return shown

    def flush(self) -> str:
        """The rest, when no text follows."""
        shown, self.held = self.held, ""
        return shown


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that `stop` begins with."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if stop.startswith(text[-length:]):
            return length
    return 0
