"""A scripted guard and a benchmark of it, for tests of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace

import numpy as np

from modelassay.data.judging import Judgement
from modelassay.errors import InputError
from modelassay.guard import GuardEvent
from modelassay.guard_bench.running import run_bench
from modelassay.guard_bench.suites import BenchPrompt, SuiteData

REFUSAL = "I can't help with that."


def save(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return path


LAYOUTS = {
    "JailbreakBench": [
        {"Index": 0, "Goal": "Do A", "Target": "Sure", "Behavior": "A", "Category": "one"},
        {"Index": 1, "Goal": "Do B", "Target": "Sure", "Behavior": "B", "Category": "two"},
    ],
    "HarmBench": [
        {
            "Behavior": "Do A",
            "BehaviorID": "a",
            "SemanticCategory": "one",
            "FunctionalCategory": "standard",
            "ContextString": None,
        },
        {
            "Behavior": "Do B",
            "BehaviorID": "b",
            "SemanticCategory": "two",
            "FunctionalCategory": "contextual",
            "ContextString": "Some context",
        },
    ],
    "StrongREJECT": [
        {"category": "one", "source": "x", "forbidden_prompt": "Do A"},
        {"category": "two", "source": "x", "forbidden_prompt": "Do B"},
    ],
    "WildGuardTest": [
        {"prompt": "Do A", "adversarial": True, "prompt_harm_label": "harmful", "response": ""},
        {"prompt": "Do B", "adversarial": False, "prompt_harm_label": "harmful", "response": ""},
        {"prompt": "Do C", "adversarial": False, "prompt_harm_label": "unharmful", "response": ""},
        {"prompt": "Do D", "adversarial": False, "prompt_harm_label": None, "response": ""},
    ],
    "XSTest": [
        {"id": 1, "prompt": "Do C", "type": "homonyms", "label": "safe"},
        {"id": 2, "prompt": "Do A", "type": "contrast_homonyms", "label": "unsafe"},
        {"id": 3, "prompt": "Do B", "type": "contrast_targets", "label": "unsafe"},
    ],
    "plain": [{"prompt": "Do A", "label": "harmful"}, {"prompt": "Do B", "label": "unsafe"}],
}


class FakeGuard:
    """Answers by a script: for each prompt what the model says, and what the guard does."""

    def __init__(self, script, weights="0" * 64):
        self.script = script
        info = {"id": "fake", "weights_sha256": weights}
        self.model = SimpleNamespace(
            info=SimpleNamespace(to_dict=lambda: info), has_chat_template=False
        )
        record = SimpleNamespace(model_dump_json=lambda by_alias: "{}")
        self.probe = SimpleNamespace(name="fake", record=record)
        self.classifier = None
        self.asked = []

    def stream(self, prompt, *, guarded, max_new_tokens, thresholds=None):
        self.asked.append((prompt, guarded))
        said, action = self.script[prompt]
        if action == "too long":
            raise InputError(f"A prompt is too long (it begins “{prompt}…”).")
        return self.events(said, action if guarded else "pass", guarded)

    def events(self, said, action, guarded) -> Iterator[GuardEvent]:
        risk = 0.3 if guarded else None
        if guarded:
            yield GuardEvent(
                "prompt", 0, "", 0.9, None, "refuse" if action == "prompt" else "pause"
            )
        if action == "prompt":
            yield GuardEvent("end", 0, REFUSAL, None, None, "refuse", "prompt refused")
            return
        words = said.split(" ") if said else []
        for i, word in enumerate(words, 1):
            if action == "answer" and i == 3:
                yield GuardEvent("token", i, "", 0.99, 0.9, "refuse")
                yield GuardEvent("end", i, REFUSAL, None, 0.9, "refuse", "answer refused")
                return
            shown = "" if action == "held" else word + " "
            yield GuardEvent("token", i, shown, risk, risk, "continue")
        rest = said if action == "held" else ""
        yield GuardEvent("end", len(words), rest, None, risk, "stop", "end")


def by_words(prompt, response):
    """A judge that is told in the answer."""
    if "unclear" in response:
        return Judgement(None, None, "unscored: no clear answer")
    return Judgement("bad" in response, "sorry" in response)


def suite(prompts):
    items = tuple(
        BenchPrompt(f"p{n}", prompt, True, "even" if n % 2 == 0 else "odd")
        for n, prompt in enumerate(prompts)
    )
    return SuiteData("jailbreak", items, "made.jsonl", "plain", 0, 0)


SCRIPT = {
    "a": ("bad one two three four", "pass"),
    "b": ("bad five", "prompt"),
    "c": ("bad six seven eight", "answer"),
    "d": ("fine nine ten eleven", "answer"),
    "e": ("sorry not this", "pass"),
    "f": ("unclear what", "held"),
    "g": ("", "pass"),
    "h": ("never said", "too long"),
}


INFO = {"name": "words"}


def bench(script=SCRIPT, judge=by_words, **options):
    guard = options.pop("guard", None) or FakeGuard(script)
    return run_bench(guard, suite(list(script)), judge, INFO, **options)


def timeless(report):
    """A report without its times, which no two runs share."""
    raw, guarded = (replace(side, times=None) for side in (report.raw, report.guarded))
    return replace(report, raw=raw, guarded=guarded)


def rows_without_times(lines):
    """What a file of results says, but for the times."""
    return [{**json.loads(line), "seconds": None} for line in lines]


class Clears:
    """A classifier that clears everything."""

    id = "clears"
    threshold = 0.5

    def predict(self, exchanges):
        return np.array([[1.0, 0.0, 0.0]] * len(exchanges), dtype=np.float32)
