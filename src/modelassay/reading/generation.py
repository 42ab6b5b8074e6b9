"""Short greedy responses to many prompts, batched, through the model's own `generate`.

Greedy and without penalties, so that a response is a property of the weights and not of settings
that a checkpoint brings along. It ends where the model ends it, and what it thinks before it
answers is kept apart from the answer.
"""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.files.atomic import explain_os_errors, write_text_atomically
from modelassay.models import LoadedModel
from modelassay.models.layers import rope_switch
from modelassay.progress import OnProgress
from modelassay.reading.batching import (
    Batching,
    batch_budget,
    batching_of,
    pad,
    run_in_batches,
)
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.templates import template_of
from modelassay.reading.thoughts import opened_thought, split_thought
from modelassay.reading.tokens import control_tokens

log = logging.getLogger(__name__)

KEEP_EVERY = 32  # responses between two saves
PROMPT_END = 32  # tokens of a prompt in which a thought may be opened


@dataclass(frozen=True)
class Response:
    """What a model said."""

    text: str
    """All of it, a thought included, without special tokens."""
    first_token: int
    answer: str | None
    """What follows the thought; all of `text` where there was none, None where the thought did not
    end within the tokens."""
    thought: bool = False
    """Whether it began with a thought, or the prompt had opened one."""


