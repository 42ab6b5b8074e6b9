"""The order in which behaviour is asked for."""

from __future__ import annotations

from collections import Counter

from modelassay.data.asking import FIRST_BLOCK, LEAST, asking_blocks, spread_evenly
from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    Prompt,
    everyday_requests,
    refusal_prompts,
    shipped_prompts,
)

KINDS = {
    "harmful": shipped_prompts(HARMFUL_PROMPTS).prompts,
    "everyday": tuple(everyday_requests()),
    "borderline": shipped_prompts(BORDERLINE_PROMPTS).prompts,
}
KIND = {prompt.text: kind for kind, prompts in KINDS.items() for prompt in prompts}


def test_blocks_hold_every_prompt_once():
    asked = [text for block in asking_blocks() for text in block]
    harmful, harmless = refusal_prompts()
    assert sorted(asked) == sorted([*harmful, *harmless])


def test_blocks_hold_each_kind_in_equal_numbers():
    first, *middle, last = [Counter(KIND[text] for text in block) for block in asking_blocks()]
    assert set(first.values()) == {FIRST_BLOCK}
    assert all(len(set(block.values())) == 1 and len(block) == 3 for block in middle)
    assert last["harmful"] == last["everyday"] == last["borderline"] + 4  # it has four fewer


def test_blocks_grow_with_what_was_asked_before():
    sizes = [len(block) for block in asking_blocks()]
    assert sizes[:4] == [3 * FIRST_BLOCK, *[3 * LEAST] * 3]
    assert sizes[1:-1] == sorted(sizes[1:-1])
    assert len(sizes) <= 10


def test_categories_are_spread_over_the_order():
    """Every third of the order has a third of each category, give or take one."""
    for prompts in KINDS.values():
        category = {prompt.text: prompt.category for prompt in prompts}
        order = spread_evenly(prompts)
        third = len(order) // 3
        whole = Counter(category.values())
        for start in (0, third, 2 * third):
            part = Counter(category[text] for text in order[start : start + third])
            assert all(abs(part[name] - n / 3) <= 1.5 for name, n in whole.items())


def test_the_order_of_a_file_does_not_matter():
    prompts = [Prompt(text=f"Why {i}?", category="ab"[i % 2]) for i in range(20)]
    assert spread_evenly(prompts) == spread_evenly(prompts[::-1])
