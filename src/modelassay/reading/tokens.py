"""Text to token ids, nothing lost: what every tokenizer is held to.

A tokenizer that came with another model, or that cuts what it is given, reads something else than
was said. It is tried once with sentences of our own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from modelassay.errors import InputError
from modelassay.models import LoadedModel

MOST_UNKNOWN = 0.3
"""Share of unknown tokens in plain English above which a tokenizer cannot be the model's own."""
ENGLISH = (
    "The people in this small town like to talk about the weather, and they often say that the last"
    " winter was long and cold but the next summer will be good for the children."
)
"""What every tokenizer is tried on."""
_LONG = 40
"""Times that the sentence is repeated, to see whether long texts are cut: some 1,400 tokens."""

_tried: WeakSet[Any] = WeakSet()
_controls: WeakKeyDictionary[Any, tuple[int, list[str]]] = WeakKeyDictionary()


def tokenize(model: LoadedModel, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    """Token ids of texts, whole and unpadded.

    Args:
        model: Whose tokenizer is used.
        texts: The texts.
        special: Add the special tokens that the tokenizer begins a text with. One that it would end
            a text with is left out: what is read goes on.

    Raises:
        InputError: the tokenizer knows little of plain English, or cuts texts.
    """
    if model.tokenizer not in _tried:
        _try_out(model)
        _tried.add(model.tokenizer)
    return _ids(model.tokenizer, texts, special=special)


def control_tokens(tokenizer: Any) -> list[str]:
    """Special tokens as text, longest first."""
    known = _controls.get(tokenizer)
    if known is None or known[0] != len(tokenizer):
        added = tokenizer.added_tokens_decoder.values()
        found = {str(token) for token in added if token.special} | set(tokenizer.all_special_tokens)
        # One that is an ordinary word is read as what it is for this model.
        marks = (token for token in found if not token.isalnum())
        known = len(tokenizer), sorted(marks, key=len, reverse=True)
        _controls[tokenizer] = known
    return known[1]


def _ids(tokenizer: Any, texts: Sequence[str], *, special: bool) -> list[list[int]]:
    # Long texts are refused elsewhere; a warning of the tokenizer's would be about ours.
    options = {"padding": False, "truncation": False, "verbose": False}
    rows = tokenizer(list(texts), add_special_tokens=special, **options)["input_ids"]
    end = tokenizer.eos_token_id
    if special and end is not None and any(row[-1:] == [end] for row in rows):
        bare = tokenizer(list(texts), add_special_tokens=False, **options)["input_ids"]
        return [
            row[:-1] if row[-1:] == [end] and own[-1:] != [end] else row
            for row, own in zip(rows, bare, strict=True)
        ]
    return rows


def _try_out(model: LoadedModel) -> None:
    tokenizer = model.tokenizer
    long = ENGLISH * _LONG
    ids, *ends = _ids(tokenizer, [ENGLISH, f"{long} Yes.", f"{long} No."], special=False)
    unknown = ids.count(tokenizer.unk_token_id) / max(len(ids), 1)
    if not ids or unknown > MOST_UNKNOWN:
        raise InputError(
            f"The tokenizer of {model.info.id} knows {1 - unknown:.0%} of the tokens of plain"
            " English; it is not the one that the model was trained with. Put the model's own"
            " tokenizer.json there."
        )
    starts = _ids(tokenizer, [f"Yes. {long}", f"No. {long}"], special=False)
    if ends[0] == ends[1] or starts[0] == starts[1]:
        raise InputError(
            f"The tokenizer of {model.info.id} cuts long texts; take `truncation` out of its"
            " tokenizer.json."
        )
