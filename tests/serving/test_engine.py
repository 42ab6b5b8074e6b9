"""Many conversations at once on tiny models: each gets what the guard gives it alone."""

from __future__ import annotations

import random
import time

import pytest

from guarding import OPEN
from modelassay.guard import Guard, Sampling
from modelassay.serving.engine import Broken, Engine, Room
from tiny import FAMILIES, probe_for

LONG = "What is the colour of a very long afternoon in the autumn?"
PROMPTS = ("Hello there", "a", LONG, "Hm, and then?")


def ask(engine, prompt, made, sampling=None, *, thresholds=OPEN, **options):
    """Submits a conversation whose events come into a list."""
    options = {"max_new_tokens": 10, "thresholds": thresholds} | options
    return engine.submit(
        lambda row: engine.guard.respond(prompt, readings=row.readings, **options),
        sampling or Sampling(),
        made.append,
    )


def finish(engine, *made):
    """Turns until all have ended."""
    for _ in range(2000):
        if all(each and (isinstance(each[-1], Broken) or each[-1].kind == "end") for each in made):
            return
        engine.turn()
        if not engine._is_passing() and not engine._answers:
            time.sleep(0.001)
    raise AssertionError("they do not end")


def same(made, alone, tolerance=1e-4):
    """The same texts and actions, and risks up to the rounding of another batch."""
    assert [(e.kind, e.index, e.text, e.action, e.reason) for e in made] == [
        (e.kind, e.index, e.text, e.action, e.reason) for e in alone
    ]
    for ours, own in zip(made, alone, strict=True):
        for name in ("risk", "smoothed", "monitor"):
            assert getattr(ours, name) == pytest.approx(getattr(own, name), abs=tolerance)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_conversations_of_every_family_are_what_they_are_alone(tiny, family):
    """They join one by one while others run, short ones beside long ones, and leave again."""
    guard = Guard(tiny(family), probe_for(tiny(family)))
    engine = Engine(guard, Room(rows=3))
    assert engine.alone_because is None
    draw = random.Random(1)  # noqa: S311
    made = []
    for prompt in PROMPTS:
        made.append([])
        ask(engine, prompt, made[-1], max_new_tokens=6 + len(made))
        for _ in range(draw.randrange(3)):
            engine.turn()
    finish(engine, *made)
    for i, (prompt, events) in enumerate(zip(PROMPTS, made, strict=True)):
        alone = guard.stream(prompt, max_new_tokens=7 + i, thresholds=OPEN)
        same(events, list(alone))
    assert len(engine._passes._cache) == 0
