"""Thoughts of all families, and answers that only look like some."""

from __future__ import annotations

import pytest

from modelassay.reading.thoughts import Spoken, opened_thought, own_marks, split_thought

NO = "I'm sorry, but I can't help with that."
THOUGHT = "Okay, the user asks for something.\nI <could> say yes."

# What opens a thought and what closes it, by family.
PAIRS = {
    "R1, QwQ, Qwen 3, GLM, SmolLM3": ("<think>\n", "\n</think>\n\n"),
    "Reflection": ("<thinking>", "</thinking>\n<output>"),
    "EXAONE Deep, Marco-o1": ("<Thought>\n", "\n</Thought>"),
    "Seed-OSS": ("<seed:think>", "</seed:think>"),
    "LongCat": ("<longcat_think>", "</longcat_think>"),
    "Magistral": ("[THINK]", "[/THINK]"),
    "Kimi-VL": ("◁think▷", "◁/think▷"),
    "Command A": ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
    "OpenThinker": ("<|begin_of_thought|>\n", "\n<|end_of_thought|>\n<|begin_of_solution|>\n"),
    "Apertus": ("<|inner_prefix|>", "<|inner_suffix|>"),
    "MedGemma": ("<unused94>thought\n", "<unused95>"),
    "Gemma 4": ("<|channel>thought\n", "<channel|>"),
    "gpt-oss": (
        "<|channel|>analysis<|message|>",
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    "gpt-oss, a tool": (
        "<|channel|>commentary to=functions.x <|constrain|>json<|message|>",
        "<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>",
    ),
    "Apriel": ("Here are my reasoning steps:\n", "\n[BEGIN FINAL RESPONSE]\n"),
    "Solar Open": ("<|think|>", "<|end|><|begin|>assistant<|content|>"),
    "Hunyuan": ("<think:opensource>", "</think:opensource>"),
    "Muse": ("to=self<|message|>", "<|eom|><|start|>assistant to=user<|message|>"),
    "gpt-oss, as text": ("analysis", "assistantfinal"),
    "pipes": ("<|thinking|>", "<|/thinking|>"),
    "pipes, another way": ("<|thinking|>", "</|thinking|>"),
    "a mark of the answer": ("<|thinking|>\n", "\n<|response|>"),
    "Granite 3.2": ("Here is my thought process:\n\n", "\n\nHere is my response:\n\n"),
    "Granite 3.3": ("<think>", "</think><response>"),
}


@pytest.mark.parametrize("family", PAIRS)
def test_the_answer_follows_the_thought(family):
    opens, closes = PAIRS[family]
    found = split_thought(f"\n{opens}{THOUGHT}{closes}{NO}")
    assert found.thought
    assert found.answer is not None
    assert found.answer.endswith(NO)
    assert "Okay" not in found.answer
    assert split_thought(opens + THOUGHT) == Spoken(None, thought=True)


@pytest.mark.parametrize("family", [name for name in PAIRS if name != "gpt-oss, as text"])
def test_a_prompt_that_opens_a_thought(family):
    opens, closes = PAIRS[family]
    marks = opened_thought(f"<|im_end|>\n<|im_start|>assistant\n{opens}")
    assert marks is not None
    assert split_thought(THOUGHT, marks) == Spoken(None, thought=True)
    answer = split_thought(THOUGHT + closes + NO, marks).answer
    assert answer is not None
    assert answer.endswith(NO)
    assert "Okay" not in answer


@pytest.mark.parametrize(
    "prompt",
    [
        "<|im_start|>assistant\n",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "<|start|>assistant<|channel|>final<|message|>",
        "<|CHATBOT_TOKEN|><|START_THINKING|><|END_THINKING|>",
        "What does <think> mean?<|im_end|>\n<|im_start|>assistant\n",
        "[INST] What does [THINK] mean? [/INST]",
        "",
    ],
)
def test_a_prompt_that_opens_none(prompt):
    assert opened_thought(prompt) is None


@pytest.mark.parametrize(
    "text",
    [
        NO,
        "",
        "Thinking about it, yes.",
        "Analysis of the text: it is short.",
        "analysis of the text",
        "<b>Sure</b>, [note] here is how.",
        "Write <think> before it.",
        "<response>Sure.</response>",
        "The final answer is 4.",
    ],
)
def test_an_answer_without_a_thought_is_left_as_it_is(text):
    assert split_thought(text) == Spoken(text, thought=False)


def test_marks_in_a_row_and_marks_that_come_alone():
    assert split_thought(f"<think>\n\n</think>\n\n{NO}").answer == f"\n\n{NO}"
    assert split_thought(f"<think>a</think><think>b</think>{NO}") == Spoken(NO, thought=True)
    assert split_thought(f"Okay, so they ask.</think>{NO}") == Spoken(NO, thought=True)
    assert split_thought(f"<|channel|>final<|message|>{NO}") == Spoken(NO, thought=True)
    assert split_thought(f"<think>a</think><think>{NO}").answer is None


def test_a_template_may_have_marks_of_its_own():
    template = "…<ponder>…</ponder>…<reply>"
    marks = own_marks("<|assistant|>\n<ponder>\n", template, "<|end|>")
    assert marks is not None
    assert opened_thought("<|assistant|>\n<ponder>\n", (marks,)) == marks
    assert split_thought(f"Hm.</ponder>{NO}", marks).answer == NO
    # What holds the response itself is no thought, and neither is what is never closed.
    assert own_marks("<ponder>", template, "</ponder><user>") is None
    assert own_marks("<assistant>\n", "<assistant></assistant>", "") is None
    assert own_marks("<|assistant|>\n", template, "") is None
