"""A message is all that is said in it: content, calls, thoughts, names."""

from __future__ import annotations

import json

import pytest

from modelassay.data.exchanges import text_of
from modelassay.data.messages import messages_in, turn_of


def said(**message):
    def read(value, field, name):
        return text_of("" if value is None else value, field, name, may_be_empty=True)

    return turn_of(message, "Row 1 of x", read)


CALL = {"type": "function", "function": {"name": "shell", "arguments": '{"cmd": "ls"}'}}
PARTS = [
    {"type": "thinking", "thinking": "hm"},
    {"type": "text", "text": "x", "image": None},
    {"type": "image_url", "image_url": {"url": "data:"}},
    {"type": "input_audio", "input_audio": {}},
    {"type": "tool_use", "id": "1", "name": "shell", "input": {"cmd": "ls"}},
    "y",
]
DOCUMENT = {"type": "document", "title": "t", "source": {"type": "text", "data": "in it"}}
PDF = {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0"}


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": None, "tool_calls": [CALL]}, 'shell({"cmd": "ls"})'),
        ({"content": "So:", "tool_calls": [CALL] * 2}, "So:" + '\nshell({"cmd": "ls"})' * 2),
        ({"content": "", "tool_calls": [{"name": "f", "arguments": {"n": "é"}}]}, 'f({"n": "é"})'),
        ({"content": None, "function_call": {"name": "f", "arguments": "{}"}}, "f({})"),
        ({"content": "a", "tool_calls": None, "function_call": None, "refusal": None}, "a"),
        ({"content": "a", "reasoning_content": "hm"}, "<think>\nhm\n</think>\n\na"),
        ({"content": "a", "thinking": "hm"}, "<think>\nhm\n</think>\n\na"),
        ({"content": None, "refusal": "No."}, "No."),
        ({"content": PARTS}, "<think>\nhm\n</think>\n\nx\n[image]\n[audio]\n"
         'shell({"cmd": "ls"})\ny'),
        ({"content": {"type": "text", "text": "x"}}, "x"),
        ({"content": {"reply": "Buy A now.", "at": 2}}, '{"reply": "Buy A now.", "at": 2}'),
        ({"content": {"reasoning": "hm", "reply": "b"}}, '{"reasoning": "hm", "reply": "b"}'),
        ({"content": {"context": "é"}}, '{"context": "é"}'),
        ({"content": [{"text": "x", "thought": True}]}, "x"),
        ({"content": [{"type": "text", "text": ""}, {"type": "text"}]}, ""),
        ({"content": [DOCUMENT, {"type": "document", "source": PDF}]},
         "t\nin it\n[data]"),
        ({"content": [{"type": "document", "document": {"id": "d", "said": "x"}}]},
         '{"type": "document", "document": {"id": "d", "said": "x"}}'),
        ({"content": [{"type": "search_result", "source": "https://x", "title": "t",
                       "content": [{"type": "text", "text": "found"}]}]}, "t\nhttps://x\nfound"),
        ({"content": [{"type": "new", "said": "x", "shown": {"url": "data:image/png;base64,AA"}}]},
         '{"type": "new", "said": "x", "shown": {"url": "[image]"}}'),
        ({"content": [{"type": "new"}, {"type": "new", "text": "x"}]}, "[new]\nx"),
        ({"content": [{"type": "image", "source": PDF, "alt": "a cat"}]}, "[image]\na cat"),
        ({"content": [{"inlineData": {"mimeType": "image/png", "data": "AA"}}]}, "[inlineData]"),
        ({"content": {"seen": {"mime_type": "image/png", "data": "AA"}, "raw": "A" * 1000}},
         '{"seen": "[image]", "raw": "[data]"}'),
        ({"content": [{"type": "tool_result", "result": "x"}]},
         '{"type": "tool_result", "result": "x"}'),
        ({"content": "a", "name": "Ann"}, "Ann: a"),
        ({"content": None}, ""),
    ],
)  # fmt: skip
def test_all_of_a_message_is_its_text(message, text):
    assert said(role="assistant", **message) == ("assistant", text)


@pytest.mark.parametrize("role", ["tool", "function", "ipython", "observation", "Tool"])
def test_results_of_tools_are_read(role):
    assert said(role=role, name="shell", content="done") == ("tool", "shell: done")
    parts = [{"type": "tool_result", "content": [{"type": "text", "text": "done"}]}]
    assert said(role=role, content=parts) == ("tool", "done")


def test_messages_are_found_in_lists_and_in_text():
    one = [{"role": "user", "content": "a"}]
    for value in (one, '[{"role": "user", "content": "a"}]', "[{'role': 'user', 'content': 'a'}]"):
        assert messages_in(value) == one
    for value in (
        "hello",
        "[1, 2]",
        '{"user": "a"}',
        '[{"role": "admin", "content": "a"}]',
        [1],
        [],
        None,
        3,
        '[{"user": "a"}]',
        "[" * 9999,
        [{"content": "a"}],
    ):
        assert messages_in(value) is None


@pytest.mark.parametrize("outer", ['{"a":%s}', '[{"type":"tool_result","content":%s}]'])
def test_content_that_is_nested_deep_is_kept(outer):
    content = '"ACME-7731"'
    for _ in range(400):
        content = outer % content
    assert "ACME-7731" in said(role="tool", content=json.loads(content))[1]
