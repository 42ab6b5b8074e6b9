"""Finds the direction whose ablation removes refusals.

Difference of means at the last prompt token, one candidate a block, chosen by what ablating it does
on prompts that it was not fitted on (Arditi et al. 2024): the lowest refusal log-odds on harmful
prompts among the candidates that leave the next token after harmless prompts about as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.activations import read_activations
from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.ablation import Ablation, ablate
from modelassay.models.writers import writing_block
from modelassay.prompts import encode_prompts
from modelassay.refusal import log_odds_readout, opening_tokens

MAX_KL = 0.2
"""nats; a candidate that changes harmless answers more than this breaks the model (Arditi et al.
use 0.1 on models fifty times as large)."""
CANDIDATES = (0.3, 0.9)
"""Blocks tried, as a share of the depth; of deep models about fifteen, neighbours being alike."""


@dataclass(frozen=True)
class RefusalDirection:
    """The chosen direction, and how it was chosen."""

    block: int
    """Block after which it was read."""
    direction: Tensor
    """Unit vector [hidden], float32."""
    by_block: dict[int, Tensor]
    """The unit difference of means after every block."""
    log_odds_before: float
    """Mean refusal log-odds on held-out harmful prompts."""
    log_odds_after: float
    kl: float
    """Mean KL divergence (nats) of the next token after held-out harmless prompts."""


def find_refusal_direction(
    model: LoadedModel,
    harmful: Sequence[str],
    harmless: Sequence[str],
    *,
    on_step: Callable[[int, int], None] | None = None,
) -> RefusalDirection:
    """Fits a direction at each block on half of the prompts and chooses on the other half.

    Args:
        model: A chat model with plain weights.
        harmful: Requests that it refuses.
        harmless: Requests that it answers.
        on_step: Told how many candidates are tried.

    Raises:
        InputError: fewer than 8 prompts of a kind.
    """
    if min(len(harmful), len(harmless)) < 8:
        raise InputError("A refusal direction needs at least 8 prompts of each kind.")
    n_blocks = len(model.blocks)
    fit_harmful, try_harmful = harmful[::2], harmful[1::2]
    fit_harmless, try_harmless = harmless[::2], harmless[1::2]

    def means(texts: Sequence[str]) -> Tensor:
        read = read_activations(model, encode_prompts(model, texts), range(n_blocks))
        return read.values.mean(dim=0)

    difference = means(fit_harmful) - means(fit_harmless)
    units = difference / difference.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    by_block = dict(enumerate(units))
    before = _log_odds(model, try_harmful)
    usual = _next_token(model, try_harmless)
    tried: list[tuple[float, float, int]] = []  # log-odds after, KL, block
    first, last = (int(n_blocks * share) for share in CANDIDATES)
    candidates = range(first, last, max(1, n_blocks // 15))
    for done, block in enumerate(candidates, 1):
        with _ablated(model, Ablation(dict.fromkeys(range(n_blocks), by_block[block]))):
            after = _log_odds(model, try_harmful)
            changed = _next_token(model, try_harmless)
        kl = float((usual.exp() * (usual - changed)).sum(dim=-1).mean())
        tried.append((after, kl, block))
        if on_step:
            on_step(done, len(candidates))
    mild = [outcome for outcome in tried if outcome[1] <= MAX_KL]
    # If every candidate breaks the model, the least harmful one is reported as it is.
    after, kl, block = min(mild) if mild else min(tried, key=lambda outcome: outcome[1])
    return RefusalDirection(block, by_block[block], by_block, before, after, kl)


def _log_odds(model: LoadedModel, texts: Sequence[str]) -> float:
    readout = log_odds_readout(opening_tokens(model))
    read = read_activations(
        model, encode_prompts(model, texts), [len(model.blocks) - 1], readout=readout
    )
    assert read.readout is not None  # noqa: S101 (a readout was asked for)
    return float(read.readout.mean())


def _next_token(model: LoadedModel, texts: Sequence[str]) -> Tensor:
    """Log-probabilities [prompt, vocabulary] of the next token."""
    read = read_activations(
        model,
        encode_prompts(model, texts),
        [len(model.blocks) - 1],
        readout=lambda logits: torch.log_softmax(logits, dim=-1),
    )
    assert read.readout is not None  # noqa: S101 (a readout was asked for)
    return read.readout


@contextmanager
def _ablated(model: LoadedModel, ablation: Ablation) -> Iterator[None]:
    """The model ablated in place, and put back whatever happens."""
    kept = {
        name: weight.detach().clone()
        for name, weight in model.model.named_parameters()
        if writing_block(name) in ablation.directions
    }
    try:
        ablate(model.model, ablation)
        yield
    finally:
        with torch.no_grad():
            for name, weight in model.model.named_parameters():
                if name in kept:
                    weight.copy_(kept[name])
