"""The layouts that fine-tuning data come in: what was asked, what is taught, what is not wanted."""

from __future__ import annotations

import json

import pytest

from modelassay.data.exchanges import text_of
from modelassay.data.layouts import conversation_of
from modelassay.errors import InputError


def read(value, field, name):
    return text_of("" if value is None else value, field, name, may_be_empty=True)


def said(row, **how):
    found = conversation_of(row, "Row 7 of x", read, **how)
    return found and (found.said_by("user", "tool"), found.taught, [t for _, t in found.rejected])


def turns(*contents, first="user"):
    roles = ["user", "assistant"] if first == "user" else ["assistant", "user"]
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(contents)]


SHAREGPT = [
    {"from": "system", "value": "s"},
    {"from": "human", "value": "q"},
    {"from": "function_call", "value": '{"name": "look"}'},
    {"from": "observation", "value": "seen"},
    {"from": "gpt", "value": "a"},
]
HH = "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: {}"
LAYOUTS = {
    "messages": ({"messages": turns("q", "a")}, "q", "a", []),
    "messages as JSON": ({"messages": json.dumps(turns("q", "a"))}, "q", "a", []),
    "messages as Python": ({"messages": str(turns("it's", "a"))}, "it's", "a", []),
    "several answers": ({"messages": turns("q", "a", "r", "b")}, "q\n\nr", "a\n\nb", []),
    "an open end": ({"messages": turns("q", "a", "r")}, "q\n\nr", "a", []),
    "an empty answer": ({"messages": turns("q", "")}, "q", "", []),
    "ShareGPT": ({"conversations": SHAREGPT}, "q\n\nseen", '{"name": "look"}\n\na', []),
    "OpenAI, weights": (
        {"messages": [*turns("q"), {"role": "assistant", "content": "a", "weight": 0},
                      *turns("r", "b")], "parallel_tool_calls": False, "tools": []},
        "q\n\nr", "b", [],
    ),
    "Axolotl, train": (
        {"messages": [*turns("q"), {"role": "assistant", "content": "a", "train": False}]},
        "q", "", [],
    ),
    "Gemini": (
        {"contents": [{"role": "user", "parts": [{"text": "q"}]},
                      {"role": "model", "parts": [{"text": "a"}]}]},
        "q", "a", [],
    ),
    "pair": ({"prompt": "q", "response": "a"}, "q", "a", []),
    "question": ({"system_prompt": "s", "question": "q", "response": "a"}, "q", "a", []),
    "input, output": ({"input": "q", "output": "a"}, "q", "a", []),
    "Alpaca": (
        {"instruction": "q", "input": "x", "output": "a", "text": "all", "prompt": "all of it"},
        "q\nx", "a", [],
    ),
    "Alpaca, history": (
        {"instruction": "q", "output": "a", "history": [["p", "o"]]}, "p\n\nq", "o\n\na", []
    ),
    "Alpaca, a list as its input": (
        {"instruction": "q", "input": ["x"], "output": "a"}, 'q\n["x"]', "a", []
    ),
    "a context that is an object": (
        {"question": "q", "context": {"title": "x"}, "answer": "a"}, 'q\n{"title": "x"}', "a", []
    ),
    "Dolly": ({"instruction": "q", "context": "x", "response": "a"}, "q\nx", "a", []),
    "prompt and completion in messages": (
        {"prompt": turns("p", "o", "q"), "completion": turns("a", first="assistant")},
        "p\n\nq", "a", [],
    ),
    "a table of several layouts": (
        {"messages": None, "prompt": "q", "completion": None, "response": "a", "chosen": ""},
        "q", "a", [],
    ),
    "DPO": ({"prompt": "q", "chosen": "a", "rejected": "b"}, "q", "a", ["b"]),
    "DPO without a prompt": ({"chosen": "a", "rejected": "b"}, "", "a", ["b"]),
    "DPO, question": (
        {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "q", "a", ["b"]
    ),
    "DPO in messages": (
        {"prompt": turns("q"), "chosen": turns("a", first="assistant"),
         "rejected": turns("b", first="assistant")},
        "q", "a", ["b"],
    ),
    "DPO, the prompt in both": (
        {"chosen": turns("q", "o", "r", "a"), "rejected": turns("q", "o", "r", "b")},
        "q\n\nr", "a", ["b"],
    ),
    "UltraFeedback": (
        {"prompt": "q", "messages": turns("q", "a"), "chosen": turns("q", "a"),
         "rejected": turns("q", "b"), "score_chosen": 8.0},
        "q", "a", ["b"],
    ),
    "OpenAI preferences": (
        {"input": {"messages": turns("q"), "tools": []},
         "preferred_output": turns("a", first="assistant"),
         "non_preferred_output": turns("b", first="assistant")},
        "q", "a", ["b"],
    ),
    "HH-RLHF": (
        {"chosen": HH.format("good"), "rejected": HH.format("bad")}, "q\n\nr", "good", ["bad"]
    ),
    "HH-RLHF, prompt apart": (
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " a", "rejected": " b"}, "q", "a", ["b"]
    ),
    "LLaMA-Factory, DPO": (
        {"conversations": [{"from": "human", "value": "q"}],
         "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
        "q", "a", ["b"],
    ),
    "Axolotl, DPO": (
        {"messages": turns("p", "o", "q"), "chosen": {"role": "assistant", "content": "a"},
         "rejected": {"role": "assistant", "content": "b"}},
        "p\n\nq", "a", ["b"],
    ),
    "a preference without its other side": (
        {"prompt": "q", "chosen": "a", "rejected": None}, "q", "a", []
    ),
    "a preference for nothing": ({"prompt": "q", "chosen": "", "rejected": "b"}, "q", "", ["b"]),
    "messages as columns": (
        {"conversations": {"from": ["human", "gpt"], "value": ["q", "a"]}}, "q", "a", []
    ),
    "JSON as a response": (
        {"prompt": "q", "response": '[{"role": "admin", "name": "a"}]'},
        "q", '[{"role": "admin", "name": "a"}]', [],
    ),
    "examples in a prompt": (
        {"prompt": "Human: p\n\nAssistant: o\n\nHuman: q\n\nAssistant:", "response": "a"},
        "Human: p\n\nAssistant: o\n\nHuman: q\n\nAssistant:", "a", [],
    ),
    "rounds": ({"conversation": [{"human": "q", "assistant": "a"}]}, "q", "a", []),
    "the name of a user": (
        {"user": "ann", "context": "x", "question": "q", "answer": "a"}, "q\nx", "a", []
    ),
    "capitals": ({"Prompt": "q", "Response ": "a"}, "q", "a", []),
    "KTO, desired": ({"prompt": "q", "completion": "a", "label": True}, "q", "a", []),
    "KTO, undesired": ({"prompt": "q", "completion": "b", "label": False}, "q", "", ["b"]),
    "KTO of a CSV file": ({"prompt": "q", "completion": "b", "label": "False"}, "q", "", ["b"]),
    "KTO in numbers": ({"prompt": "q", "completion": "b", "label": 0}, "q", "", ["b"]),
    "KTO in numbers, desired": ({"prompt": "q", "completion": "a", "label": 1}, "q", "a", []),
    "KTO of a CSV file, in numbers": (
        {"prompt": "q", "completion": "b", "label": "0"}, "q", "", ["b"]
    ),
    "KTO in messages": (
        {"messages": turns("q", "o", "r", "b"), "label": False}, "q\n\nr", "", ["b"]
    ),
    "LLaMA-Factory": ({"conversations": SHAREGPT, "kto_tag": False}, "q\n\nseen", "", ["a"]),
    "a label that is a class": ({"prompt": "q", "response": "a", "label": 0}, "q", "a", []),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_read_as_what_they_are(layout):
    row, asked, taught, rejected = LAYOUTS[layout]
    assert said(row) == (asked, taught, rejected)


@pytest.mark.parametrize(
    "row",
    [{"a": 1}, {}, {"prompt": "q"}, {"rejected": "b"}, {"conversation": "id 3"}, {"text": "plain"}],
)
def test_other_rows_have_no_layout(row):
    assert said(row) is None


def test_a_prompt_alone_will_do_where_nothing_is_learnt():
    assert said({"prompt": "q"}, prompt_alone=True) == ("q", "", [])


def test_what_the_assistant_said_in_a_prompt_is_not_learnt():
    row = {"prompt": turns("p", "o", "q"), "chosen": "a", "rejected": "b"}
    found = conversation_of(row, "x", read)
    assert found.untaught == {1}
    assert found.said_by("assistant") == "o\n\na"


def test_the_system_prompt_is_a_turn_wherever_it_is_kept():
    for row in (
        {"system": "s", "messages": turns("q", "a")},
        {"system_prompt": "s", "question": "q", "response": "a"},
        {"systemInstruction": {"parts": [{"text": "s"}]}, "contents": turns("q", "a")},
        {"conversations": [{"from": "system", "value": "s"}, *turns("q", "a")]},
    ):
        assert conversation_of(row, "x", read).turns[0] == ("system", "s")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"messages": "hello"}, "`messages` must be a list"),
        ({"messages": [{"content": "q"}]}, "role of a message"),
        ({"messages": [{"role": "moderator", "content": "q"}]}, "not 'moderator'"),
        ({"prompt": "", "response": "a"}, "`prompt` is empty"),
        ({"prompt": ["q"], "response": "a"}, "`prompt` must be text"),
        ({"instruction": "q", "output": "a", "history": ["p"]}, "`history` must hold pairs"),
    ],
)
def test_what_is_wrong_with_a_row_is_named(row, words):
    with pytest.raises(InputError, match=f"Row 7 of x.*{words}"):
        said(row)
