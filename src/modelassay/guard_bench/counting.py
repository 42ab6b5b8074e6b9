"""How often a guard asks its classifier."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from modelassay.guard.streaming import Guard


class CountedClassifier:
    """A classifier that counts its calls; all else is the other's."""

    def __init__(self, asked: Any) -> None:
        """Stands before a classifier."""
        self._asked = asked
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        """Whatever a guard wants to know besides."""
        return getattr(self._asked, name)

    @property
    def threshold(self) -> float:
        """P(unsafe compliance) from which a response is refused."""
        return self._asked.threshold

    def predict(self, exchanges: Sequence[tuple[str, str]]) -> Any:
        """[exchange, 3]: probabilities of the classes."""
        self.calls += 1
        return self._asked.predict(exchanges)


def counted(guard: Guard) -> tuple[Guard, CountedClassifier | None]:
    """The same guard with a classifier that counts its calls; None if it has no classifier."""
    if guard.classifier is None:
        return guard, None
    classifier = CountedClassifier(guard.classifier)
    return replace(guard, classifier=classifier), classifier
