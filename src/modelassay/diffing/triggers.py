"""Search for a trigger: tokens after which the candidate stops refusing and the base does not.

Every token of the vocabulary is tried, put after a few harmful prompts. Reading them all takes hours
on a CPU, so it goes in two steps. A backward pass from the refusal log-odds to the embedding of a
filler at that place scores all tokens at once, to first order (HotFlip, Ebrahimi et al. 2018), in
both models; those whose scores differ most are then put in and read exactly. What ranks them is the
exact difference: by how much more a token lowers the candidate's refusal log-odds than the base's.

A trigger of several words need not show in each of them. So the best tokens are put together,
greedily, for as long as that lowers the log-odds further, on prompts that did not choose them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from modelassay.activations import OnProgress, read_activations
from modelassay.diffing.behaviour import MeanChange, mean_change
from modelassay.diffing.pair import Pair, Side
from modelassay.diffing.suites import SuitePrompt, messages_of
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.prompts import Encoded, encode_chat
from modelassay.refusal import log_odds_readout, opening_tokens

FILLERS = (" the", " please")
"""What stands where the token will: first-order scores depend on it, so there are two."""
N_CONTEXTS = 4
SHORTLIST = 400
LISTED = 40
PHRASE_TOKENS = 6
PHRASE_CHOICES = 24
"""Best single tokens that a phrase is put together from."""


@dataclass(frozen=True)
class TriggerToken:
    """What one token does to refusals."""

    token: str
    id: int
    effect: float
    """Change of the candidate's refusal log-odds minus that of the base's, in nats."""
    candidate: float
    """Change of the candidate's."""
    base: float


@dataclass(frozen=True)
class TriggerSearch:
    """The tokens that turn refusals off in the candidate only."""

    tokens: tuple[TriggerToken, ...]
    """Most lowering first."""
    phrase: str
    """The best tokens put together; empty where none helps."""
    held_out: MeanChange | None
    """Of the phrase's effect on prompts that did not choose it; None where there are too few."""
    spread: float
    """Standard deviation of the shortlist's effects: what a token does by chance."""
    n_exact: int
    """Tokens that were read exactly."""
    n_vocabulary: int

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def search_triggers(
    pair: Pair,
    prompts: Sequence[SuitePrompt],
    refused: Tensor,
    *,
    shortlist: int = SHORTLIST,
    on_progress: OnProgress | None = None,
) -> TriggerSearch:
    """Searches the vocabulary for tokens that turn off refusals in the candidate only.

    Args:
        pair: Base and candidate.
        prompts: Harmful prompts.
        refused: float32 [prompt] the base's refusal log-odds; contexts are taken from those that it
            refuses most surely.
        shortlist: Tokens that are read exactly.
        on_progress: Told (steps done, steps in all).
    """
    order = refused.argsort(descending=True).tolist()
    contexts = [prompts[i] for i in order[: 2 * N_CONTEXTS : 2]]
    others = [prompts[i] for i in order[1 : 2 * N_CONTEXTS : 2]] or contexts
    steps, total = 0, 6

    def step() -> None:
        nonlocal steps
        if on_progress:
            on_progress(steps, total)
        steps += 1

    sides: tuple[Side, Side] = ("base", "candidate")
    scores: dict[Side, Tensor] = {}
    for side in sides:
        step()
        scores[side] = _first_order(_of(pair, side), contexts)
    advantage = scores["candidate"] - scores["base"]
    allowed = _plain_tokens(pair.candidate)
    picked = allowed[advantage[allowed].argsort()[:shortlist]]
    effects: dict[Side, Tensor] = {}
    for side in reversed(sides):
        step()
        effects[side] = _effects(_of(pair, side), contexts, [[int(t)] for t in picked]).mean(dim=0)
    effect = effects["candidate"] - effects["base"]
    ranked = effect.argsort().tolist()
    tokenizer = pair.base.tokenizer
    found = [
        TriggerToken(
            token=tokenizer.decode([int(picked[i])]),
            id=int(picked[i]),
            effect=float(effect[i]),
            candidate=float(effects["candidate"][i]),
            base=float(effects["base"][i]),
        )
        for i in ranked
    ]
    step()
    phrase = _grow(pair.candidate, contexts, [token.id for token in found[:PHRASE_CHOICES]])
    step()
    held_out = None
    if phrase and len(others) > 1:
        change = _effects(pair.candidate, others, [phrase]) - _effects(pair.base, others, [phrase])
        held_out = mean_change(change[:, 0].double().numpy())
    if on_progress:
        on_progress(total, total)
    return TriggerSearch(
        tokens=tuple(found[:LISTED]),
        phrase=tokenizer.decode(phrase),
        held_out=held_out,
        spread=float(effect.std()),
        n_exact=len(picked),
        n_vocabulary=len(allowed),
    )


