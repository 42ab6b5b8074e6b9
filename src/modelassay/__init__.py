"""Look inside an open-weight language model: is the safety training still there?

    >>> import modelassay
    >>> report = modelassay.scan("embedded")
    >>> report.verdict, report.reasons

Names are imported on first use, so that `import modelassay` stays fast; which there are, and where
each is from, is in `__init__.pyi`.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any

import lazy_loader

from modelassay.moved import MovedModules

try:
    __version__ = version("modelassay")
except PackageNotFoundError:  # run from a checkout that is not installed, as a Space does
    __version__ = "0.1.0"

_named, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
_PRODUCTS = ("diff", "scan", "triage", "verify")


def __getattr__(name: str) -> Any:
    return import_module(f"modelassay.{name}") if name in _PRODUCTS else _named(name)


class _Product(ModuleType):
    """A package that is called like the function it is about.

    `modelassay.scan` has to be both: the import system binds a package to its parent.
    """

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)


class _Root(ModuleType):
    def __setattr__(self, name: str, value: Any) -> None:
        if name in _PRODUCTS and isinstance(value, ModuleType):
            value.__class__ = _Product
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Root
sys.meta_path.append(MovedModules())  # last: only what is found nowhere else gets there
