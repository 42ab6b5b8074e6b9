"""Passes that many responses share: each gets what it gets alone."""

from __future__ import annotations

import random

from guarding import OPEN
from modelassay.guard.batching import Row
from modelassay.guard.decoding import DecodingStep
from modelassay.guard.responding import Question, Read
from modelassay.reading.prompts import encode_chat

PROMPTS = (
    "Hello there",
    "a",
    "What is the colour of a very long afternoon in the autumn? " * 2,
    "Hm",
)


def together(guard, passes, prompts, options, seed=0, tokens=10):
    """Events of responses that join, wait and leave at random moments."""
    draw = random.Random(seed)  # noqa: S311
    made = [[] for _ in prompts]
    live, waiting = {}, list(range(len(prompts)))

    def drive(i, row, steps, answer):
        while True:
            try:
                found = steps.send(answer)
            except StopIteration:
                passes.drop(row)
                live.pop(id(row), None)
                return
            answer = None
            if isinstance(found, Read):
                if not row.ids:
                    passes.begin_with = encode_chat(
                        guard.model, [{"role": "user", "content": prompts[i]}]
                    )
                    answer = passes.begin(passes.begin_with, row)
                    continue
                if id(row) not in live:
                    passes.put(row)
                    live[id(row)] = (i, steps)
                return
            if isinstance(found, Question):
                answer = found.ask()
                continue
            made[i].append(found)

    while waiting or live:
        if waiting and (not live or draw.random() < 0.5):
            i = waiting.pop(draw.randrange(len(waiting)))
            row = Row(options[i])
            response = guard.respond(
                prompts[i], max_new_tokens=tokens, thresholds=OPEN, readings=row.readings
            )
            drive(i, row, response.steps(lambda: False), None)
        for row, step in passes.read():
            assert isinstance(step, DecodingStep)
            drive(*([live[id(row)][0], row, live[id(row)][1]]), step)
    return made
