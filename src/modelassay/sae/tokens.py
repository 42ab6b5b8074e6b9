"""Tokens as a reader sees them, and which of them count as one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelassay.models import LoadedModel

LONGEST = 40
SNIPPET = 200


class Vocabulary:
    """A model's tokens as text of one line."""

    def __init__(self, model: LoadedModel) -> None:
        self.tokenizer = model.tokenizer
        size = max(len(model.tokenizer), model.network.get_input_embeddings().weight.shape[0])
        self._texts: dict[int, str] = {}
        numbers: dict[str, int] = {}
        raw = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
        plain = [str(token).lstrip("Ġ▁ ").lower() or str(token) for token in raw]
        plain += [f"<{number}>" for number in range(len(plain), size)]  # rows that have no token
        self.kinds = np.array([numbers.setdefault(token, len(numbers)) for token in plain])
        """int64 [vocabulary]: tokens that differ only in case or in a space before are alike."""
        self.n_kinds = len(numbers)

    def text(self, token: int) -> str:
        """A token as text; what cannot be printed is escaped."""
        if token not in self._texts:
            text = self._decode([token])
            if "�" in text or not text:  # part of a character, or a row that has no token
                text = str(self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>")
            self._texts[token] = printable(text)[:LONGEST]
        return self._texts[token]

    def snippet(self, window: Sequence[int], middle: int) -> str:
        """Tokens around one, which is marked; -1 is none."""
        before, here, later = window[:middle], window[middle : middle + 1], window[middle + 1 :]
        parts = (self._decode([t for t in part if t >= 0]) for part in (before, here, later))
        left, token, right = (printable(part) for part in parts)
        space = len(token) - len(token.lstrip())
        return f"{left}{token[:space]}«{token[space:]}»{right}"[:SNIPPET]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def printable(text: str) -> str:
    """Text of one line: line breaks and what else has no shape are written as escapes."""
    return "".join(
        c if c == " " or c.isprintable() else c.encode("unicode_escape").decode() for c in text
    )
