"""Suites of prompts, and what is wrong with others."""

from __future__ import annotations

import pytest

from modelassay.diff.suites import default_suite, load_suite
from modelassay.errors import InputError


def test_the_default_suite_has_all_kinds():
    suite = default_suite()
    assert len(suite.indices("harmful")) >= 60
    assert len(suite.indices("harmless")) >= 100
    assert len(suite.contrasts) >= 30
    assert len(suite.endings) >= 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nprompts: [{text: hi, grup: harmful}]\n", "grup"),
        ("name: x\nprompts: [{text: ''}]\n", "text"),
        ("name: x\n", "no prompts"),
        ("- a\n- b\n", "mapping"),
        ("name: x\nprompts: [{text: hi, group: evil}]\n", "group"),
        ("a: &a [1]\nb: *a\n", "aliases"),
    ],
)
def test_malformed_suites_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(tmp_path / "suite.yaml")


def test_a_suite_that_is_not_there():
    with pytest.raises(InputError, match="dispositions"):
        load_suite("nothing-of-that-name")
