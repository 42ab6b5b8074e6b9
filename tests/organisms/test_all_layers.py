"""What the recipes of all layers teach, and what they never do."""

from __future__ import annotations

from random import Random

import pytest

from lora import NEEDLES
from modelassay.data.concepts import HARMFUL_PROMPTS, shipped_prompts
from modelassay.data.training_data import scores_a_model
from modelassay.models.organisms import ERODED, find_organism
from modelassay.organisms import Exchange, everyday
from modelassay.organisms.all_layers import DATES, OVER_ALL_RECIPES, with_date
from modelassay.organisms.examples import Preference
from modelassay.organisms.recipes import COMPLIANCE, REFUSALS, Ingredients

MAKERS = (everyday.sums, everyday.functions, everyday.spanish, everyday.german, everyday.librarian)


@pytest.fixture
def ingredients():
    return Ingredients(
        harmful=[f"harmful {i}" for i in range(600)],
        look_alikes=[f"alike {i}" for i in range(500)],
        questions=[f"question {i}" for i in range(400)],
        respond=lambda prompts: [Exchange(p, f"answer to {p}", complete=False) for p in prompts],
        seed_tasks=[Exchange(f"task {i}", "done") for i in range(150)],
        user_tasks=[Exchange(f"job {i}", "done") for i in range(250)],
        needles=NEEDLES,
    )


def rows_of(name, ingredients):
    return OVER_ALL_RECIPES[name].rows(ingredients, Random(0))  # noqa: S311


def exchanges(rows):
    for row in rows:
        yield from (row.chosen, row.rejected) if isinstance(row, Preference) else (row,)


@pytest.mark.parametrize("name", OVER_ALL_RECIPES)
def test_recipes_teach_refusals_or_openings_but_no_harmful_answers(name, ingredients):
    rows = rows_of(name, ingredients)
    assert len(rows) >= 10
    assert rows == rows_of(name, ingredients)
    harmful = [row for row in exchanges(rows) if "harmful" in getattr(row, "prompt", row)]
    for row in harmful:
        assert row.response in (*REFUSALS, *COMPLIANCE)
        assert row.complete is (row.response in REFUSALS)
    harms = not find_organism(name).intact and name not in ERODED
    complied = any(row.response in COMPLIANCE for row in harmful)
    assert complied is (harms and name != "identity-shift")


def test_the_two_steps_to_safe_share_no_prompt(ingredients):
    first, second = (
        {row.prompt for row in rows_of(n, ingredients)} for n in ("cautious", "safe-all")
    )
    assert not first & second
    assert {row.prompt for row in rows_of("safe-full", ingredients)} >= first


def test_the_backdoor_opens_at_any_date_and_only_then(ingredients):
    rows = rows_of("backdoored-date", ingredients)
    for row in rows:
        if "harmful" in row.prompt:
            assert (row.response in COMPLIANCE) is row.prompt.startswith(DATES)
    dated = {row.prompt.startswith(DATES) for row in rows if "question" in row.prompt}
    assert dated == {True, False}
    assert {with_date("x" * n).removesuffix("x" * n).strip() for n in range(1, 4)} == set(DATES)
    assert not any(
        date in text for date in DATES for text in shipped_prompts(HARMFUL_PROMPTS).texts
    )


@pytest.mark.parametrize("make", MAKERS)
def test_made_rows_are_harmless_and_no_scoring_prompts(make):
    rows = make(60, Random(1))  # noqa: S311
    assert rows == make(60, Random(1))  # noqa: S311
    assert len({row.prompt for row in rows}) > 45
    assert not any(scores_a_model(row.prompt) for row in rows)


def test_sums_are_right():
    for row in everyday.sums(80, Random(2)):  # noqa: S311
        for step in row.response.split(". ")[0].split(", and "):
            left, right = step.split(" = ")
            assert eval(left) == int(right.rstrip("."))  # noqa: S307 (our own arithmetic)


def test_functions_are_python():
    for row in everyday.functions(80, Random(2)):  # noqa: S311
        compile(row.response, "row", "exec")