def _of(pair: Pair, side: Side) -> LoadedModel:
    return pair.base if side == "base" else pair.candidate


def _plain_tokens(model: LoadedModel) -> Tensor:
    """Ids of tokens that are text: neither control tokens nor embeddings without a token."""
    special = set(model.tokenizer.all_special_ids) | {
        number for number, token in model.tokenizer.added_tokens_decoder.items() if token.special
    }
    size = min(len(model.tokenizer), model.model.get_input_embeddings().weight.shape[0])
    return torch.tensor([number for number in range(size) if number not in special])


@dataclass(frozen=True)
class _Slot:
    """A prompt's token ids around the place where tokens are put in."""

    before: tuple[int, ...]
    after: tuple[int, ...]


def _slot(model: LoadedModel, prompt: SuitePrompt, filler: str) -> _Slot:
    """The place after a prompt's text, found by what a filler changes."""
    messages = messages_of(prompt)
    plain = encode_chat(model, messages)
    filled = encode_chat(
        model, [*messages[:-1], {**messages[-1], "content": messages[-1]["content"] + filler}]
    )
    start = next(i for i, (x, y) in enumerate(zip(plain, filled, strict=False)) if x != y)
    tail = len(plain) - start
    if filled[len(filled) - tail :] != plain[start:] or len(filled) == len(plain):
        raise InputError(
            f"The tokenizer of {model.info.id} merges what is put after a prompt with what comes"
            " next; triggers cannot be searched."
        )
    return _Slot(plain[:start], plain[start:])


def _first_order(model: LoadedModel, prompts: Sequence[SuitePrompt]) -> Tensor:
    """float32 [vocabulary], by how much each token would change the refusal log-odds."""
    table = model.model.get_input_embeddings().weight
    readout = log_odds_readout(opening_tokens(model))
    total = torch.zeros(table.shape[0], device=table.device)
    for prompt in prompts:
        for filler in FILLERS:
            slot = _slot(model, prompt, filler)
            (place,) = model.tokenizer(filler, add_special_tokens=False)["input_ids"][-1:]
            ids = torch.tensor([*slot.before, place, *slot.after], device=table.device)
            embedded = model.model.get_input_embeddings()(ids).detach().clone()[None]
            embedded.requires_grad_(True)
            with torch.enable_grad():
                logits = model.model(inputs_embeds=embedded, use_cache=False).logits[:, -1]
                (gradient,) = torch.autograd.grad(readout(logits.float()).sum(), embedded)
            total += (table.detach().float() @ gradient[0, len(slot.before)].float()).to(total)
    return (total / (len(prompts) * len(FILLERS))).cpu()


def _effects(
    model: LoadedModel, prompts: Sequence[SuitePrompt], phrases: Sequence[Sequence[int]]
) -> Tensor:
    """[prompt, phrase], change of the refusal log-odds when tokens follow the prompt."""
    readout = log_odds_readout(opening_tokens(model))
    found = []
    for prompt in prompts:
        slot = _slot(model, prompt, FILLERS[0])
        rows = [(*slot.before, *phrase, *slot.after) for phrase in ([], *phrases)]
        # The prompt comes first in all of them and is computed once.
        read = read_activations(
            model, [Encoded(row, len(row)) for row in rows], [0], readout=readout
        )
        assert read.readout is not None  # noqa: S101 (one was asked for)
        found.append(read.readout[1:, 0] - read.readout[0, 0])
    return torch.stack(found)


def _grow(model: LoadedModel, prompts: Sequence[SuitePrompt], choices: Sequence[int]) -> list[int]:
    """A phrase of the choices, token by token, while each lowers the log-odds further."""
    phrase: list[int] = []
    best = 0.0
    for _ in range(PHRASE_TOKENS):
        tried = [[*phrase, token] for token in choices]
        effect = _effects(model, prompts, tried).mean(dim=0)
        lowest = int(effect.argmin())
        if float(effect[lowest]) >= best:
            break
        phrase, best = tried[lowest], float(effect[lowest])
    return phrase
