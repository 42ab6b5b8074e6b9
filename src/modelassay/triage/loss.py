"""What a fine-tune has learnt: the loss of every row under the base and under the fine-tuned model.

Both models read the same token ids, rendered by the candidate's chat template as in training, and
the loss counts response tokens only. One model is in memory at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from typing_extensions import Unpack

from modelassay.errors import InputError
from modelassay.models import LoadedModel, LoadOptions, ModelIdentity, ModelRef, open_model
from modelassay.models.finding import find_sources
from modelassay.models.identity import hash_tokenizer
from modelassay.models.loading import load_tokenizer
from modelassay.models.refs import fetch_options
from modelassay.progress import OnPhase, OnProgress, phase_of, silent
from modelassay.reading.batching import batch_budget, pad, run_in_batches
from modelassay.reading.hooks import head_at
from modelassay.reading.prompts import Encoded, render_messages
from modelassay.triage.rows import TrainingRow

MAX_ROW_TOKENS = 4096
"""Of a longer row, or one beyond the model's context, the rest is not read, as in most training."""
MAX_LOGITS = 1 << 27
"""Logits in memory at a time, position times vocabulary: 512 MB in float32."""


def encode_rows(
    model: LoadedModel, rows: Sequence[TrainingRow]
) -> tuple[list[tuple[Encoded, ...]], int]:
    """Token ids of every response in every row, as training reads them.

    Each answer of a conversation is read after all that went before it. A model without a chat
    template reads the turns as plain text, parted by empty lines. Text without roles counts from
    its second token on.

    Args:
        model: Whose tokenizer and chat template are used.
        rows: Of a training file.

    Returns:
        For each row the responses that have tokens within what is read, and how many rows reach
        beyond it.

    Raises:
        InputError: the chat template fails, or token ids lie beyond the model's vocabulary.
    """
    found: list[tuple[Encoded, ...]] = []
    n_cut = 0
    most = min(model.context_length, MAX_ROW_TOKENS)
    for row in rows:
        whole = _encode_plain(model, row) if row.plain else _encode_turns(model, row)
        kept = [Encoded(e.ids[:most], e.response_start) for e in whole]
        n_cut += any(len(e.ids) > most for e in whole)
        found.append(tuple(e for e in kept if len(e.ids) > e.response_start >= 1))
    largest = max((max(e.ids) for each in found for e in each), default=0)
    size = model.network.get_input_embeddings().weight.shape[0]
    if largest >= size:
        raise InputError(
            f"The tokenizer of {model.info.id} makes token {largest} but the model knows {size};"
            " they do not belong together."
        )
    return found, n_cut


def _encode_plain(model: LoadedModel, row: TrainingRow) -> list[Encoded]:
    ids = model.tokenizer(row.plain)["input_ids"]
    return [Encoded((*ids, *_ending(model, row)), response_start=1)]


def _encode_turns(model: LoadedModel, row: TrainingRow) -> list[Encoded]:
    encoded = []
    for i, (role, response) in enumerate(row.turns):
        if role != "assistant" or i in row.untaught or not response.strip():
            continue
        before = row.turns[:i]
        if model.has_chat_template:
            try:
                context = render_messages(model, [{"role": r, "content": c} for r, c in before])
            except InputError as error:
                raise InputError(
                    f"The chat template of {model.info.id} cannot render row {row.number}; its"
                    f" turns are {', '.join(r for r, _ in row.turns)}."
                ) from error
        else:
            context = "".join(f"{content}\n\n" for _, content in before)
        chat = model.has_chat_template
        prompt = model.tokenizer(context, add_special_tokens=not chat)["input_ids"]
        ids = model.tokenizer(response, add_special_tokens=False)["input_ids"]
        if ids:
            ids = (*prompt, *ids, *_ending(model, row))
            encoded.append(Encoded(ids, response_start=max(1, len(prompt))))
    return encoded


def _ending(model: LoadedModel, row: TrainingRow) -> tuple[int, ...]:
    """The token that ends a response."""
    end = model.tokenizer.eos_token_id
    return (end,) if row.complete and end is not None else ()


def check_tokens(
    model: LoadedModel, rows: Sequence[TrainingRow], base_tokenizer: Any, base: str
) -> None:
    """Refuses a base that reads other tokens: losses per token could not be compared.

    Args:
        model: The candidate.
        rows: That both are to read.
        base_tokenizer: Of the base.
        base: What an error calls it.

    Raises:
        InputError: names the first row of which they make different tokens.
    """
    texts = [row.text for row in rows]
    if model.has_chat_template:
        texts.append(render_messages(model, [{"role": "user", "content": "Hello"}]))
    for number, text in enumerate(texts):
        own, other = (
            tokenizer(text, add_special_tokens=False)["input_ids"]
            for tokenizer in (model.tokenizer, base_tokenizer)
        )
        if own != other:
            what = f"row {rows[number].number}" if number < len(rows) else "the chat template"
            raise InputError(
                f"{base} and {model.info.id} have different tokenizers: of {what} they make"
                f" {len(other)} and {len(own)} tokens, not all the same, so that losses per token"
                " cannot be compared."
            )


