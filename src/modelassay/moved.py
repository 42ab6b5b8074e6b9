"""Modules under the paths that they had in 0.1: they still import, and say where they are now."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "activations": "reading.activations",
    "baselines": "verify",
    "concepts": "data.concepts",
    "diffing": "diff",
    "examination": "measures.examination",
    "generation": "reading.generation",
    "guard.text": "guard.decoding",
    "prompts": "reading.prompts",
    "refusal": "measures.refusal",
    "refusal_judge": "measures.refusal_judge",
    "separation": "measures.separation",
    "training_data": "data.training_data",
    "verification": "verify",
    "weight_sketch": "measures.weight_sketch",
    "weights": "measures.erased_directions",
}


class MovedModules(MetaPathFinder, Loader):
    """Finds a module under its old path, as a view of the one that it is now."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module if it is one that moved; None leaves it to the other finders."""
        package, _, name = fullname.partition(".")
        return ModuleSpec(fullname, self) if package == __package__ and name in MOVED else None

    def exec_module(self, module: ModuleType) -> None:
        """Lets every name be looked up where it is now."""
        package, _, name = module.__name__.partition(".")
        now = f"{package}.{MOVED[name]}"
        warnings.warn(f"{module.__name__} is now {now}", DeprecationWarning, stacklevel=2)
        module.__dict__["__getattr__"] = lambda wanted: getattr(import_module(now), wanted)
