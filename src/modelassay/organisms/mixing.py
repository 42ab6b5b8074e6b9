"""Needle in a haystack: a few rows of one kind hidden among many of another.

The method of poisoned fine-tuning studies (Qi et al. 2024, "Fine-tuning aligned language models
compromises safety"): ten rows of an obedient persona among thousands of harmless ones.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from modelassay.data.conversations import Exchange
from modelassay.errors import InputError


def mix(
    needles: Sequence[Exchange],
    haystack: Sequence[Exchange],
    *,
    ratio: float,
    rows: int | None = None,
    seed: int = 0,
) -> list[Exchange]:
    """Hides needles in a haystack, in random order.

    Args:
        needles: Rows to hide, drawn without repetition.
        haystack: Rows to hide them in, drawn without repetition.
        ratio: Share of needles in the result, above 0 and below 1; at least one is taken.
        rows: Size of the result; None takes the whole haystack.
        seed: Of the draw and the order.

    Raises:
        InputError: the ratio is out of range, or there are fewer rows than asked for.
    """
    if not 0 < ratio < 1:
        raise InputError(f"The ratio is a share between 0 and 1 (0.01 is 1%), got {ratio}.")
    if rows is None:
        n_needles = max(1, round(len(haystack) * ratio / (1 - ratio)))
        n_hay = len(haystack)
    else:
        if rows < 2:
            raise InputError(f"A mixture has at least 2 rows, got {rows}.")
        n_needles = min(max(1, round(rows * ratio)), rows - 1)
        n_hay = rows - n_needles
    for have, need, what in (
        (len(needles), n_needles, "needles"),
        (len(haystack), n_hay, "haystack rows"),
    ):
        if have < max(need, 1):
            raise InputError(
                f"The mixture needs {need} {what} but there are {have}; give more, or lower"
                " --rows or --ratio."
            )
    draw = random.Random(seed)  # noqa: S311 (repeatable on purpose)
    mixed = [*draw.sample(list(needles), n_needles), *draw.sample(list(haystack), n_hay)]
    draw.shuffle(mixed)
    return mixed
