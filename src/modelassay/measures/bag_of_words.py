"""How much of a concept's contrast is in its words.

Any network, trained or not, passes on which words a text holds. If a bag of words tells the two
sides of a concept apart, separation in a model proves nothing about understanding. So the same
held-out statistic that scores models is applied to word counts, and to what else shows on the
surface.

A file whose sides are balanced as a whole reads a little below 0.5, not at 0.5: a word that leans
one way among the pairs fitted on leans the other way among those left out.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from modelassay.data.concepts import Concept
from modelassay.measures.separation import measure_separation

MAX_LENGTH_DIFFERENCE = 2  # words
MARKS = ".,:;?!'-"
WORD = r"(?u)\b\w+\b"

Array = NDArray[np.floating]


@dataclass(frozen=True)
class Surface:
    """What one view of the surface gives away. A good concept has a large p-value."""

    separation: float
    """Held-out separation of the view's vectors, in σ."""
    p_value: float
    auroc: float


@dataclass(frozen=True)
class BagOfWords(Surface):
    """What words (as unit-length counts) and lengths alone give away."""

    uneven_lengths: int
    """Pairs whose members differ by more than 2 words."""

    def to_dict(self) -> dict[str, float]:
        """All fields by name."""
        return asdict(self)


def measure_bag_of_words(concept: Concept) -> BagOfWords:
    """Measures how well a bag of words separates a concept's pairs, held out.

    Source of the idea: control baselines in probing, Hewitt & Liang 2019.
    """
    words = _surface(concept, _counts(_texts(concept), token_pattern=WORD))
    uneven = sum(
        abs(len(pair.positive.split()) - len(pair.negative.split())) > MAX_LENGTH_DIFFERENCE
        for pair in concept.pairs
    )
    return BagOfWords(words.separation, words.p_value, words.auroc, uneven)


def measure_surface(concept: Concept) -> dict[str, Surface]:
    """Measures how well each view of a concept's surface separates its pairs, held out.

    Returns:
        By view: words; words and word pairs; runs of 3 and 4 characters; form (length, capital
        letters, digits and punctuation); for responses also which share of their words is in the
        prompt.
    """
    texts = _texts(concept)
    views = {
        "words": _counts(texts, token_pattern=WORD),
        "word pairs": _counts(texts, token_pattern=WORD, ngram_range=(1, 2)),
        "characters": _counts(texts, analyzer="char", ngram_range=(3, 4)),
        "form": _standardised([_form(text) for text in texts]),
    }
    if concept.of_responses:
        prompts = [pair.prompt for pair in concept.pairs] * 2
        views["prompt's words"] = _standardised(
            [_shared(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        )
    return {name: _surface(concept, vectors) for name, vectors in views.items()}


def _texts(concept: Concept) -> list[str]:
    """Positives, then negatives."""
    return [p.positive for p in concept.pairs] + [p.negative for p in concept.pairs]


def _surface(concept: Concept, vectors: Array) -> Surface:
    """What vectors [2 x pair, feature], in the order of `_texts`, give away."""
    n = len(concept.pairs)
    if np.allclose(vectors[:n], vectors[n:]):  # such as the same words in another order
        return Surface(separation=0.0, p_value=1.0, auroc=0.5)
    by_layer = torch.tensor(vectors).unsqueeze(1)
    keys = [f"{pair.positive}\n{pair.negative}" for pair in concept.pairs]
    measured = measure_separation(by_layer[:n], by_layer[n:], [0], keys)
    return Surface(measured.separation, measured.p_value, measured.auroc)


def _counts(texts: list[str], **options: Any) -> Array:
    """Unit-length counts [text, term]; options are those of scikit-learn's vectorizer."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(use_idf=False, **options).fit_transform(texts).toarray()


def _form(text: str) -> list[float]:
    capitals, digits = sum(map(str.isupper, text)), sum(map(str.isdigit, text))
    return [len(text.split()), len(text), capitals, digits, *map(text.count, MARKS)]


def _shared(prompt: str, text: str) -> list[float]:
    """Number and share of a text's words that its prompt has."""
    known, words = set(re.findall(WORD, prompt.lower())), re.findall(WORD, text.lower())
    shared = sum(word in known for word in words)
    return [shared, shared / max(1, len(words))]


def _standardised(rows: list[list[float]]) -> Array:
    values = np.array(rows, dtype=float)
    spread = values.std(axis=0)
    return (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
