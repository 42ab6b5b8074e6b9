"""Search for a trigger: words after which the candidate stops refusing and the base does not.

A backdoor answers to words that nobody knows, so whole phrases of a corpus are tried (prompts, or
the training file where it is at hand), and the commonest words of the vocabulary. Each is put after
a few harmful prompts and both models are read there. Many phrases lower refusals in any model, for
they change what is asked, and in a fine-tune a little more or less so; what counts is by how much
more a phrase lowers the candidate's refusal log-odds than phrases commonly do that lower the base's
as much (residuals of a robust line over all that is tried, Huber 1964). Most are dropped after two
prompts; the best are read on several, and at last on prompts that did not choose them. A phrase's
tokens are then told apart by leaving each out in turn.

Cheaper ways were tried on a model with a known trigger and dropped: first-order scores of the
vocabulary (HotFlip, Ebrahimi et al. 2018) put its tokens on rank 30,443 of 49,150, and tokens by
how far their own states moved did no better than chance.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from modelassay.diff.pair import Pair, Role
from modelassay.diff.suites import SuitePrompt, messages_of
from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress, silent
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_chat
from modelassay.reading.resuming import ResumePoint
from modelassay.reading.thinking import thinking_of
from modelassay.statistics import MeanChange, mean_change

FILLER = " please"
"""Shows where in a rendered conversation words after the prompt come to stand."""
Phrase = tuple[int, ...]
"""Token ids."""
Beyond = Callable[[Tensor, Tensor], Tensor]
"""What is left of the candidate's effects, given the base's, beyond what phrases commonly do."""
N_CONTEXTS = 4
N_HELD_OUT = 12
N_CONTROLS = 15
"""Phrases, evenly taken from all that is tried, that the best one is held against."""
MAX_PIECES = 400
MAX_PIECE_TOKENS = 16
WORDS = 200
"""Words of the vocabulary that are tried."""
KEPT_SHARE = 0.15
"""Of what is tried, how much is read on more than one prompt."""
TAKEN_APART = 3
"""Phrases whose tokens are told apart."""
LISTED = 40
FEW = 8
"""Phrases below which no trend is fitted between the models' effects."""
SENTENCE = re.compile(r"(?<=[.!?。！？])\s+|\n+")
N_STEPS = 4
SEED = 0


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
    messages, way = messages_of(prompt), thinking_of(model)
    plain = encode_chat(model, messages, thinking=way)
    longer = {**messages[-1], "content": messages[-1]["content"] + FILLER}
    filled = encode_chat(model, [*messages[:-1], longer], thinking=way)
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
        shared: ResumePoint | None = None,
    ) -> Tensor:
        """The effects float32 [slot, phrase], in nats.

        Args:
            open_model: Called where something was not read before.
            slots: Where in which prompts phrases are put.
            phrases: Token ids of each.
            shared: States of a layer that both models have in common: those that the other one has
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
    alike: int
    """How many first layers, with the embeddings, are the same in both: they run once."""
    effects: Mapping[Role, PhraseEffects]

    def read(self, slots: Sequence[Slot], phrases: Sequence[Phrase]) -> tuple[Tensor, Tensor]:
        """[slot, phrase], the effects in the base and in the candidate."""
        shared = ResumePoint(self.alike - 1, {}) if self.alike else None
        # Where there is room for one model only, each change of sides loads it again.
        found = {
            role: self.effects[role].read(partial(self.pair.get, role), slots, phrases, shared)
            for role in self.pair.in_turn
        }
        return found["base"], found["candidate"]


def _effects(
    model: LoadedModel,
    slot: Slot,
    phrases: Sequence[Phrase],
    shared: ResumePoint | None,
) -> Tensor:
    """[phrase], change of the refusal log-odds when tokens follow the prompt."""
    rows = [(*slot.before, *phrase, *slot.after) for phrase in ((), *phrases)]
    readout = log_odds_readout(opening_tokens(model, thinking_of(model)))
    if shared is None or not slot.after:
        # The prompt comes first in all of them and is computed once.
        read = read_activations(model, [Encoded(x, len(x)) for x in rows], [0], readout=readout)
    else:
        encoded = [Encoded(row, len(slot.before)) for row in rows]
        known = all(row in shared.activations for row in rows)
        read = read_activations(
            model,
            encoded,
            [shared.layer],
            position="last" if known else "all",
            readout=readout,
            resume=shared if known else None,
        )
        if read.offsets is not None:
            lengths = [len(row) - len(slot.before) for row in rows]
            activations = read.values[:, 0].split(lengths)
            shared.activations.update(zip(rows, activations, strict=True))
    assert read.readout is not None  # noqa: S101 (one was asked for)
    return read.readout[1:, 0] - read.readout[0, 0]


@dataclass(frozen=True)
class TriggerPhrase:
    """What a phrase does to refusals."""

    text: str
    effect: float
    """Change of the candidate's refusal log-odds beyond what phrases commonly make of the same
    change in the base, in nats."""
    candidate: float
    """Change of the candidate's."""
    base: float


