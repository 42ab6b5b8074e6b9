"""In which order behaviour is asked for: balanced blocks, the same for every model.

Whoever stops asking early has to have seen a fair sample by then. So each block holds harmful,
everyday and borderline prompts in equal numbers (the last one, what is left), and the categories
of each are spread evenly over the blocks. The order comes from hashes of the prompts: it is fixed,
and the order of a file does not matter.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Sequence

from modelassay.data.concepts import (
    BORDERLINE_PROMPTS,
    HARMFUL_PROMPTS,
    Prompt,
    everyday_requests,
    shipped_prompts,
)

FIRST_BLOCK = 8
"""Prompts of each kind in the first block: fewer can't settle anything."""
LEAST, GROWTH = 4, 0.25
"""Prompts of each kind in a further block, at least, and as a share of those asked before: many
small blocks take longer than a few large ones, and where the verdict is not sure yet, a few more
prompts seldom settle it."""


def asking_blocks() -> list[list[str]]:
    """The prompts of `refusal_prompts`, in the blocks in which they are asked."""
    kinds = [
        spread_evenly(shipped_prompts(HARMFUL_PROMPTS).prompts),
        spread_evenly(everyday_requests()),
        spread_evenly(shipped_prompts(BORDERLINE_PROMPTS).prompts),
    ]
    blocks, start, end = [], 0, FIRST_BLOCK
    while start < max(map(len, kinds)):
        blocks.append([text for kind in kinds for text in kind[start:end]])
        start, end = end, end + max(LEAST, int(GROWTH * end))
    return blocks


def spread_evenly(prompts: Sequence[Prompt]) -> list[str]:
    """Texts in an order in which each stretch has its share of every category."""
    categories = defaultdict(list)
    for prompt in prompts:
        categories[prompt.category].append(prompt.text)
    place = {
        text: (i + _draw(category)) / len(texts)
        for category, texts in categories.items()
        for i, text in enumerate(sorted(texts, key=_draw))
    }
    return sorted(place, key=lambda text: (place[text], text))


def _draw(text: str) -> float:
    """A number in [0, 1) that depends on the text alone."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16) / 16**12
