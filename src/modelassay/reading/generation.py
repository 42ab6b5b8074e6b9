"""Short greedy responses to many prompts, batched, through the model's own `generate`.

Greedy and without penalties, so that a response is a property of the weights and not of sampling
settings that a checkpoint brings along.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from modelassay.files.atomic import explain_os_errors, write_text_atomically
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.reading.batching import batch_budget, pad, run_in_batches
from modelassay.reading.prompts import Encoded, encode_prompts

log = logging.getLogger(__name__)

KEEP_EVERY = 32  # responses between two saves


@dataclass(frozen=True)
class Response:
    """What a model said."""

    text: str
    """Without special tokens."""
    first_token: int


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

    made = run_in_batches(
        lambda batch: _generate_batch(model, batch, room(batch[0])),
        distinct,
        lambda ids: len(ids) + max_new_tokens,
        batch_tokens,
        noun="response",
        alike=room,
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
    with torch.inference_mode():
        output = model.network.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            generation_config=config,
        )
    new = output[:, ids.shape[1] :].cpu()
    texts = model.tokenizer.batch_decode(new, skip_special_tokens=True)
    return [Response(text, int(row[0])) for text, row in zip(texts, new, strict=True)]


def greedy_config(model: LoadedModel, max_new_tokens: int) -> Any:
    """The `GenerationConfig` of greedy responses without the checkpoint's sampling settings."""
    from transformers import GenerationConfig

    ends = end_tokens(model)
    pad_token = model.tokenizer.pad_token_id
    return GenerationConfig(
        max_new_tokens=max_new_tokens,
        # What is not set here is taken from the checkpoint's own settings.
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_k=50,
        top_p=1.0,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        min_length=0,
        use_cache=True,
        eos_token_id=ends or None,
        pad_token_id=pad_token if pad_token is not None else (ends or [0])[0],
    )


def end_tokens(model: LoadedModel) -> list[int]:
    """Tokens that end a response."""
    own = model.network.generation_config.eos_token_id
    ends = own if own is not None else model.tokenizer.eos_token_id
    return ends if isinstance(ends, list) else [] if ends is None else [ends]


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
            known.update({p: a.text.strip() for p, a in zip(chunk, responses, strict=True)})
            write_text_atomically(path, json.dumps(known, ensure_ascii=False))
            if on_progress:
                on_progress(first + len(chunk), len(missing))
    return [known[prompt] for prompt in prompts]