@dataclass(frozen=True)
class RowLosses:
    """Mean next-token loss of every row's response tokens under both models."""

    base: np.ndarray
    """float64 [row], nats a token; NaN for rows without a response, or whose response lies beyond
    what is read."""
    candidate: np.ndarray
    """Likewise."""
    n_tokens: np.ndarray
    """int [row], response tokens that were read."""
    n_cut: int
    """Rows whose end was not read, see `encoding.MAX_ROW_TOKENS`."""
    base_model: ModelIdentity
    candidate_model: ModelIdentity

    @property
    def gain(self) -> np.ndarray:
        """float64 [row], what the candidate has learnt of it, nats a token."""
        return self.base - self.candidate


def row_losses(
    rows: Sequence[TrainingRow],
    base: ModelRef,
    candidate: ModelRef,
    *,
    on_phase: OnPhase = silent,
    **options: Unpack[LoadOptions],
) -> RowLosses:
    """Scores rows under two models.

    Args:
        rows: Of the candidate's training file.
        base: The model before the fine-tune.
        candidate: The model after it.
        on_phase: Told (phase, rows done, rows in all).
        **options: Passed to `modelassay.load` for both models.

    Raises:
        InputError: a model cannot be read, gives losses that are not numbers, or the two make other
            tokens of these rows.
        UnavailableError: something is not there now, or not even one row fits into memory.
    """
    base_tokenizer = model_tokenizer(base, **options)
    own_tokenizer = model_tokenizer(candidate, **options)
    same = hash_tokenizer(base_tokenizer) == hash_tokenizer(own_tokenizer)

    model = open_model(candidate, on_progress=on_phase, **options)
    encoded, n_cut = encode_rows(model, rows)
    if not same:
        check_tokens(model, rows, base_tokenizer, base.id)
    told = phase_of(on_phase, "candidate loss")
    of_candidate, info = response_losses(model, encoded, on_progress=told), model.info
    del model  # before the other one is loaded
    model = open_model(base, on_progress=on_phase, **options)
    of_base = response_losses(model, encoded, on_progress=phase_of(on_phase, "base loss"))
    n_tokens = np.array([sum(len(e.ids) - e.response_start for e in row) for row in encoded])
    return RowLosses(of_base, of_candidate, n_tokens, n_cut, model.info, info)


def model_tokenizer(model: ModelRef, **options: Unpack[LoadOptions]) -> Any:
    """The tokenizer of a model that is not loaded.

    Args:
        model: Whose.
        **options: As of `modelassay.load`; only those on fetching files count here.

    Raises:
        InputError: the model cannot be read.
        UnavailableError: it cannot be fetched now.
    """
    source, adapter = find_sources(model, **fetch_options(options))
    return load_tokenizer(source, adapter, trust_remote_code=bool(options.get("trust_remote_code")))


def response_losses(
    model: LoadedModel,
    rows: Sequence[tuple[Encoded, ...]],
    *,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> np.ndarray:
    """Mean next-token loss of each row's response tokens.

    Args:
        model: The model to read them.
        rows: For each row its responses, each after its own context.
        batch_tokens: Upper bound on tokens in a batch, padding included.
        on_progress: Told (answers done, answers in all), equal ones counted once.

    Returns:
        float64 [row] in nats a token, NaN for rows without responses.

    Raises:
        InputError: the model gives losses that are not numbers.
        UnavailableError: not even one row fits into memory.
    """
    vocabulary = model.network.get_output_embeddings().weight.shape[0]
    # The logits of a batch are in memory together, or its pass would be made once for each part.
    batch_tokens = min(batch_tokens or batch_budget(model), max(1, MAX_LOGITS // vocabulary))
    distinct = sorted(
        {e for each in rows for e in each}, key=lambda e: (len(e.ids), e.ids, e.response_start)
    )
    with torch.inference_mode():
        losses = run_in_batches(
            lambda batch: _batch_losses(model, batch),
            distinct,
            lambda each: len(each.ids),
            batch_tokens,
            noun="row",
            on_progress=on_progress,
        )
    sums = dict(zip(distinct, losses, strict=True))
    found = np.full(len(rows), np.nan)
    for i, each in enumerate(rows):
        if each:
            found[i] = sum(sums[e] for e in each) / sum(len(e.ids) - e.response_start for e in each)
    return found


def _batch_losses(model: LoadedModel, batch: Sequence[Encoded]) -> list[float]:
    """Summed loss of each one's response tokens, in nats."""
    ids = pad([each.ids for each in batch])  # on the right: no real token sees it
    # A token is predicted at the position before its own.
    places = [(i, p - 1) for i, e in enumerate(batch) for p in range(e.response_start, len(e.ids))]
    rows, positions = torch.tensor(places).unbind(1)
    targets = ids[rows, positions + 1]
    vocabulary = model.network.get_output_embeddings().weight.shape[0]
    step = max(1, MAX_LOGITS // vocabulary)
    inputs = ids.to(model.device)
    sums = torch.zeros(len(batch), dtype=torch.float64)
    for start in range(0, len(places), step):  # once, but for single rows of very long responses
        part = slice(start, start + step)
        with head_at(model.network, positions[part], rows[part]):
            logits = model.network(input_ids=inputs, use_cache=False).logits[:, 0].float()
        losses = torch.nn.functional.cross_entropy(
            logits, targets[part].to(logits.device), reduction="none"
        )
        sums.index_add_(0, rows[part], losses.double().cpu())
    if not bool(torch.isfinite(sums).all()):
        raise InputError(
            f"{model.info.id} gives losses that are not numbers; the weights are broken, or the"
            " dtype overflows (try --dtype float32)."
        )
    return sums.tolist()
