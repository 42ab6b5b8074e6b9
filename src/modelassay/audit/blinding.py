"""Which model is A and which is B, and keeping what would tell out of everything that is said.

Not blind, A is the base and B the candidate. Blind, a draw decides that depends on the config's
seed and on the two models, so that it stays the same over restarts and cannot be guessed without
the seed.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from modelassay.audit.config import AuditConfig, is_there
from modelassay.diff.pair import Role

Name = Literal["A", "B"]
WITHHELD = "[withheld]"
SHORTEST = 4
"""Characters of a name that is withheld: shorter ones are in every text."""
PLAIN = {"base", "candidate", "model", "adapter", "organism", "text", "data", "name"}
"""Words that reports use themselves; as the name of a folder they tell nothing."""
TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "OPENAI_API_KEY", "NEURONPEDIA_API_KEY")


@dataclass(frozen=True)
class Blinding:
    """The two names, and what must not be said."""

    a: Role
    """The role that is called A."""
    blind: bool
    pattern: re.Pattern[str] | None
    """Finds what is withheld; None where nothing is."""

    def role(self, name: Name) -> Role:
        """Base or candidate."""
        return self.a if name == "A" else self.other

    @property
    def other(self) -> Role:
        """The role that is called B."""
        return "candidate" if self.a == "base" else "base"

    @property
    def names(self) -> dict[Role, Name]:
        """What each role is called."""
        return {self.a: "A", self.other: "B"}

    def text(self, text: str) -> str:
        """Text without what is withheld; the mark does not tell which model was meant."""
        return self.pattern.sub(WITHHELD, text) if self.pattern else text

    def value(self, value: Any) -> Any:
        """The same for all texts of a JSON value, keys included."""
        if self.pattern is None:
            return value
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {self.text(str(key)): self.value(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(entry) for entry in value]
        return value


def blinding_for(config: AuditConfig) -> Blinding:
    """The names of an audit."""
    secrets = {os.environ[name] for name in TOKENS if len(os.environ.get(name, "")) >= 8}
    if not config.blind:
        return Blinding("base", False, _pattern(secrets))
    told = (config.base, config.base_adapter, config.candidate, config.candidate_adapter)
    drawn = hashlib.sha256(repr((config.seed, *told)).encode()).digest()[0]
    for reference in (*told, config.training_data, config.sae):
        secrets |= _spellings(reference) if reference else set()
    return Blinding("base" if drawn % 2 == 0 else "candidate", True, _pattern(secrets))


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
    return {name for name in found if len(name) >= SHORTEST and name.lower() not in PLAIN}


def _pattern(secrets: set[str]) -> re.Pattern[str] | None:
    if not secrets:
        return None
    longest_first = sorted(secrets, key=lambda name: (-len(name), name))
    return re.compile("|".join(re.escape(name) for name in longest_first), re.IGNORECASE)
