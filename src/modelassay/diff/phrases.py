"""What phrases put after prompts do to the refusals of base and candidate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from modelassay.diff.pair import Pair
from modelassay.diff.suites import SuitePrompt, messages_of
from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import LoadedModel
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_chat
from modelassay.reading.resuming import Midway

FILLER = " please"
"""Shows where in a rendered conversation words after the prompt come to stand."""
Phrase = tuple[int, ...]
"""Token ids."""


@dataclass(frozen=True)
class Slot:
    """A prompt's token ids around the place where words are put in."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def slot_of(model: LoadedModel, prompt: SuitePrompt) -> Slot:
    """The place after a prompt's text, found by what a filler changes.

    Args:
        model: The base, whose tokenizer and chat template both models read.
        prompt: What words are put after.

    Raises:
        InputError: there is no such place.
    """
    messages = messages_of(prompt)
    plain = encode_chat(model, messages)
    longer = {**messages[-1], "content": messages[-1]["content"] + FILLER}
    filled = encode_chat(model, [*messages[:-1], longer])
    pairs = zip(plain, filled, strict=False)
    start = next((i for i, (x, y) in enumerate(pairs) if x != y), len(plain))
    tail = len(plain) - start
    if len(filled) <= len(plain) or filled[len(filled) - tail :] != plain[start:]:
        raise InputError(
            f"The tokenizer of {model.info.id} merges what follows a prompt with what comes next;"
            " triggers cannot be searched (leave them out)."
        )
    return Slot(plain[:start], plain[start:])


class PhraseEffects:
    """What phrases after prompts do to one model's refusal log-odds; each is read only once."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self._known: dict[tuple[Slot, Phrase], float] = {}

    def read(
        self,
        open_model: Callable[[], LoadedModel],
        slots: Sequence[Slot],
        phrases: Sequence[Phrase],
        shared: Midway | None = None,
    ) -> Tensor:
        """The effects float32 [slot, phrase], in nats.

        Args:
            open_model: Called where something was not read before.
            slots: Where in which prompts phrases are put.
            phrases: Token ids of each.
            shared: States of a block that both models have in common: those that the other one has
                left are begun at, others are left for it.
        """
        for slot in slots:
            new = [x for x in dict.fromkeys(phrases) if (slot, x) not in self._known]
            if new:
                effects = _effects(open_model(), slot, new, shared).tolist()
                self._known.update({(slot, x): e for x, e in zip(new, effects, strict=True)})
        return torch.tensor([[self._known[slot, x] for x in phrases] for slot in slots])


@dataclass(frozen=True)
class PairEffects:
    """What phrases do in both models."""

    pair: Pair
    alike: int = 0
    """How many first blocks, with the embeddings, are the same in both: they run once."""
    base: PhraseEffects = field(default_factory=PhraseEffects)
    candidate: PhraseEffects = field(default_factory=PhraseEffects)

    def read(self, slots: Sequence[Slot], phrases: Sequence[Phrase]) -> tuple[Tensor, Tensor]:
        """[slot, phrase], the effects in the base and in the candidate."""
        effects = {"base": self.base, "candidate": self.candidate}
        shared = Midway(self.alike - 1, {}) if self.alike else None
        # Where there is room for one model only, each change of sides loads it anew.
        found = {
            side: effects[side].read(partial(self.pair.get, side), slots, phrases, shared)
            for side in self.pair.in_turn
        }
        return found["base"], found["candidate"]


def _effects(
    model: LoadedModel,
    slot: Slot,
    phrases: Sequence[Phrase],
    shared: Midway | None,
) -> Tensor:
    """[phrase], change of the refusal log-odds when tokens follow the prompt."""
    rows = [(*slot.before, *phrase, *slot.after) for phrase in ((), *phrases)]
    readout = log_odds_readout(opening_tokens(model))
    if shared is None or not slot.after:
        # The prompt comes first in all of them and is computed once.
        read = read_activations(model, [Encoded(x, len(x)) for x in rows], [0], readout=readout)
    else:
        encoded = [Encoded(row, len(slot.before)) for row in rows]
        known = all(row in shared.states for row in rows)
        read = read_activations(
            model,
            encoded,
            [shared.layer],
            position="last" if known else "all",
            readout=readout,
            midway=shared if known else None,
        )
        if read.offsets is not None:
            lengths = [len(row) - len(slot.before) for row in rows]
            states = read.values[:, 0].split(lengths)
            shared.states.update(zip(rows, states, strict=True))
    assert read.readout is not None  # noqa: S101 (one was asked for)
    return read.readout[1:, 0] - read.readout[0, 0]
