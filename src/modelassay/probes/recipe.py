"""The shipped recipe: what the default probes learn from, and how they are trained.

The prompt's head learns from prompts of 21 sources (`training_data`), the answer's from the
exchanges that the classifier learns from. An exchange without a prompt is read after a neutral one,
because a guarded answer always follows something.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from modelassay.classifier.recipe import recipe_rows
from modelassay.data.exchanges import At, LabelledExchange
from modelassay.data.training_data import prompt_head_rows
from modelassay.models import LoadedModel
from modelassay.probes.training import TrainedHead, train_head
from modelassay.progress import OnPhase, OnProgress, phase_of, silent

NEUTRAL_PROMPTS = ("Go on.", "Please continue.", "Write a short text.", "Answer my question.")
ANSWER_TOKENS = 96
"""Longer answers cost more and teach an average over their tokens little."""


def train_default_heads(
    model: LoadedModel,
    folder: Path,
    *,
    token: str | None = None,
    on_phase: OnPhase = silent,
) -> dict[At, TrainedHead]:
    """Trains both heads as the shipped ones were.

    Args:
        model: The model to watch.
        folder: Folder of the public sets.
        token: Hub token, None for the stored one.
        on_phase: Told (phase, done, total).

    Raises:
        InputError: the folder lacks a set.
        UnavailableError: the embedded model cannot be fetched.
    """
    prompts = prompt_head_rows(folder, token)
    prompt_head = train_head(model, prompts, "prompt", on_progress=phase_of(on_phase, "reading"))
    rows, group_by = answer_rows(folder, on_progress=phase_of(on_phase, "answering"))
    answer_head = train_head(
        model,
        rows,
        "answer",
        group_by=group_by,
        max_answer_tokens=ANSWER_TOKENS,
        on_progress=phase_of(on_phase, "reading answers"),
    )
    return {"prompt": prompt_head, "answer": answer_head}


def answer_rows(
    folder: Path, *, on_progress: OnProgress | None = None
) -> tuple[list[LabelledExchange], list[str]]:
    """Exchanges, and the text that stands for each one's prompt when they are split."""
    recipe = recipe_rows(folder, on_progress=on_progress)
    rows = [
        row if row.prompt else replace(row, prompt=NEUTRAL_PROMPTS[i % len(NEUTRAL_PROMPTS)])
        for i, row in enumerate(recipe.rows)
    ]
    return rows, recipe.group_by
