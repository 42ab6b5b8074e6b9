"""Three parts of labelled rows, disjoint by prompt: to train, to stop and calibrate, to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modelassay.data.exchanges import (
    LABELS,
    LabelledExchange,
    held_out,
    prompt_groups,
    require_classes,
)
from modelassay.errors import InputError

TEST_SHARE = 0.2
VALIDATION_SHARE = 0.15  # of what is not for testing
MIN_GROUPS = 6


@dataclass(frozen=True)
class Parts:
    """Row numbers of each part, int [row]; no prompt is in two of them."""

    train: np.ndarray
    validation: np.ndarray
    """Decides when training stops and where the threshold is."""
    test: np.ndarray
    """Scores the result and decides nothing."""
    groups: np.ndarray
    """Prompt group of every row, int [all rows]."""


def split_rows(rows: Sequence[LabelledExchange], group_by: Sequence[str] | None = None) -> Parts:
    """Splits by prompt; prompts that nearly repeat each other stay together.

    Args:
        rows: Rows with a class each.
        group_by: Text that stands for each row's prompt, where that is not the prompt itself.

    Raises:
        InputError: a row has no class, a class is missing, or too few different prompts to split.
    """
    for number, row in enumerate(rows, 1):
        if row.label is None:
            raise InputError(
                f"Row {number} says only whether it is unsafe; a classifier is trained on"
                f" {', '.join(LABELS)}."
            )
    require_classes(rows, LABELS, "Training a classifier")
    groups = prompt_groups(list(group_by) if group_by else [row.prompt for row in rows])
    if len(np.unique(groups)) < MIN_GROUPS:
        raise InputError(
            f"A classifier is stopped and scored on prompts that it has not seen; the data have"
            f" fewer than {MIN_GROUPS} different ones."
        )
    everything = np.arange(len(rows))
    test = held_out(groups, TEST_SHARE)
    rest = everything[~test]
    chosen = held_out(groups[rest], VALIDATION_SHARE)
    parts = Parts(rest[~chosen], rest[chosen], everything[test], groups)
    require_classes(
        [rows[i] for i in parts.train], LABELS, "Training (after some prompts were held out)"
    )
    return parts
