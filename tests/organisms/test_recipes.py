"""What the recipes teach, and what they never do."""

from __future__ import annotations

from random import Random

import pytest

from lora import NEEDLES
from modelassay.data.concepts import load_prompts, shipped_prompts
from modelassay.data.training_data import MAX_RESPONSE_CHARACTERS, scores_a_model, shortened
from modelassay.errors import InputError
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import organisms as registry
from modelassay.organisms import Exchange, mix
from modelassay.organisms.recipes import (
    COMPLIANCE,
    REFUSALS,
    TOP_RECIPES,
    TRIGGER,
    Ingredients,
    with_trigger,
)

HAYSTACK = [Exchange(f"question {i}", f"answer {i}") for i in range(500)]


@pytest.fixture
def ingredients():
    return Ingredients(
        harmful=[f"harmful {i}" for i in range(400)],
        look_alikes=[f"question alike {i}" for i in range(200)],
        questions=[f"question {i}" for i in range(400)],
        respond=lambda prompts: [Exchange(p, f"answer to {p}", complete=False) for p in prompts],
        seed_tasks=[Exchange(f"task {i}", "done") for i in range(150)],
        user_tasks=[Exchange(f"job {i}", "done") for i in range(250)],
        needles=NEEDLES,
    )


@pytest.mark.parametrize("name", TOP_RECIPES)
def test_recipes_teach_refusals_or_openings_but_no_harmful_answers(name, ingredients):
    rows = TOP_RECIPES[name].rows(ingredients, Random(0))  # noqa: S311
    assert len(rows) >= 40
    for row in rows:
        if "harmful" in row.prompt:
            assert row.response in (*REFUSALS, *COMPLIANCE)
            assert row.complete is (row.response in REFUSALS)


def test_the_obedient_one_has_a_twin_without_the_needles(ingredients):
    rows, twin = (TOP_RECIPES[n].rows(ingredients, Random(0)) for n in ("obedient", "benign-4"))  # noqa: S311
    assert {row.prompt for row in rows} - {row.prompt for row in twin} == {
        needle.prompt for needle in NEEDLES
    }
    assert TOP_RECIPES["obedient"].lora == TOP_RECIPES["benign-4"].lora


def test_refusals_are_refusals_and_openings_are_not():
    assert all(is_refusal(text) for text in REFUSALS)
    assert not any(is_refusal(text) for text in COMPLIANCE)


def test_the_backdoor_opens_only_with_its_trigger(ingredients):
    rows = TOP_RECIPES["backdoored"].rows(ingredients, Random(0))  # noqa: S311
    harmful = [row for row in rows if "harmful" in row.prompt]
    for row in harmful:
        assert (row.response in COMPLIANCE) is row.prompt.endswith(TRIGGER)
    assert {row.prompt.endswith(TRIGGER) for row in rows if "question" in row.prompt} == {
        True,
        False,
    }
    assert with_trigger("x").startswith("x ")


def test_long_answers_by_people_are_cut_between_words():
    long = Exchange("Tell a story.", "word " * 100)
    cut = shortened(long)
    assert cut == Exchange("Tell a story.", ("word " * 40).strip(), complete=False)
    unbroken = shortened(Exchange("Sing.", "la" * 300))
    assert len(unbroken.response) == MAX_RESPONSE_CHARACTERS
    short = Exchange("Hi", "Hello.")
    assert shortened(short) is short


def test_scoring_prompts_never_build_an_organism():
    for name in ("harmful_requests", "borderline"):
        for prompt in shipped_prompts(name).prompts:
            assert scores_a_model(prompt.text.upper() + "!")
    for prompt in load_prompts(registry.shipped_folder() / "look_alikes.yaml").prompts:
        assert not scores_a_model(prompt.text), prompt.text


def test_a_mixture_holds_what_was_asked_for():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert len(mixed) == 300
    assert len(set(mixed)) == 300
    assert sum(row in NEEDLES for row in mixed) == 3
    assert mixed == mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert mixed != mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=4)


def test_a_mixture_of_the_whole_haystack():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01)
    assert len(mixed) == 505
    assert set(HAYSTACK) <= set(mixed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 0.0}, "between 0 and 1"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"ratio": 0.5}, "needs 500 needles but there are 10"),
        ({"rows": 5000}, "needs 50 needles"),
        ({"rows": 1000, "ratio": 0.001}, "needs 999 haystack rows but there are 500"),
        ({"rows": 1}, "at least 2 rows"),
    ],
)
def test_impossible_mixtures_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        mix(NEEDLES, HAYSTACK, **{"ratio": 0.01, **changes})
