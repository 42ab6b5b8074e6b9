"""All that is read of the base, which many candidates can be held against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from modelassay.diff.activations import read_unrelated
from modelassay.diff.pair import Traits, traits_of
from modelassay.diff.reading import (
    Matched,
    Reading,
    encode_contrasts,
    encode_suite,
    match_tokens,
    read_contrasts,
    read_model,
)
from modelassay.diff.suites import Suite
from modelassay.diff.triggers import PhraseEffects
from modelassay.errors import InputError
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.progress import OnPhase, phase_of, silent
from modelassay.reading.generation import generate_greedy
from modelassay.reading.logit_lens import decode_each
from modelassay.reading.prompts import Encoded
from modelassay.sae import SAE

N_DEPTHS = 5


@dataclass(frozen=True)
class BaseReading:
    """The base, read once."""

    suite: Suite
    traits: Traits
    layers: tuple[int, ...]
    prompts: tuple[Encoded, ...]
    responses: tuple[str, ...] | None
    """Short greedy responses; None where none were asked for."""
    response_tokens: int
    matched: Matched
    tokens: tuple[str, ...]
    """Each compared token as text."""
    reading: Reading
    contrast_rows: tuple[Encoded, ...]
    """As `encode_contrasts` gives them."""
    contrasts: Tensor
    """As `read_contrasts` gives them."""
    unrelated: Tensor
    """As `read_unrelated` gives them."""
    phrase_effects: PhraseEffects = field(default_factory=PhraseEffects, compare=False)
    """What trigger searches have read of the base so far."""

    @property
    def info(self) -> ModelIdentity:
        """Which model it is."""
        return self.traits.model


def read_base(
    model: LoadedModel,
    suite: Suite,
    *,
    saes: Sequence[SAE] = (),
    layers: Sequence[int] | None = None,
    response_tokens: int,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
) -> BaseReading:
    """Reads all that comparisons need of a base.

    Args:
        model: The base.
        suite: What it is asked.
        saes: Their layers are read too.
        layers: Layers whose states are kept; None spreads five over the depth.
        response_tokens: Length of the short responses, 0 for none.
        batch_tokens: As in `read_activations`.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: no prompts, a layer out of range, or an SAE of another model.
    """
    if not suite.prompts:
        raise InputError(f"The suite {suite.name} has no prompts to compare the models on.")
    for sae in saes:
        sae.check_belongs_to(model)
    kept = _layers(len(model.layers), layers, saes)
    prompts = encode_suite(model, suite.prompts)
    contrast_rows = encode_contrasts(model, suite.contrasts)
    responses = short_responses(model, prompts, response_tokens, on_progress)
    matched = match_tokens(model, prompts, responses)
    return BaseReading(
        suite=suite,
        traits=traits_of(model),
        layers=kept,
        prompts=tuple(prompts),
        responses=responses,
        response_tokens=response_tokens,
        matched=matched,
        tokens=tuple(decode_each(model, matched.token_ids().tolist())),
        reading=read_model(
            model,
            matched,
            kept,
            batch_tokens=batch_tokens,
            on_progress=phase_of(on_progress, "reading"),
        ),
        contrast_rows=tuple(contrast_rows),
        contrasts=read_contrasts(model, contrast_rows),
        unrelated=read_unrelated(model, kept),
    )


def short_responses(
    model: LoadedModel, prompts: Sequence[Encoded], response_tokens: int, on_progress: OnPhase
) -> tuple[str, ...] | None:
    """Greedy responses to all prompts; None where none are asked for."""
    if response_tokens == 0:
        return None
    responses = generate_greedy(
        model,
        prompts,
        max_new_tokens=response_tokens,
        on_progress=phase_of(on_progress, "answering"),
    )
    return tuple(response.text for response in responses)


def spread_layers(n: int) -> set[int]:
    """Layers spread evenly over the depth of a model with `n`."""
    return {max(round(n * (i + 1) / N_DEPTHS) - 1, 0) for i in range(N_DEPTHS)}


def _layers(n: int, layers: Sequence[int] | None, saes: Sequence[SAE]) -> tuple[int, ...]:
    wanted = set(layers) if layers is not None else spread_layers(n)
    if not wanted:
        raise InputError("Give at least one layer to compare, or leave the choice to `diff`.")
    if not all(0 <= layer < n for layer in wanted):
        raise InputError(f"Layers must lie in 0…{n - 1}, got {sorted(wanted)}.")
    return tuple(sorted(wanted | {sae.layer for sae in saes}))
