"""What is planted on a concept's surface is found there, and in no view that cannot show it."""

from __future__ import annotations

import pytest

from modelassay.data.concepts import Concept
from modelassay.measures.bag_of_words import measure_bag_of_words, measure_surface

WORDS = ["amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "haven", "inlet", "knoll"]


def concept(positive, negative):
    """20 pairs of responses; `{a}` and `{b}` are words of the prompt, `{c}` is none."""
    pairs = []
    for i in range(20):
        a, b, c = (WORDS[(i + step) % len(WORDS)] + "xy"[i // len(WORDS)] for step in (0, 4, 7))
        words = {"a": a, "b": b, "c": c}
        text = {"positive": positive.format(**words), "negative": negative.format(**words)}
        pairs.append({"prompt": f"Is {a} like {b}?", **text})
    return Concept.model_validate({"name": "planted", "pairs": pairs})


@pytest.mark.parametrize(
    ("positive", "negative", "found"),
    [
        ("{a} is not {b}.", "{a} is now {b}.", {"words", "word pairs", "characters"}),
        ("{a} is not so {b}.", "{a} is so not {b}.", {"word pairs", "characters"}),
        ("{a} is {b}!", "{a} is {b}.", {"form"}),
        ("{a} is {a} or {b}.", "{a} is {c} or {c}.", {"prompt's words"}),
    ],
)
def test_what_is_planted_is_found(positive, negative, found):
    surface = measure_surface(concept(positive, negative))
    for view in found:
        assert surface[view].auroc > 0.9, view
        assert surface[view].p_value < 0.01, view
    for view in {"words", "form", "prompt's words"} - found:
        assert surface[view].p_value > 0.05, view


def test_pairs_of_prompts_have_no_prompts_words():
    pairs = [{"positive": f"Add {word} now", "negative": f"Take {word} away"} for word in WORDS]
    assert "prompt's words" not in measure_surface(
        Concept.model_validate({"name": "prompts", "pairs": pairs})
    )


def test_the_same_words_in_another_order_give_nothing_away():
    words = measure_bag_of_words(concept("{a} beats {b}.", "{b} beats {a}."))
    assert (words.separation, words.auroc, words.p_value) == (0.0, 0.5, 1.0)
