"""`load_guard()`: a model with the probe that belongs to it, and a classifier."""

from __future__ import annotations

from typing import Any

from modelassay.errors import InputError
from modelassay.guard.streaming import Classifier, Guard
from modelassay.models import LoadedModel, load
from modelassay.probes.stores import find_probe, probe_of

MIN_WINDOW = 64
"""Tokens that a classifier must read: what it clears must fit into what it sees (a held part is at
most `ESCALATE_EVERY` tokens of the model, beside the start of the prompt)."""


def load_guard(
    model_id: str,
    *,
    probe: str | None = None,
    classifier: str | None = "embedded",
    token: str | bool | None = None,
    **options: Any,
) -> Guard:
    """Loads a model to be guarded.

    Args:
        model_id: As `load` takes it.
        probe: Name, folder or Hub reference; None finds the one fitted on these very weights.
        classifier: `embedded`, a folder or a Hub id; None goes without.
        token: Hub token, None for the stored one, False for none at all.
        **options: Of `load`.

    Raises:
        InputError: there is no probe for the model, or it belongs to another.
        UnavailableError: something that is needed is not there now.
    """
    model = load(model_id, token=token, **options)
    return guard_model(model, probe=probe, classifier=classifier, token=token)


def guard_model(
    model: LoadedModel,
    *,
    probe: str | None = None,
    classifier: str | None = "embedded",
    token: str | bool | None = None,
) -> Guard:
    """Guards a model that is loaded; see `load_guard`."""
    found = find_probe(probe, token=token) if probe else probe_of(model)
    if found is None:
        raise InputError(
            f"There is no probe for {model.info.id}; train one with `modelassay probe train"
            f" {model.info.id}`, or give one with --probe."
        )
    found.probe.check_belongs_to(model)
    for at in ("prompt", "answer"):
        found.probe.head(at)
    return Guard(model, found.probe, load_judge(classifier))


def load_judge(classifier: str | None) -> Classifier | None:
    """The classifier by name, or None for none."""
    if classifier is None:
        return None
    from modelassay.classifier import load_classifier

    judge = load_classifier(classifier)
    if judge.max_length < MIN_WINDOW:
        raise InputError(
            f"The classifier {classifier} reads {judge.max_length} tokens; to judge what a guard"
            f" holds back it must read {MIN_WINDOW}."
        )
    return judge
