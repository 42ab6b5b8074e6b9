"""Generation token by token that hands out the states of the pass that makes the next token.

One forward pass a token over the KV cache, the prompt prefilled once. The states of the asked
blocks come from hooks on that pass, so reading them costs no second one. Between two tokens no hook
is in place and no mode of torch is entered: a generator may be resumed from any thread, dropped at
any point, and share its model with others.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.reading.hooks import capture


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen; the default is greedy."""

    temperature: float = 0.0
    """0 takes the likeliest token."""
    top_p: float = 1.0
    top_k: int = 0
    """0 for no bound."""
    repetition_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        for name, ok, bounds in (
            ("temperature", 0 <= self.temperature <= 10, "0 to 10"),
            ("top_p", 0 < self.top_p <= 1, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 or more"),
            ("repetition_penalty", 0.1 <= self.repetition_penalty <= 10, "0.1 to 10"),
        ):
            if not ok:
                shown = name.replace("_", "-")
                raise InputError(f"The {shown} must be {bounds}, not {getattr(self, name)}.")


@dataclass(frozen=True)
class Step:
    """One forward pass: what it read, and the token that it makes likely."""

    states: dict[int, Tensor]
    """For each asked block, [token, hidden] of the tokens that were read."""
    token: int
    """The token that comes next; it has not been read yet."""


def decode(
    model: LoadedModel, prompt: Sequence[int], layers: Sequence[int], sampling: Sampling
) -> Generator[Step, None, None]:
    """Generates without end; the first step has read the whole prompt.

    Args:
        model: The model.
        prompt: Token ids.
        layers: Blocks whose states are wanted; may be empty.
        sampling: How tokens are chosen.
    """
    from transformers import DynamicCache

    choose = _chooser(model, sampling)
    config = model.network.config
    cache = DynamicCache(
        config=config.get_text_config() if hasattr(config, "get_text_config") else config
    )
    ids = torch.tensor([list(prompt)], device=model.device)
    read = ids
    while True:
        states, logits = forward(model, read, cache, layers)
        token = choose(ids, logits)
        yield Step(states, int(token))
        read = token.view(1, 1).to(model.device)
        ids = torch.cat([ids, read], dim=1)


def forward(
    model: LoadedModel, ids: Tensor, cache: Any, layers: Sequence[int]
) -> tuple[dict[int, Tensor], Tensor]:
    """One pass over new tokens: states of the asked blocks, the last token's logits [1, vocab]."""
    states: dict[int, Tensor] = {}

    def keep(layer: int, hidden: Tensor) -> None:
        states[layer] = hidden[0]

    inputs = {"input_ids": ids, "past_key_values": cache, "use_cache": True, "logits_to_keep": 1}
    with torch.inference_mode():
        if layers:
            with capture(model.layers, layers, keep):
                logits = model.network(**inputs).logits
        else:
            logits = model.network(**inputs).logits
        return states, logits[:, -1].float()


def _chooser(model: LoadedModel, sampling: Sampling) -> Any:
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    steps: list[Any] = []
    if sampling.repetition_penalty != 1:
        steps.append(RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty))
    if sampling.temperature > 0:
        steps.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            steps.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            steps.append(TopPLogitsWarper(sampling.top_p))
    processors = LogitsProcessorList(steps)
    draw = torch.Generator(device=model.device)
    if sampling.seed is not None:
        draw.manual_seed(sampling.seed)
    else:
        draw.seed()

    def choose(ids: Tensor, logits: Tensor) -> Tensor:
        scores: Any = processors(cast(Any, ids), cast(Any, logits.to(ids.device)))
        if sampling.temperature == 0:
            return scores.argmax(dim=-1)
        return torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=draw)[:, 0]

    return choose


def end_tokens(model: LoadedModel) -> frozenset[int]:
    """Tokens that end an answer."""
    own = model.network.generation_config.eos_token_id
    ends = own if own is not None else model.tokenizer.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
