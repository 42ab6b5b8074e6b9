"""Finds the direction whose ablation removes refusals.

One candidate a layer, read at the last prompt token and chosen by what ablating it does on prompts
that it was not fitted on, as Arditi et al. (2024) do: the lowest refusal log-odds on harmful
prompts among the candidates that leave the next token after harmless prompts about as it was.

Their candidate, the plain difference of means, wrecks a small model: it lies partly along what all
prompts share and along what varies most among harmless ones. Ours is Fisher's linear discriminant,
shrunk, and without the harmless mean (the idea of "projected abliteration"): against the same
organism it takes out more refusals at a fraction of the damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import LoadedModel
from modelassay.models.ablation import Ablation, ablate
from modelassay.models.writers import find_writers
from modelassay.reading.activations import Readout, read_activations
from modelassay.reading.prompts import encode_prompts

MAX_KL = 0.6
"""nats; a candidate that changes harmless responses more than this breaks the model. Arditi et al.
use 0.1 on models fifty times as large; here the harmless prompts sound dangerous, and what the
model loses on them is in good part its hesitation."""
SHRINKAGE = 8.0
"""Weight of the identity in the within-class covariance, in units of its mean eigenvalue. Less
keeps the model and its refusals both; more comes close to the plain difference of means."""
TRIED_PROMPTS = 32
"""Of each kind, held out to choose among candidates."""
CANDIDATES = (0.3, 0.9)
"""Layers tried, as a share of the depth; of deep models about fifteen, neighbours being alike."""


@dataclass(frozen=True)
class RefusalDirection:
    """The chosen direction, and how it was chosen."""

    layer: int
    """Layer after which it was read."""
    direction: Tensor
    """Unit vector [hidden], float32."""
    by_layer: dict[int, Tensor]
    """The unit direction read after every layer."""
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
    """Fits a direction at each layer on some of the prompts and chooses on the others.

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
    n_layers = len(model.layers)
    n_tried = min(TRIED_PROMPTS, len(harmful) // 2, len(harmless) // 2)
    try_harmful, fit_harmful = harmful[:n_tried], harmful[n_tried:]
    try_harmless, fit_harmless = harmless[:n_tried], harmless[n_tried:]

    def read(texts: Sequence[str]) -> Tensor:
        return read_activations(model, encode_prompts(model, texts), range(n_layers)).values

    fit = zip(read(fit_harmful).unbind(dim=1), read(fit_harmless).unbind(dim=1), strict=True)
    by_layer = {layer: discriminant(*sides) for layer, sides in enumerate(fit)}
    before = _log_odds(model, try_harmful)
    usual = _next_token(model, try_harmless)
    tried: list[tuple[float, float, int]] = []  # log-odds after, KL, layer
    first, last = (int(n_layers * share) for share in CANDIDATES)
    candidates = range(first, last, max(1, n_layers // 15))
    for done, layer in enumerate(candidates, 1):
        with _ablated(model, Ablation(dict.fromkeys(range(n_layers), by_layer[layer]))):
            after = _log_odds(model, try_harmful)
            changed = _next_token(model, try_harmless)
        kl = float((usual.exp() * (usual - changed)).sum(dim=-1).mean())
        tried.append((after, kl, layer))
        if on_step:
            on_step(done, len(candidates))
    mild = [outcome for outcome in tried if outcome[1] <= MAX_KL]
    # If every candidate breaks the model, the least harmful one is reported as it is.
    after, kl, layer = min(mild) if mild else min(tried, key=lambda outcome: outcome[1])
    return RefusalDirection(layer, by_layer[layer], by_layer, before, after, kl)


def discriminant(harmful: Tensor, harmless: Tensor) -> Tensor:
    """Fisher's discriminant between two samples, shrunk, orthogonal to the mean of the second.

    Args:
        harmful: Activations [prompt, hidden].
        harmless: The same.

    Returns:
        Unit vector [hidden], from harmless to harmful.
    """
    usual = harmless.mean(dim=0)
    within = torch.cat([harmful - harmful.mean(dim=0), harmless - usual])
    covariance = within.T @ within / len(within)
    ridge = SHRINKAGE * covariance.diagonal().mean().clamp_min(1e-12)
    identity = torch.eye(len(covariance))
    direction = torch.linalg.solve(covariance + ridge * identity, harmful.mean(dim=0) - usual)
    usual = usual / usual.norm().clamp_min(1e-12)
    direction = direction - (direction @ usual) * usual
    return direction / direction.norm().clamp_min(1e-12)


def _log_odds(model: LoadedModel, texts: Sequence[str]) -> float:
    return float(_read_out(model, texts, log_odds_readout(opening_tokens(model))).mean())


def _next_token(model: LoadedModel, texts: Sequence[str]) -> Tensor:
    """Log-probabilities [prompt, vocabulary] of the next token."""
    return _read_out(model, texts, lambda logits: torch.log_softmax(logits, dim=-1))


def _read_out(model: LoadedModel, texts: Sequence[str], readout: Readout) -> Tensor:
    last = len(model.layers) - 1
    read = read_activations(model, encode_prompts(model, texts), [last], readout=readout)
    assert read.readout is not None  # noqa: S101 (a readout was asked for)
    return read.readout


@contextmanager
def _ablated(model: LoadedModel, ablation: Ablation) -> Iterator[None]:
    """The model ablated in place, and put back whatever happens."""
    kept = {
        writer.name: model.network.get_parameter(writer.name).detach().clone()
        for writer in find_writers(model.network).found
        if writer.layer in ablation.directions
    }
    try:
        ablate(model.network, ablation)
        yield
    finally:
        with torch.no_grad():
            for name, weight in kept.items():
                model.network.get_parameter(name).copy_(weight)
