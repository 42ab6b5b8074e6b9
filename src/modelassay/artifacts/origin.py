"""Where an artifact came from, and what to know of that before one relies on it."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import Field

from modelassay.files.records import CommitHash, Line, Record, Sha256

TRUSTED = "MODELASSAY_TRUSTED"
"""Environment variable: namespaces on the Hub whose artifacts are trusted, with commas between."""
Where = Literal["shipped", "local", "folder", "hub"]


class PulledFrom(Record):
    """What a store remembers of an artifact that was pulled."""

    id: Line
    author: Line
    revision: CommitHash
    on_main: bool


class ImportedFrom(Record):
    """What a record says of an artifact that another tool made."""

    tool: Line
    files: dict[Line, Sha256] = Field(max_length=20)
    """Of the other tool, by name."""
    unknown: tuple[Line, ...] = Field(max_length=50)
    """What its files do not say, and nobody can say now."""
    otherwise: tuple[Line, ...] = Field(max_length=50)
    """What is done here in another way than there."""
    left_out: tuple[Line, ...] = Field(max_length=100)
    """What has no counterpart here."""

    def lines(self) -> list[str]:
        """All of it, for a person."""
        return [
            f"imported from {self.tool}: {', '.join(self.files)}",
            *(f"unknown: {each}" for each in self.unknown),
            *(f"otherwise than there: {each}" for each in self.otherwise),
            *(f"left out: {each}" for each in self.left_out),
        ]


@dataclass(frozen=True)
class Origin:
    """Where an artifact came from."""

    id: str
    """What finds it again."""
    source: Where
    author: str | None = None
    """Owner of the Hub repository."""
    revision: str | None = None
    """Hub commit, 40 hex digits."""
    on_main: bool = True
    """Whether the owner's main branch held that commit when it was fetched. If not it can be an
    older one, or a pull request by anybody."""

    def __str__(self) -> str:
        """`shipped`, `local`, `folder`, or `owner/repo:name@commit by owner`."""
        if self.source != "hub":
            return self.source
        return f"{self.id}@{self.revision} by {self.author}"

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)

    def remarks(self, noun: str, model_id: str) -> tuple[str, ...]:
        """What to know of who published it; empty for what is shipped or the user's own.

        Args:
            noun: What people call it, such as `probe`.
            model_id: Of the model it belongs to, whose publisher is trusted with it.
        """
        if self.author is None:
            return ()
        if not self.on_main:
            return (
                f"Careful: {self.author}'s main branch does not hold the {noun}'s commit now. It"
                " can be an older one, or a pull request by anybody; look it up before you rely on"
                " it.",
            )
        publisher, slash, _ = model_id.partition("/")
        trusted = {name.strip() for name in os.environ.get(TRUSTED, "").split(",")}
        if self.author in trusted:
            return (f"The {noun} is by {self.author}, whom you trust ({TRUSTED}).",)
        if slash and self.author == publisher:
            return (f"The {noun} is by {self.author}, who publishes the model.",)
        whose = f"the model by {publisher}" if slash else "the model by nobody on the Hub"
        return (
            f"Careful: the {noun} is by {self.author}, {whose}; anybody can publish one. Add"
            f" {self.author} to {TRUSTED} if you trust it.",
        )
