"""Ordinary prompts of several lengths: the shipped ones, and longer ones put together from them.

What early layers are given drifts with a token's position, and a long prompt has more tokens of
which one may be the most extreme. Ranges that come from one-line requests alone call whatever is
longer, so a calibration needs lengths of every kind that is met later.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from modelassay.data.concepts import ordinary_prompts
from modelassay.data.feature_types import feature_types
from modelassay.models import LoadedModel

PARTS = (3, 6, 12, 24)
"""Requests or sentences that a longer prompt is made of: some 50 to 400 tokens."""
N_EACH = 24
"""Longer prompts of each size."""
PASSAGES = ("uncertainty", "deception")
"""Contrast sets whose responses are sentences of plain statements."""
ROOM = 200
"""Tokens that a prompt leaves for a chat template and the beginning of a response."""
SEED = 0


def ordinary_of_all_lengths() -> list[str]:
    """All shipped ordinary prompts, and longer ones made of the same sentences."""
    return [*ordinary_prompts(), *longer_prompts()]


def that_fit(model: LoadedModel, prompts: Sequence[str]) -> list[str]:
    """Without those of the longer shipped prompts for which a model has no room."""
    texts = longer_prompts()
    rows = model.tokenizer(texts, add_special_tokens=False)["input_ids"]
    pairs = zip(texts, rows, strict=True)
    too_long = {text for text, row in pairs if len(row) + ROOM > model.context_length}
    return [text for text in prompts if text not in too_long]


def longer_prompts() -> list[str]:
    """Lists of questions, paragraphs of requests, and requests about a passage of several lines."""
    types, requests = feature_types(), ordinary_prompts()
    sentences = [pair.positive for name in PASSAGES for pair in types[name].pairs]
    rng = np.random.default_rng(SEED)

    def some(texts: list[str], n: int) -> list[str]:
        return [texts[i] for i in rng.choice(len(texts), size=n, replace=False)]

    def questions(n: int) -> str:
        numbered = (f"{i}. {text}" for i, text in enumerate(some(requests, n), start=1))
        return "\n".join(["Please answer these one by one.", *numbered])

    def paragraphs(n: int) -> str:
        chosen = some(requests, n)
        return "\n\n".join(" ".join(chosen[i : i + 4]) for i in range(0, n, 4))

    def passage(n: int) -> str:
        return f"{some(requests, 1)[0]}\n\n{' '.join(some(sentences, n))}"

    forms = (questions, paragraphs, passage)
    return [forms[i % len(forms)](n) for n in PARTS for i in range(N_EACH)]
