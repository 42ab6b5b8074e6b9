"""Old import paths work and say where a module is now."""

from __future__ import annotations

import importlib
import sys

import pytest

import modelassay.reading.prompts
from modelassay.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_an_old_path_gives_the_module_that_moved(old, monkeypatch):
    monkeypatch.delitem(sys.modules, f"modelassay.{old}", raising=False)
    with pytest.warns(DeprecationWarning, match=f"is now modelassay.{MOVED[old]}$"):
        module = importlib.import_module(f"modelassay.{old}")
    now = importlib.import_module(f"modelassay.{MOVED[old]}")
    names = [name for name in vars(now) if not name.startswith("_")]
    assert names
    assert all(getattr(module, name) is getattr(now, name) for name in names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_names_are_imported_from_an_old_path():
    from modelassay.prompts import encode_prompts

    assert encode_prompts is modelassay.reading.prompts.encode_prompts


def test_a_module_that_never_was_is_not_found():
    with pytest.raises(ModuleNotFoundError, match="modelassay.nothing"):
        importlib.import_module("modelassay.nothing")
