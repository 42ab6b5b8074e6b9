"""What interventions did, kept in a file as it comes: a run that was stopped goes on from there."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from modelassay.files.atomic import write_text_atomically
from modelassay.files.provenance import installed_versions, text_hash
from modelassay.mechanism.pairs import AlignedPair
from modelassay.models import LoadedModel


@dataclass
class Kept:
    """Values [pair] of one run, by what was done."""

    path: Path | None
    """None keeps them in memory only."""
    rows: dict[str, list[list[float]]] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path | None, key: str) -> Kept:
        """Goes on with a run's file, where there is one.

        Args:
            folder: Where files are; None for none.
            key: As `key_of` gives it.
        """
        if folder is None:
            return cls(None)
        path = folder / f"{key[:32]}.json"
        try:
            return cls(path, dict(json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError, TypeError):
            return cls(path)  # there is none, or it is not whole: it is made again

    def get(self, name: str, make: Callable[[], Sequence[np.ndarray]]) -> list[np.ndarray]:
        """What was kept under a name, made where nothing was."""
        if name not in self.rows:
            self.rows[name] = [values.tolist() for values in make()]
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                write_text_atomically(self.path, json.dumps(self.rows))
        return [np.array(row) for row in self.rows[name]]


def key_of(model: LoadedModel, pairs: Sequence[AlignedPair], what: Sequence[str]) -> str:
    """What the values depend on: model, pairs, and what can be done."""
    asked = [(pair.harmful.ids, pair.harmless.ids) for pair in pairs]
    run = [model.info.weights_sha256, model.info.dtype, installed_versions()]
    return text_hash(json.dumps([run, asked, list(what)]))