def generate_greedy(
    model: LoadedModel,
    prompts: Sequence[Encoded],
    *,
    max_new_tokens: int = 24,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> list[Response]:
    """Continues each prompt greedily.

    Args:
        model: The model.
        prompts: Token ids; repetitions are answered once.
        max_new_tokens: Length at which a response is cut; the end of the context cuts it as well.
        batch_tokens: Upper bound on tokens in a batch, padding and response included.
        on_progress: Told how many distinct prompts are done.

    Returns:
        Responses in the order of `prompts`.

    Raises:
        UnavailableError: not even one prompt fits into memory.
    """
    if batch_tokens is None:  # decoding is bound by memory traffic and gains from wider batches
        wider = 8 if model.device.type == "cpu" else 1
        batch_tokens = wider * batch_budget(model)
    distinct = sorted({prompt.ids for prompt in prompts}, key=lambda ids: (len(ids), ids))

    def room(ids: Sequence[int]) -> int:
        """Tokens that a response may have: what the context leaves, and one in any case."""
        return max(min(max_new_tokens, model.context_length - len(ids)), 1)

    way = _batching(model, distinct) if distinct else Batching.PADDED
    switch = rope_switch(model.network.config)

    def alike(ids: Sequence[int]) -> object:
        """What prompts of one batch have in common."""
        crosses = switch is not None and len(ids) <= switch < len(ids) + max_new_tokens
        beyond = switch is not None and len(ids) > switch
        return room(ids), beyond, way.key(ids), ids if crosses else None

    made = run_in_batches(
        lambda batch: _generate_batch(model, batch, room(batch[0])),
        distinct,
        lambda ids: len(ids) + max_new_tokens,
        batch_tokens,
        noun="response",
        alike=alike,
        on_progress=on_progress,
    )
    responses = dict(zip(distinct, made, strict=True))
    return [responses[prompt.ids] for prompt in prompts]


def _generate_batch(
    model: LoadedModel, batch: Sequence[tuple[int, ...]], max_new_tokens: int
) -> list[Response]:
    config = greedy_config(model, max_new_tokens)
    # Decoding appends on the right, so padding goes to the left, under a mask.
    ids = pad(batch, int(config.pad_token_id), "left")
    mask = pad([[1] * len(row) for row in batch], 0, "left")
    output = run_generate(model, config, ids.to(model.device), attention_mask=mask.to(model.device))
    new = output[:, ids.shape[1] :].cpu()
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    ends = set(end_tokens(model))
    return [
        _response(model, prompt, row.tolist(), text, ends)
        for prompt, row, text in zip(batch, new, texts, strict=True)
    ]


def _batching(model: LoadedModel, prompts: Sequence[tuple[int, ...]]) -> Batching:
    """Which prompts, given from short to long, may be answered together."""

    def first_logits(batch: Sequence[tuple[int, ...]]) -> torch.Tensor:
        config = greedy_config(model, 2)
        config.return_dict_in_generate = config.output_logits = True
        config.eos_token_id = None
        ids = pad(batch, int(config.pad_token_id), "left").to(model.device)
        mask = pad([[1] * len(row) for row in batch], 0, "left").to(model.device)
        output: Any = run_generate(model, config, ids, attention_mask=mask)
        return torch.stack(output.logits)[:, 0]

    switch = rope_switch(model.network.config)
    most = max(model.context_length - 2, 1)  # two tokens have to follow
    if switch is not None and len(prompts[0]) <= switch:
        most = min(most, switch)
    tried = [ids[:most] for ids in (prompts[0], prompts[len(prompts) // 2], prompts[-1])]
    return batching_of(model, "responses", first_logits, *tried)


def _response(
    model: LoadedModel, prompt: Sequence[int], ids: list[int], text: str, ends: set[int]
) -> Response:
    """The response of these tokens, its thought taken off before special tokens are dropped."""
    decode = model.tokenizer.decode
    own = template_of(model).own_thought if model.has_chat_template else None
    opened = opened_thought(decode(list(prompt[-PROMPT_END:])), (own,) if own else ())
    length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    spoken = split_thought(decode(ids[:length]), opened)
    answer = spoken.answer if spoken.thought else text
    if spoken.thought and answer is not None:
        for token in control_tokens(model.tokenizer):
            answer = answer.replace(token, "")
    return Response(text, ids[0], answer, spoken.thought)


def run_generate(model: LoadedModel, config: Any, ids: torch.Tensor, **inputs: Any) -> torch.Tensor:
    """Token ids [prompt, token] of `generate` with these settings and no others.

    transformers fills what a `GenerationConfig` leaves out from the checkpoint's own. The network
    is copied, which shares everything below it, and the copy has none.
    """
    from transformers import GenerationConfig

    base = getattr(model.network, "get_base_model", lambda: model.network)()  # of an adapter
    free = copy.copy(base)
    free.generation_config = GenerationConfig()
    with torch.inference_mode():
        return free.generate(input_ids=ids, generation_config=config, **inputs)


def greedy_config(model: LoadedModel, max_new_tokens: int) -> Any:
    """The `GenerationConfig` of greedy responses, for `run_generate`."""
    from transformers import GenerationConfig

    ends = end_tokens(model)
    pad_token = model.tokenizer.pad_token_id
    if pad_token is None or not 0 <= pad_token < _vocabulary(model):
        pad_token = (ends or [0])[0]
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad_token,
    )


def end_tokens(model: LoadedModel) -> list[int]:
    """Tokens that end a response, by what tokenizer, checkpoint and chat template say together.

    A checkpoint's settings, its tokenizer and its template often name different ones. The tokens
    that stand between a response and the user's next words end a response as well: a model that
    begins another turn has had its say.
    """
    tokenizer, network = model.tokenizer, model.network
    marks = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    found = _ids(tokenizer.eos_token_id)
    settings = network.generation_config
    for stated, own in (
        (settings.eos_token_id, not getattr(settings, "_from_model_config", False)),
        (getattr(network.config.get_text_config(), "eos_token_id", None), False),
    ):
        # A config class has a default, which in this vocabulary may be a word.
        found |= {token for token in _ids(stated) if own or token in marks}
    if model.has_chat_template:
        found |= template_of(model).turn_tokens
    return sorted(token for token in found if 0 <= token < _vocabulary(model))


def _vocabulary(model: LoadedModel) -> int:
    return model.network.get_input_embeddings().weight.shape[0]


def _ids(stated: Any) -> set[int]:
    """Token ids in what a config states, which may be anything."""
    values = stated if isinstance(stated, list | tuple) else [stated]
    return {value for value in values if isinstance(value, int) and not isinstance(value, bool)}


def kept_responses(
    load_model: Callable[[], LoadedModel],
    prompts: Sequence[str],
    path: Path,
    *,
    max_new_tokens: int,
    on_progress: OnProgress | None = None,
) -> list[str]:
    """Greedy responses that take minutes and are kept as they come, so a killed run goes on.

    Args:
        load_model: Gives the model, and is called only where a response is missing.
        prompts: What to respond to.
        path: Where responses of this model and length are kept, as JSON.
        max_new_tokens: Length at which a response is cut.
        on_progress: Told how many of the missing ones are made.

    Returns:
        A response for each prompt, possibly empty.

    Raises:
        UnavailableError: the model cannot be loaded, or the responses cannot be kept.
    """
    known: dict[str, str] = {}
    if path.is_file():
        try:
            known = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            log.warning("%s is damaged; its responses are made again.", path)
    missing = [prompt for prompt in dict.fromkeys(prompts) if prompt not in known]
    if missing:
        model = load_model()
        with explain_os_errors("keeping responses"):
            path.parent.mkdir(parents=True, exist_ok=True)
        for first in range(0, len(missing), KEEP_EVERY):
            chunk = missing[first : first + KEEP_EVERY]
            encoded = encode_prompts(model, chunk)
            responses = generate_greedy(model, encoded, max_new_tokens=max_new_tokens)
            said = [(response.answer or "").strip() for response in responses]
            known.update(zip(chunk, said, strict=True))
            write_text_atomically(path, json.dumps(known, ensure_ascii=False))
            if on_progress:
                on_progress(first + len(chunk), len(missing))
    return [known[prompt] for prompt in prompts]
