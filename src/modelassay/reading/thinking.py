"""How a model that thinks is brought to answer at once, found out by trying.

In this order: by an argument of its chat template, by a word that the template takes from the
system or the user ("/no_think"), by closing the thought with the model's own marks. A way counts
where the prompt changes, ends in no open thought, and the model then opens none itself. Where none
does, the model thinks, and what follows its thoughts is what can be judged.

Only behaviour is read like this. Separations, fingerprints and probes are read from the prompt as
the template makes it, because that is what stored ones were read from.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from weakref import WeakKeyDictionary

from modelassay.models import LoadedModel
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import encode_prompts, render_chat
from modelassay.reading.templates import ANSWER_AT_ONCE, ChatTemplate, Thinking, template_of
from modelassay.reading.thoughts import closed_thoughts, closing_of

ASKED = ("Hello", "How many days are there in a week?")
"""What a model is asked to see whether it thinks."""
TRIED_TOKENS = 10
_ARGUMENTS = (
    ("reasoning_effort", "none"),
    ("reasoning_effort", "no_think"),
    ("thinking_mode", "off"),
    ("thinking_mode", "disabled"),
    ("think", False),
    ("reasoning", False),
    ("enable_reasoning", False),
)
"""Of templates that none of `ANSWER_AT_ONCE` reaches."""
_WORDS = ("/no_think", "/nothink", "detailed thinking off")

_known: WeakKeyDictionary[object, Thinking] = WeakKeyDictionary()


def thinking_of(model: LoadedModel) -> Thinking:
    """How this model is brought to answer at once; tried the first time.

    Raises:
        InputError: its chat template cannot be used.
    """
    if model.network not in _known:
        _known[model.network] = _find(model) if model.has_chat_template else Thinking()
    return _known[model.network]


def _find(model: LoadedModel) -> Thinking:
    template = template_of(model)
    switch = _switched_by(model, template)
    if template.opened_thought is None and (template.closes_thought or not _thinks(model)):
        return Thinking("off", switch) if switch else Thinking()
    plain = render_chat(model, ASKED[0])
    for way in _ways(model, template):
        try:
            prompt = render_chat(model, ASKED[0], thinking=way)
        except Exception:  # noqa: S112 (a template is a program of the model's author)
            continue
        if prompt != plain and template.opened_by(prompt) is None and not _thinks(model, way):
            return way
    return Thinking("on")


def _switched_by(model: LoadedModel, template: ChatTemplate) -> str:
    """The argument that is always given and switches thinking off; empty where none changes it."""
    plain = template.render(model.tokenizer, [{"role": "user", "content": ASKED[0]}])
    for name, value in ANSWER_AT_ONCE.items():
        if not re.search(rf"\b{name}\b", template.source):
            continue
        other = Thinking("on", arguments=((name, True if value is False else None),))
        try:
            if render_chat(model, ASKED[0], thinking=other) != plain:
                return name
        except Exception:  # noqa: S112
            continue
    return ""


def _ways(model: LoadedModel, template: ChatTemplate) -> Iterator[Thinking]:
    for name, value in _ARGUMENTS:
        if re.search(rf"\b{name}\b", template.source):
            yield Thinking("off", name, arguments=((name, value),))
    for word in _WORDS:
        if word in template.source:
            yield Thinking("off", word, system=word)
            yield Thinking("off", word, suffix=f" {word}")
    if marks := template.opened_thought:
        closing = closing_of(template.opening, marks, template.source)
        if closing:
            yield Thinking("closed", closing.strip(), closing=closing)
        return
    vocabulary = model.tokenizer.get_vocab()
    for mark, thought in closed_thoughts():
        if mark in template.source or mark in vocabulary:
            yield Thinking("closed", "".join(thought.split()), closing=thought)


def _thinks(model: LoadedModel, way: Thinking | None = None) -> bool:
    """Whether the model begins with a thought when it is asked so."""
    prompts = encode_prompts(model, ASKED, thinking=way)
    responses = generate_greedy(model, prompts, max_new_tokens=TRIED_TOKENS)
    return any(response.thought for response in responses)
