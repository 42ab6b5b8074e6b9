"""Which model is A and which is B, and keeping what would tell out of everything that is said.

Not blind, A is the base, and the candidates follow in the config's order. Blind, a draw decides
that depends on the config's seed and on the models, so that it stays the same over restarts and
cannot be guessed without the seed. Each model has one letter: had the base one beside every
candidate, the same responses under two letters would tell it.

An id is withheld where it stands as one. A part of it that is an ordinary word (the `safe` of
`organism:safe`) is in many texts that do not mean the model: a mark in its place would tell the id.
So such a word is withheld only where a field names a model by it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.audit.config import BASE, AuditConfig, is_there
from modelassay.hub.chat_completions import SHORTEST_KEY, WITHHELD

Name = str
"""A letter."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
UNTOLD = "withheld"
"""Stands where a model would be named."""
SHORTEST = 4
"""Characters of a name that is withheld: shorter ones are in every text."""
NAMING = ("model", "model_id", "id", "base", "candidate", "adapter", "path", "folder", "source")
"""Fields that may name a model."""
TOKENS = (
    "HF_TOKEN",
    "HUGGING_FACE_HUB_TOKEN",
    "OPENAI_API_KEY",
    "NEURONPEDIA_API_KEY",
    "MODELASSAY_MCP_TOKEN",
    "FT_AUDIT_HTTP_TOKEN",
)


@dataclass(frozen=True)
class Blinding:
    """What the models are called, and what must not be said."""

    order: tuple[str, ...]
    """The models by their names in the config, A first."""
    blind: bool
    pattern: re.Pattern[str] | None
    """Finds what is withheld; None where nothing is."""
    words: frozenset[str] = frozenset()
    """Ordinary words that are withheld only as the whole value of a field that names a model."""

    @property
    def a(self) -> str:
        """The model that is called A, by its name in the config."""
        return self.order[0]

    @property
    def letters(self) -> tuple[Name, ...]:
        """What the models are called."""
        return tuple(LETTERS[: len(self.order)])

    def key(self, name: Name) -> str:
        """A model's name in the config."""
        return self.order[self.letters.index(name)]

    @property
    def names(self) -> dict[str, Name]:
        """What each model of the config is called."""
        return dict(zip(self.order, self.letters, strict=True))

    def text(self, text: str) -> str:
        """Text without what is withheld; the mark does not tell which model was meant."""
        return self.pattern.sub(WITHHELD, text) if self.pattern else text

    def value(self, value: Any, field: str = "") -> Any:
        """The same for all texts of a JSON value, keys included.

        Args:
            value: Of JSON.
            field: Under which it stands.
        """
        if isinstance(value, str):
            named = field in NAMING and value.strip().lower() in self.words
            return WITHHELD if named else self.text(value)
        if isinstance(value, dict):
            return {
                self.text(str(key)): self.value(entry, str(key)) for key, entry in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.value(entry) for entry in value]
        return value


def blinding_for(config: AuditConfig, secrets: Sequence[str] = ()) -> Blinding:
    """The names of an audit.

    Args:
        config: The audit's.
        secrets: What is withheld besides, such as the token of a server.
    """
    found = (os.environ.get(name, "") for name in TOKENS)
    tokens = {token for token in found if len(token) >= SHORTEST_KEY}
    tokens |= set(secrets)
    models = config.models
    if not config.blind:
        return Blinding(tuple(models), False, _pattern(tokens, set()))
    told = [part for ref in models.values() for part in (ref.id, ref.adapter, ref.revision)]
    if len(models) == 2:
        base, other = (ref for ref in models.values())
        drawn = _digest(config.seed, base.id, base.adapter, other.id, other.adapter)
        order = tuple(models) if drawn[0] % 2 == 0 else tuple(reversed(models))
    else:
        order = tuple(sorted(models, key=lambda name: _digest(config.seed, *told, name)))
    spellings: set[str] = set()
    saes = [sae if isinstance(sae, str) else sae.path for sae in config.saes]
    named = [part for ref in models.values() for part in (ref.id, ref.adapter)]
    for reference in (*named, *(n for n in models if n != BASE), config.training_data, *saes):
        spellings |= _spellings(reference) if reference else set()
    words = frozenset(name.lower() for name in spellings if name.isalpha())
    # The audit's own folder is often called like a model, and an error may quote its path.
    folder = Path(config.folder)
    places = {str(path) for path in (folder.absolute(), folder.resolve())}
    pattern = _pattern(tokens, places | {name for name in spellings if not name.isalpha()})
    return Blinding(order, True, pattern, words)


def _digest(*parts: Any) -> bytes:
    return hashlib.sha256(repr(parts).encode()).digest()


def _spellings(reference: str) -> set[str]:
    """A model's id, and what of it alone would tell."""
    # `owner/repo:name@revision`, `organism:name`, and how the Hub's cache spells a repository.
    plain, *parts = re.split(r"[@:]", reference)
    found = {reference, reference.partition("@")[0], plain, *parts}
    path = Path(reference)
    if is_there(path):
        found |= {str(path.absolute()), str(path.resolve()), path.name, path.resolve().name}
    elif "/" in reference:
        found |= {plain.rsplit("/", 1)[-1], plain.replace("/", "--")}
    return {name for name in found if len(name) >= SHORTEST}


def _pattern(tokens: set[str], names: set[str]) -> re.Pattern[str] | None:
    """Finds tokens wherever they are, and names that are no part of a longer word."""
    parts = [rf"(?<![^\W_])(?:{_any_of(names)})(?![^\W_])"] if names else []
    parts += [_any_of(tokens)] if tokens else []
    return re.compile("|".join(parts), re.IGNORECASE) if parts else None


def _any_of(texts: set[str]) -> str:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return "|".join(re.escape(text) for text in longest_first)
