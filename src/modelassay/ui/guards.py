"""Loaded guards of the models that visitors may chat with: those that a shipped probe belongs to.

Few are kept, because each is a model in memory. They are loaded on the CPU of the page's own
process; a process that is given a GPU is a fork of it, finds them there and moves its copy.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import replace
from functools import lru_cache

import torch

from modelassay.errors import InputError
from modelassay.guard import Guard, load_guard
from modelassay.guard.streaming import Classifier
from modelassay.hub import trim_cache
from modelassay.probes import PROBES, ProbeRecord
from modelassay.ui.service import MAX_CACHE_BYTES, MAX_MODEL_BYTES, visible

KEPT = 2
CLASSIFIER = "embedded"


def guarded_models() -> dict[str, ProbeRecord]:
    """For each model that a visitor may chat with, its probe's record.

    The host's own probes are for those who may name paths too.
    """
    found: dict[str, ProbeRecord] = {}
    for probe in visible(PROBES):
        if probe.record.heads.keys() >= {"prompt", "answer"}:
            found.setdefault(probe.model_id, probe.record)
    return found


def probe_record(model_id: str) -> ProbeRecord:
    """The record of the probe that belongs to a model.

    Raises:
        InputError: there is none, so nothing is fetched.
    """
    models = guarded_models()
    if model_id not in models:
        raise InputError(
            f"There is no probe for {model_id[:100]}; choose {', '.join(models) or 'nothing yet'}."
        )
    return models[model_id]


class GuardShelf:
    """The guards used last; safe to use from several threads, and in forks of the process."""

    def __init__(self, kept: int = KEPT) -> None:
        """Starts empty.

        Args:
            kept: Most guards that are kept loaded.
        """
        self.kept = kept
        self.guards: OrderedDict[str, Guard] = OrderedDict()
        self._renew_lock()
        if hasattr(os, "register_at_fork"):
            # Another thread may have held it at the moment of the fork, and is not there to let go.
            os.register_at_fork(after_in_child=self._renew_lock)

    def get(self, model_id: str, *, to_gpu: bool = False) -> Guard:
        """The guard of a model, loaded if need be.

        Args:
            model_id: One of `guarded_models()`.
            to_gpu: Move it to the GPU if there is one.

        Raises:
            AssayError: it cannot be loaded.
        """
        # Loading holds the lock: two at once would need the memory of both.
        with self.lock:
            guard = self.guards.pop(model_id, None)
            if guard is None:
                while len(self.guards) >= self.kept:
                    self.guards.popitem(last=False)
                guard = _load(model_id)
            self.guards[model_id] = guard
            if to_gpu and torch.cuda.is_available() and guard.model.device.type == "cpu":
                guard.model.network.to("cuda")
            return guard

    def _renew_lock(self) -> None:
        self.lock = threading.Lock()


@lru_cache(maxsize=1)
def shared_classifier() -> Classifier:
    """The exchange classifier, one for all guards; it is small enough for the CPU.

    Raises:
        AssayError: it cannot be loaded.
    """
    from modelassay.classifier import load_classifier

    return load_classifier(CLASSIFIER, device="cpu")


def _load(model_id: str) -> Guard:
    record = probe_record(model_id)
    trim_cache(MAX_CACHE_BYTES)
    guard = load_guard(
        model_id,
        classifier=None,
        revision=record.model.revision if "/" in model_id else None,  # the probe's very weights
        device="cpu",
        token=False,
        max_bytes=MAX_MODEL_BYTES,
    )
    return replace(guard, classifier=shared_classifier())
