"""`load_guard()`: a model with the probe that belongs to it, and a classifier."""

from __future__ import annotations

import logging

from typing_extensions import Unpack

from modelassay.errors import InputError
from modelassay.guard.responding import Classifier
from modelassay.guard.streaming import Guard
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.monitors import find_monitor
from modelassay.probes import Probe, find_probe, probe_of
from modelassay.progress import OnPhase, silent

log = logging.getLogger(__name__)

MIN_WINDOW = 64
"""Tokens that a classifier must read: what it clears must fit into what it sees. It reads a
held part that is longer in steps of `ESCALATE_EVERY` tokens of the model, which have to fit beside
the start of the prompt."""


def load_guard(
    model: str | ModelRef | LoadedModel,
    *,
    probe: str | None = None,
    classifier: str | None = "embedded",
    monitor: str | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> Guard:
    """Loads a model to be guarded.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        probe: Name, folder or Hub reference; None finds the one fitted on these very weights.
        classifier: `embedded`, a folder or a Hub id; None goes without.
        monitor: Name, folder or Hub reference of a monitor; None goes without.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: there is no probe for the model, or it or the monitor belongs to another.
        UnavailableError: something that is needed is not there now.
    """
    token = load_options.get("token")
    # What is asked for by name is found, or refused, before a model is loaded.
    found = find_probe(probe, token=token) if probe else None
    if found is not None:
        _check_whole(found[0])
    watching = find_monitor(monitor, token=token)[0] if monitor else None
    judge = load_judge(classifier)
    model = open_model(model, on_progress=on_progress, **load_options)
    found = found or probe_of(model)
    if found is None:
        raise InputError(
            f"There is no probe for {model.info.id}; train one with `modelassay probe train"
            f" {model.info.id}`, or give one with --probe."
        )
    own, _ = found
    model = own.reading(model)
    _check_whole(own)
    if not own.judges_prompts:
        log.warning(
            "The probe %s reads responses only, so no prompt is judged before it is answered.",
            own.name,
        )
    return Guard(model, own, judge, watching)


def _check_whole(probe: Probe) -> None:
    """Refuses a probe that lacks a head: the response is watched, and the prompt where it can."""
    probe.head("answer")
    if probe.judges_prompts:
        probe.head("prompt")


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
