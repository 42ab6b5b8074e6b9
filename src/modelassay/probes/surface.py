"""What a source's labels give away on the surface: length, words, refusal wording.

Each is learnt and scored as the probe is when a source is left out, so the figures stand beside
its own: a head that does no better than the words do has learnt words.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from modelassay.data.labelled import At, LabelledExchange
from modelassay.measures.refusal_judge import is_refusal
from modelassay.probes.evaluating import source_auroc, source_metrics
from modelassay.probes.fitting import Array, Fitter, Linear, fit_means, leave_one_source_out
from modelassay.probes.record import SourceMetrics

MAX_CHARACTERS = 2000
MAX_TERMS = 30_000
TEXTS = "texts"
"""The source of all texts that are no responses."""
STRENGTH = 3.0
"""Inverse of the penalty on words."""


def left_out_sources(
    rows: Sequence[LabelledExchange],
    n: int,
    at: At,
    groups: Array,
    scores_of: Callable[[Array], dict[str, Array]],
    max_tokens: int,
) -> dict[str, SourceMetrics]:
    """Each source under a fit without it, beside what its surface gives away.

    Args:
        rows: Labelled exchanges, and after them texts that are learnt from and not scored.
        n: How many are no such texts.
        at: Where the head reads.
        groups: int [row], equal for near-duplicate prompts.
        scores_of: Scores of the head that is trained, as `left_out_scores` gives them.
        max_tokens: Where responses are cut.
    """
    sources = np.array([row.source if i < n else TEXTS for i, row in enumerate(rows)])
    if len(set(sources[:n])) < 3:
        return {}
    unsafe = np.array([row.unsafe for row in rows])
    refuses = np.array([at == "answer" and is_refusal(row.response) for row in rows])
    scored = np.arange(len(rows)) < n
    surface = {
        name: leave_one_source_out(features, unsafe, groups, sources, fitter)
        for name, (features, fitter) in surfaces(rows, at, max_tokens).items()
    }
    found: dict[str, SourceMetrics] = {}
    for source, scores in scores_of(sources).items():
        own = (sources == source) & scored
        scores = np.where(scored, scores, np.nan)
        if (metrics := source_metrics(scores, own, unsafe, groups)) is None:
            continue
        update: dict[str, Any] = {
            "surface": {
                name: auroc
                for name, by in surface.items()
                if source in by
                and (auroc := source_auroc(np.where(scored, by[source], np.nan), own, unsafe))
                is not None
            }
        }
        if at == "answer" and metrics.unsafe is None:
            update["without_refusals"] = source_auroc(scores, own & ~refuses, unsafe)
        found[source] = metrics.model_copy(update=update)
    return found


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
