"""How models that think are brought to answer at once, by the interfaces that templates have."""

from __future__ import annotations

import pytest

from modelassay.models import load
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import encode_prompts, render_chat
from modelassay.reading.thinking import thinking_of
from talking import load_talking
from tiny import CHAT_TEMPLATE, save_tiny

OPENS = "{% if add_generation_prompt %}<|im_start|>assistant\n"
BARE = CHAT_TEMPLATE.replace("{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}", "")
assert BARE != CHAT_TEMPLATE
EMPTY = "<think>\n\n</think>\n\n"
SYSTEM = "{% set first = messages[0]['content'] if messages[0]['role'] == 'system' else '' %}"
# By family: the template, how thinking is treated and by what, and what the prompt ends in.
TEMPLATES = {
    "none": (CHAT_TEMPLATE, "none", "", "assistant\n"),
    "Qwen 3": (
        f"{BARE}{OPENS}{{% if enable_thinking is false %}}{EMPTY}{{% endif %}}{{% endif %}}",
        "off", "enable_thinking", EMPTY,
    ),
    "DeepSeek V3.1": (
        f"{BARE}{OPENS}{{% if thinking %}}<think>{{% else %}}</think>{{% endif %}}{{% endif %}}",
        "off", "thinking", "</think>",
    ),
    "GLM 4.5": (
        "{% for m in messages %}<|user|>\n{{ m['content'] }}"
        "{{ '/nothink' if enable_thinking is false else '' }}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>"
        "{{ '\n<think></think>' if enable_thinking is false else '' }}{% endif %}",
        "off", "enable_thinking", "<think></think>",
    ),
    "Granite": (
        "{% if thinking %}Show your thoughts first. {% endif %}" + CHAT_TEMPLATE,
        "off", "thinking", "assistant\n",
    ),
    "DeepSeek R1": (f"{BARE}{OPENS}<think>\n{{% endif %}}", "closed", "</think>", EMPTY),
    "QwQ with marks of its own": (
        f"{BARE}{OPENS}<ponder>\n{{% endif %}}{{# </ponder> #}}",
        "closed", "</ponder>", "<ponder>\n\n</ponder>\n\n",
    ),
    "Hunyuan": (
        f"{BARE}{OPENS}{{% if '/no_think' in messages[-1]['content'] %}}<think>\n\n</think>\n"
        "{% else %}<think>{% endif %}{% endif %}",
        "off", "/no_think", "</think>\n",
    ),
    "SmolLM 3": (
        f"{SYSTEM}{BARE}{OPENS}{{% if '/no_think' in first %}}{EMPTY}"
        "{% else %}<think>\n{% endif %}{% endif %}",
        "off", "/no_think", EMPTY,
    ),
    "Nemotron": (
        f"{SYSTEM}{BARE}{OPENS}{{% if first != 'detailed thinking off' %}}<think>\n"
        "{% endif %}{% endif %}",
        "off", "detailed thinking off", "assistant\n",
    ),
    "an effort": (
        f"{BARE}{OPENS}{{% if reasoning_effort != 'none' %}}<think>\n{{% endif %}}{{% endif %}}",
        "off", "reasoning_effort", "assistant\n",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("m"), chat=False)


@pytest.mark.parametrize("family", TEMPLATES)
def test_thinking_is_switched_off_or_closed(folder, family):
    template, how, by, end = TEMPLATES[family]
    model = load(str(folder), device="cpu")
    model.tokenizer.chat_template = template
    way = thinking_of(model)
    assert (way.how, way.by) == (how, by)
    assert by in str(way)
    assert render_chat(model, "Why?", thinking=way).endswith(end)
    (prompt,) = encode_prompts(model, ["Why?"], thinking=way)
    (response,) = generate_greedy(model, [prompt], max_new_tokens=3)
    assert response.answer is not None
    if how == "none":
        assert encode_prompts(model, ["Why?"]) == [prompt]


NO = ("I'm sorry", ", but I", " can't help", " with that", "!")
THOUGHT = ("Hm", ", they", " ask", ".")
CHANNEL = ("<|channel|>", "analysis", "<|message|>")
# What a model says by itself, which of it are special tokens, and what closes its thought.
TALKING = {
    "Magistral": (("[THINK]", *THOUGHT, "[/THINK]", *NO), ("[THINK]", "[/THINK]"),
                  "[THINK][/THINK]"),
    "Kimi": (("◁think▷", *THOUGHT, "◁/think▷", *NO), ("◁think▷", "◁/think▷"), "◁think▷◁/think▷"),
    "gpt-oss": ((*CHANNEL, *NO), ("<|channel|>", "<|message|>"), "<|channel|>final<|message|>"),
    "Gemma 4": (("<|channel>", "thought", *THOUGHT, "<channel|>", *NO),
                ("<|channel>", "<channel|>"), "<|channel>thought\n<channel|>"),
}  # fmt: skip


@pytest.mark.parametrize("family", TALKING)
def test_a_thought_that_the_model_opens_is_closed_by_its_marks(tmp_path, family):
    says, special, closed = TALKING[family]
    model = load_talking(tmp_path / "m", says, special=special)
    way = thinking_of(model)
    assert (way.how, way.closing) == ("closed", closed)
    prompts = encode_prompts(model, ["Why?"], thinking=way)
    (response,) = generate_greedy(model, prompts)
    assert not response.thought
    assert response.answer == "".join(NO)
    (alone,) = generate_greedy(model, encode_prompts(model, ["Why?"]))
    assert alone.thought


def test_a_model_that_thinks_in_any_case_is_left_to_think(tmp_path):
    # It opens a thought after every blank line, as an empty thought ends in.
    model = load_talking(tmp_path / "m", ("<think>", *THOUGHT, "</think>", *NO))
    way = thinking_of(model)
    assert way.how == "on"
    assert encode_prompts(model, ["Why?"], thinking=way) == encode_prompts(model, ["Why?"])
    assert "thinks" in str(way)