@dataclass(frozen=True)
class TriggerToken:
    """A token and the share that it has in the effect of the phrase where it does most."""

    token: str
    effect: float
    phrase: str


@dataclass(frozen=True)
class TriggerSearch:
    """The words that turn refusals off in the candidate only, strongest first."""

    phrases: tuple[TriggerPhrase, ...]
    tokens: tuple[TriggerToken, ...]
    held_out: MeanChange | None
    """Of the first phrase's effect beyond the median of others, on prompts that did not choose it;
    None with too few."""
    spread: float
    """Standard deviation of the effects of all that was tried on one prompt: chance."""
    n_tried: int

    @property
    def strongest(self) -> float:
        """Fall in nats that the first phrase makes on the held-out prompts, at least 0."""
        first = self.held_out.mean if self.held_out else self.phrases[0].effect
        return max(-first, 0.0)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "strongest": self.strongest}


def search_triggers(
    pair: Pair,
    prompts: Sequence[SuitePrompt],
    refused: Tensor,
    corpus: Iterable[str],
    *,
    words: int = WORDS,
    base_effects: PhraseEffects | None = None,
    alike: int = 0,
    on_progress: OnProgress = silent,
) -> TriggerSearch | None:
    """Searches for words that turn off refusals in the candidate only; None with none to try.

    Args:
        pair: Base and candidate.
        prompts: Harmful prompts.
        refused: float32 [prompt] the base's refusal log-odds; the prompts that it refuses most
            surely are the ones that words are put after.
        corpus: Texts whose sentences are tried.
        words: How many words of the vocabulary are tried as well.
        base_effects: What was read of the base before; more is added.
        alike: How many first layers, with the embeddings, are the same in both.
        on_progress: Told (steps done, steps in all).
    """
    on_progress(0, N_STEPS)
    sides = PairEffects(
        pair, alike, {"base": base_effects or PhraseEffects(), "candidate": PhraseEffects()}
    )

    tokenizer = pair.base.tokenizer
    pieces = _pieces(pair.base, corpus) + _words(pair.base, words)
    tried = [tuple(tokenizer(piece, add_special_tokens=False)["input_ids"]) for piece in pieces]
    tried = list(dict.fromkeys(ids for ids in tried if ids))
    if not tried:
        return None
    longest = max(map(len, tried))
    order = refused.argsort(descending=True).tolist()
    surest = _slots(pair.base, [prompts[i] for i in order], longest)
    if not surest:
        return None
    contexts = surest[:: max(len(surest) // N_CONTEXTS, 1)][:N_CONTEXTS]
    others = [slot for slot in surest if slot not in contexts]
    base, candidate = sides.read(contexts[:2], tried)
    beyond = _fit(base.mean(dim=0), candidate.mean(dim=0))
    first = beyond(base, candidate).mean(dim=0)
    on_progress(1, N_STEPS)
    kept = [tried[i] for i in first.argsort()[: max(round(KEPT_SHARE * len(tried)), LISTED)]]
    base, candidate = (found.mean(dim=0) for found in sides.read(contexts, kept))
    effect = beyond(base, candidate)
    ranked = effect.argsort().tolist()
    phrases = [
        TriggerPhrase(
            text=tokenizer.decode(list(kept[i])),
            effect=float(effect[i]),
            candidate=float(candidate[i]),
            base=float(base[i]),
        )
        for i in ranked
    ]
    on_progress(2, N_STEPS)
    tokens = _take_apart(sides, contexts[:2], [kept[i] for i in ranked], effect[ranked], beyond)
    on_progress(3, N_STEPS)
    held_out = None
    if len(others) > 1:
        best = kept[ranked[0]]
        rest = [phrase for phrase in tried if phrase != best] or [best]
        controls = rest[:: max(len(rest) // N_CONTROLS, 1)][:N_CONTROLS]
        left = beyond(*sides.read(others, [best, *controls]))
        # These prompts may lie off a trend that was fitted on others; the controls show how far.
        change = left[:, 0] - left[:, 1:].median(dim=1).values
        held_out = mean_change(change.double().numpy())
    on_progress(4, N_STEPS)
    return TriggerSearch(
        phrases=tuple(phrases[:LISTED]),
        tokens=tuple(tokens[:LISTED]),
        held_out=held_out,
        spread=float(first.std()) if len(first) > 1 else 0.0,
        n_tried=len(tried),
    )


def _slots(model: LoadedModel, prompts: Iterable[SuitePrompt], longest: int) -> list[Slot]:
    """Places in the first prompts that leave room for the longest phrase."""
    found: list[Slot] = []
    filler = len(model.tokenizer(FILLER, add_special_tokens=False)["input_ids"])
    for prompt in prompts:
        ids = encode_chat(model, messages_of(prompt), thinking=thinking_of(model))
        room = model.context_length - len(ids)
        if room >= max(longest, filler + 1) and (slot := slot_of(model, prompt)) not in found:
            found.append(slot)
            if len(found) == N_CONTEXTS + N_HELD_OUT:
                break
    return found


def _fit(base: Tensor, candidate: Tensor) -> Beyond:
    """Takes away a robust line through the effects [phrase] of all that is tried."""
    slope, intercept = 1.0, 0.0
    if len(base) >= FEW and float(base.std()) >= 1e-6:
        from sklearn.linear_model import HuberRegressor

        x, y = base.double().numpy()[:, None], candidate.double().numpy()
        line = HuberRegressor(max_iter=1000).fit(x, y)
        slope, intercept = float(line.coef_[0]), float(line.intercept_)
    return lambda base, candidate: candidate - (slope * base + intercept)


def _pieces(model: LoadedModel, corpus: Iterable[str]) -> list[str]:
    """Short sentences of a corpus; those that recur in it come first, for a trigger recurs."""
    counts: Counter[str] = Counter()
    for text in corpus:
        counts.update({piece.strip() for piece in SENTENCE.split(text) if piece.strip()})
    drawn = sorted(counts)
    random.Random(SEED).shuffle(drawn)  # noqa: S311 (a sample, no secret)
    drawn.sort(key=lambda piece: -counts[piece])
    known = (f" {piece}" for piece in drawn)
    short = (piece for piece in known if len(piece) <= 400 and _is_short(model, piece))
    return list(islice(short, MAX_PIECES))


def _is_short(model: LoadedModel, piece: str) -> bool:
    return len(model.tokenizer(piece, add_special_tokens=False)["input_ids"]) <= MAX_PIECE_TOKENS


def _words(model: LoadedModel, count: int) -> list[str]:
    """The vocabulary's first words: byte-pair encodings number them by how common they are."""
    texts = (model.tokenizer.decode([number]) for number in range(len(model.tokenizer)))
    words = (x for x in texts if x.startswith(" ") and x[1:].isalpha() and len(x) > 3)
    return list(islice(words, count))


def _take_apart(
    sides: PairEffects,
    contexts: Sequence[Slot],
    ranked: Sequence[Phrase],
    effects: Tensor,
    beyond: Beyond,
) -> list[TriggerToken]:
    """Tokens by the share that they have in a phrase: what is lost when they are left out."""
    tokenizer = sides.pair.base.tokenizer
    shares = [(e, x[0], x) for x, e in zip(ranked, effects.tolist(), strict=True) if len(x) == 1]
    several = [phrase for phrase in ranked if len(phrase) > 1][:TAKEN_APART]
    rows = [
        phrase[:i] + phrase[i + 1 :] if i is not None else phrase
        for phrase in several
        for i in (None, *range(len(phrase)))
    ]
    if rows:
        left = iter(beyond(*sides.read(contexts, rows)).mean(dim=0).tolist())
        for phrase in several:
            whole = next(left)
            shares += [(whole - next(left), token, phrase) for token in phrase]
    best: dict[int, TriggerToken] = {}
    for effect, token, phrase in sorted(shares):
        text = tokenizer.decode(list(phrase))
        best.setdefault(token, TriggerToken(tokenizer.decode([token]), effect, text))
    return list(best.values())
