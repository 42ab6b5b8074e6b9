"""What a source's labels give away on the surface: length, words, refusal wording.

Each is learnt and scored as the probe is when a source is left out, so the figures stand beside
its own: a head that does no better than the words do has learnt words.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelassay.data.labelled import At, LabelledExchange
from modelassay.measures.refusal_judge import is_refusal
from modelassay.probes.fitting import Array, Fitter, Linear, fit_means

MAX_CHARACTERS = 2000
MAX_TERMS = 30_000
STRENGTH = 3.0
"""Inverse of the penalty on words."""


def surfaces(
    rows: Sequence[LabelledExchange], at: At, max_tokens: int
) -> dict[str, tuple[Array, Fitter]]:
    """Features [row, d] of the surface, and how each is fitted, by name.

    Args:
        rows: Labelled exchanges.
        at: Where a head reads; that is the text whose surface it is.
        max_tokens: Where responses are cut; as many words count.
    """
    texts = [" ".join(text_at(row, at).split()[:max_tokens])[:MAX_CHARACTERS] for row in rows]
    length = np.log1p([[len(text)] for text in texts]).astype(np.float32)
    found: dict[str, tuple[Array, Fitter]] = {
        "length": (length, fit_means),
        "words": (_terms(texts), fit_words),
    }
    if at == "answer":
        refuses = np.array([[float(is_refusal(text))] for text in texts], dtype=np.float32)
        found["refusal wording"] = refuses, fit_means
    return found


def text_at(row: LabelledExchange, at: At) -> str:
    """What a head reads there."""
    return row.prompt if at == "prompt" else row.response


def fit_words(features: Array, unsafe: Array, groups: Array, share: Array) -> Linear:
    """Logistic regression on terms, of a sparse matrix."""
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=STRENGTH, class_weight="balanced", max_iter=200)
    model.fit(features, unsafe, share)
    return np.asarray(model.coef_)[0], float(np.asarray(model.intercept_)[0])


def _terms(texts: Sequence[str]) -> Array:
    from sklearn.feature_extraction.text import TfidfVectorizer

    words = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, max_features=MAX_TERMS, token_pattern=r"\w+"
    )
    return words.fit_transform([text if text.strip() else "empty" for text in texts]).tocsr()
