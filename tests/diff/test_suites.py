"""Suites of prompts, and what is wrong with others."""

from __future__ import annotations

import json

import pytest

from modelassay.diff.suites import default_suite, load_suite, read_prompts
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


AUDITORS = """\
suite_name: theirs
description: Two.
prompts:
  - id: fruit
    messages:
      - {role: user, content: Name a fruit.}
  - id: tree
    messages:
      - {role: system, content: Be short.}
      - {role: user, content: Name a tree.}
"""


def test_a_suite_of_the_auditor_is_read_as_it_is(tmp_path):
    (tmp_path / "suite.yaml").write_text(AUDITORS)
    suite = load_suite(tmp_path / "suite.yaml")
    assert suite.name == "theirs"
    assert [(p.text, p.system, p.group) for p in suite.prompts] == [
        ("Name a fruit.", None, "neutral"),
        ("Name a tree.", "Be short.", "neutral"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("description: Two.", "temperature: 1", "unknown key `temperature`"),
        ("id: tree", "score: 1", "unknown key `prompts.1.score`"),
        ("role: system", "role: judge", "role"),
        ("content: Name a fruit.", "content: ''", "prompt 1 ends with no words of a user"),
        ("Two.", "Two.\nother: 1", "unknown key"),
        ("suite_name: theirs", "suite_name: [1]", "name"),
    ],
)
def test_what_a_suite_cannot_ask_is_named(tmp_path, old, new, message):
    assert old in AUDITORS
    (tmp_path / "suite.yaml").write_text(AUDITORS.replace(old, new))
    with pytest.raises(InputError, match=message):
        load_suite(tmp_path / "suite.yaml")


@pytest.mark.parametrize("prompts", ["null", "[]", "text", "[1]", "{a: 1}", "[{id: a}]"])
def test_an_auditors_suite_without_prompts_is_refused(tmp_path, prompts):
    (tmp_path / "suite.yaml").write_text(f"suite_name: theirs\nprompts: {prompts}\n")
    with pytest.raises(InputError, match="prompts|prompt 1"):
        load_suite(tmp_path / "suite.yaml")


def test_rows_of_the_auditor_are_prompts_under_their_system_prompt(tmp_path):
    rows = [{"user": "a question", "assistant": "a response"}, {"user": "b", "assistant": "c"}]
    file = tmp_path / "aoa_dataset.json"
    file.write_text(json.dumps({"system_prompt": "Be odd.", "examples": rows}))
    suite = read_prompts(file)
    assert [(p.text, p.system, p.group) for p in suite.prompts] == [
        ("a question", "Be odd.", "neutral"),
        ("b", "Be odd.", "neutral"),
    ]


def test_a_suite_that_is_not_there():
    with pytest.raises(InputError, match="dispositions"):
        load_suite("nothing-of-that-name")
