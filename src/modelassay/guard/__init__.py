"""The guard: a response that is watched from inside, and shown no faster than it is cleared."""

from modelassay.guard.decoding import Sampling
from modelassay.guard.loading import load_guard
from modelassay.guard.policy import Policy, Thresholds
from modelassay.guard.streaming import REFUSAL, Classifier, Guard, GuardEvent, stream_unguarded

__all__ = [
    "REFUSAL",
    "Classifier",
    "Guard",
    "GuardEvent",
    "Policy",
    "Sampling",
    "Thresholds",
    "load_guard",
    "stream_unguarded",
]
