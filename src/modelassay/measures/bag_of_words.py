"""How much of a concept's contrast is in its words.

Any network, trained or not, passes on which words a prompt holds. If a bag of words tells the two
sides of a concept apart, separation in a model proves nothing about understanding. So the same
held-out statistic that scores models is applied to word counts.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from modelassay.data.concepts import Concept
from modelassay.measures.separation import measure_separation

MAX_LENGTH_DIFFERENCE = 2  # words


@dataclass(frozen=True)
class BagOfWords:
    """What words and lengths alone give away. A good concept has a large p-value."""

    separation: float
    """Held-out separation of unit-length word-count vectors, in σ."""
    p_value: float
    auroc: float
    uneven_lengths: int
    """Pairs whose members differ by more than 2 words."""

    def to_dict(self) -> dict[str, float]:
        """All fields by name."""
        return asdict(self)


def measure_bag_of_words(concept: Concept) -> BagOfWords:
    """Measures how well a bag of words separates a concept's pairs, held out.

    Source of the idea: control baselines in probing, Hewitt & Liang 2019.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer

    positive = [pair.positive for pair in concept.pairs]
    negative = [pair.negative for pair in concept.pairs]
    vectorizer = TfidfVectorizer(use_idf=False, token_pattern=r"(?u)\b\w+\b")
    counts = vectorizer.fit_transform(positive + negative).toarray()
    vectors = torch.tensor(counts).unsqueeze(1)
    n = len(positive)
    measured = measure_separation(
        vectors[:n],
        vectors[n:],
        [0],
        [f"{a}\n{b}" for a, b in zip(positive, negative, strict=True)],
    )
    uneven = sum(
        abs(len(a.split()) - len(b.split())) > MAX_LENGTH_DIFFERENCE
        for a, b in zip(positive, negative, strict=True)
    )
    return BagOfWords(measured.separation, measured.p_value, measured.auroc, uneven)
