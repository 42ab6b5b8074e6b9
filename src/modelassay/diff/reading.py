"""What base and candidate make of the same tokens, one model at a time.

The tokens are those of the user's message, of what the template puts after it, and of the base's
own short response, so that the two models are compared where they speak as well as where they
listen. A response is made as far as it takes to judge it, and compared as far as all are made. One
pass of each model gives the states of all asked layers at all those tokens; the logits
come from the last layer's states (`unembedding`), so nothing is run twice. Where the candidate's
first layers are the base's, its pass begins above them, at the states that the base's pass has
left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from modelassay.diff.pair import Traits, traits_of
from modelassay.diff.suites import Contrast, Suite, SuitePrompt, messages_of
from modelassay.diff.triggers import PhraseEffects
from modelassay.errors import InputError
from modelassay.measures.refusal import log_odds_readout, opening_tokens, respond
from modelassay.models import LoadedModel, ModelIdentity
from modelassay.models.layers import resolve_layers, spread_layers
from modelassay.progress import OnPhase, OnProgress, phase_of, silent
from modelassay.reading.activations import read_activations
from modelassay.reading.generation import FIRST_LOOK, Response
from modelassay.reading.logit_lens import decode_each, unembed
from modelassay.reading.prompts import (
    Encoded,
    check_distinct,
    check_length,
    encode_chat,
    last_message_start,
)
from modelassay.reading.resuming import ResumePoint
from modelassay.reading.thinking import thinking_of
from modelassay.sae import SAE

LIKELY = 256
"""Tokens whose probabilities are kept of the base at each position; the rest is one cell."""
N_DEPTHS = 5
FIRST_TOKENS = 5
UNRELATED = (Path(__file__).parent / "unrelated.txt").read_text(encoding="utf-8").splitlines()
"""Written for this purpose; their content is of no importance."""


@dataclass(frozen=True)
class Matched:
    """Token ids that both models read."""

    encoded: tuple[Encoded, ...]
    """For each prompt; `response_start` is the first token that is compared."""
    prompt_ends: tuple[int, ...]
    """For each prompt, how many of its compared tokens come before the response."""
    tokens: tuple[str, ...]
    """Each compared token as text."""

    @property
    def lengths(self) -> tuple[int, ...]:
        """Compared tokens of each prompt."""
        return tuple(len(row.ids) - row.response_start for row in self.encoded)

    def owners(self) -> Tensor:
        """int64 [token], the prompt of each compared token."""
        return torch.repeat_interleave(torch.tensor(self.lengths))

    def in_response(self) -> Tensor:
        """Bool [token], whether each compared token is one of the response."""
        parts = [
            torch.arange(n) >= end for n, end in zip(self.lengths, self.prompt_ends, strict=True)
        ]
        return torch.cat(parts)

    def last_prompt_tokens(self) -> Tensor:
        """int64 [prompt], the row of each prompt's last token before the response."""
        starts = torch.tensor([0, *self.lengths[:-1]]).cumsum(0)
        return starts + torch.tensor(self.prompt_ends) - 1


@dataclass(frozen=True)
class Reading:
    """One model's states and next-token probabilities at the compared tokens."""

    matched: Matched
    """What was read."""
    layers: tuple[int, ...]
    activations: Tensor
    """float32 [token, layer, hidden], of `layers`."""
    log_odds: Tensor
    """float32 [prompt], refusal log-odds at the end of each prompt."""
    likely: Tensor
    """int32 [token, LIKELY], tokens that the base finds likeliest."""
    log_p: Tensor
    """float32 [token, LIKELY], this model's log-probabilities of those."""

    def at(self, layer: int) -> Tensor:
        """float32 [token, hidden], the output of a layer."""
        return self.activations[:, self.layers.index(layer)]

    def resume_point(self, layer: int, *, responses: bool = True) -> ResumePoint:
        """States that other passes over the same tokens can begin at.

        Args:
            layer: One of `layers`.
            responses: Whether those passes read the responses as well as the prompts.
        """
        activations, matched = {}, self.matched
        parts = self.at(layer).split(matched.lengths)
        for row, end, part in zip(matched.encoded, matched.prompt_ends, parts, strict=True):
            n = len(part) if responses else end
            activations[row.ids[: row.response_start + n]] = part[:n]
        return ResumePoint(layer, activations)


def encode_suite(model: LoadedModel, prompts: Sequence[SuitePrompt]) -> list[Encoded]:
    """The prompts as the model would be asked, each with its last message marked.

    A model that thinks is asked so that it answers at once, where there is a way to.

    Raises:
        InputError: one is too long, the template fails, or two become the same tokens.
    """
    rows, way = [], thinking_of(model)
    for prompt in prompts:
        messages = messages_of(prompt)
        ids = encode_chat(model, messages, thinking=way)
        start = last_message_start(model, messages, ids, thinking=way)
        rows.append(Encoded(ids, response_start=start))
    texts = [f"{prompt.system or ''}\n{prompt.text}" for prompt in prompts]
    check_distinct(model, texts, [row.ids for row in rows])
    return rows


def match_tokens(
    model: LoadedModel, prompts: Sequence[Encoded], responses: Sequence[str] | None
) -> Matched:
    """The tokens to compare: prompts, each followed by a response if there are any."""
    encoded, ends = [], []
    for i, prompt in enumerate(prompts):
        response: list[int] = []
        if responses and responses[i]:
            response = model.tokenizer(responses[i], add_special_tokens=False)["input_ids"]
        room = max(model.context_length - len(prompt.ids), 0)
        compared = response[: min(room, FIRST_LOOK)]  # how much is made of those that go on
        encoded.append(Encoded((*prompt.ids, *compared), prompt.response_start))
        ends.append(len(prompt.ids) - prompt.response_start)
    compared = [token for row in encoded for token in row.ids[row.response_start :]]
    return Matched(tuple(encoded), tuple(ends), tuple(decode_each(model, compared)))


def read_model(
    model: LoadedModel,
    matched: Matched,
    layers: Sequence[int],
    *,
    base: Reading | None = None,
    alike: int = 0,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> Reading:
    """Reads a model at the matched tokens.

    Args:
        model: Base or candidate.
        matched: The tokens.
        layers: Layers whose states are kept.
        base: The base's reading of the same layers, when the candidate is read.
        alike: How many first layers, with the embeddings, are the base's. Those whose states are
            among `layers` are not run again.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told how many prompts are done.

    Raises:
        InputError: a layer gives NaN or infinite values.
    """
    last = len(model.layers) - 1
    known = [] if base is None else [layer for layer in base.layers if layer < alike]
    wanted = tuple(sorted({*layers, last} - set(known[:-1])))
    read = read_activations(
        model,
        matched.encoded,
        wanted,
        position="all",
        batch_tokens=batch_tokens,
        resume=base.resume_point(known[-1]) if base is not None and known else None,
        on_progress=on_progress,
    )
    final = read.values[:, wanted.index(last)]
    ends = set(matched.last_prompt_tokens().tolist())
    readout = log_odds_readout(opening_tokens(model, thinking_of(model)))
    likely, log_p, log_odds = [], [], []
    done = 0
    for logits in unembed(model, final):
        here = [row - done for row in range(done, done + len(logits)) if row in ends]
        if here:
            log_odds.append(readout(logits[here])[:, 0].cpu())
        log_all = logits.log_softmax(dim=-1)
        if base is None:
            values, tokens = log_all.topk(min(LIKELY, logits.shape[-1]), dim=-1)
        else:
            tokens = base.likely[done : done + len(logits)].to(log_all.device).long()
            values = log_all.gather(1, tokens)
        _check_numbers(model, values)
        likely.append(tokens.int().cpu())
        log_p.append(values.cpu())
        done += len(logits)
    activations = [
        base.at(layer)
        if base is not None and layer in known
        else read.values[:, wanted.index(layer)]
        for layer in layers
    ]
    return Reading(
        matched=matched,
        layers=tuple(layers),
        activations=torch.stack(activations, dim=1),
        log_odds=torch.cat(log_odds),
        likely=torch.cat(likely),
        log_p=torch.cat(log_p),
    )


def encode_contrasts(model: LoadedModel, contrasts: Sequence[Contrast]) -> list[Encoded]:
    """Each contrast twice, with its safe and with its unsafe response.

    Args:
        model: The base, whose tokenizer and chat template both models read.
        contrasts: The questions and responses.

    Raises:
        InputError: one is too long, or the template fails.
    """
    rows, way = [], thinking_of(model)
    for contrast in contrasts:
        ids = encode_chat(model, messages_of(contrast), thinking=way)
        for response in (contrast.safe, contrast.unsafe):
            tokens = model.tokenizer(response, add_special_tokens=False)["input_ids"]
            check_length(model, contrast.prompt, len(ids) + len(tokens))
            rows.append(Encoded((*ids, *tokens), response_start=len(ids)))
    return rows


def read_contrasts(model: LoadedModel, rows: Sequence[Encoded]) -> Tensor:
    """How likely a model finds the two responses of each contrast.

    Args:
        model: Base or candidate.
        rows: As `encode_contrasts` gives them.

    Returns:
        float32 [contrast, 2], mean log-probability of a token of the safe and the unsafe response.

    Raises:
        InputError: the model gives no numbers.
    """
    if not rows:
        return torch.zeros(0, 2)
    # The state before a token predicts it; that of the last token predicts nothing asked.
    shifted = [Encoded(row.ids[:-1], row.response_start - 1) for row in rows]
    read = read_activations(model, shifted, [len(model.layers) - 1], position="all")
    targets = torch.tensor([token for row in rows for token in row.ids[row.response_start :]])
    found, done = [], 0
    for logits in unembed(model, read.values[:, 0]):
        wanted = targets[done : done + len(logits), None].to(logits.device)
        found.append(logits.log_softmax(dim=-1).gather(1, wanted)[:, 0].cpu())
        _check_numbers(model, found[-1])
        done += len(logits)
    lengths = [len(row.ids) - row.response_start for row in rows]
    return torch.stack([part.mean() for part in torch.cat(found).split(lengths)]).reshape(-1, 2)


def read_unrelated(model: LoadedModel, layers: Sequence[int]) -> Tensor:
    """States [layer, hidden] on the first tokens of unrelated texts, averaged.

    The very first token, an attention sink in most models, is left out.
    """
    rows = model.tokenizer(UNRELATED, add_special_tokens=True)["input_ids"]
    prompts = [Encoded(tuple(row[: FIRST_TOKENS + 1]), response_start=1) for row in rows]
    return read_activations(model, prompts, layers, position="all").values.mean(dim=0)


@dataclass(frozen=True)
class BaseReading:
    """The base, read once."""

    suite: Suite
    traits: Traits
    prompts: tuple[Encoded, ...]
    responses: tuple[Response, ...]
    """Greedy responses, each as long as it takes to judge it; empty where none were asked for."""
    response_tokens: int
    """Length at which responses were cut."""
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
        response_tokens: Length at which responses are cut, 0 for none.
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
    responses = respond_to(
        model, suite, prompts, response_tokens, phase_of(on_progress, "answering")
    )
    return BaseReading(
        suite=suite,
        traits=traits_of(model),
        prompts=tuple(prompts),
        responses=responses,
        response_tokens=response_tokens,
        reading=read_model(
            model,
            match_tokens(model, prompts, [response.text for response in responses]),
            kept,
            batch_tokens=batch_tokens,
            on_progress=phase_of(on_progress, "reading"),
        ),
        contrast_rows=tuple(contrast_rows),
        contrasts=read_contrasts(model, contrast_rows),
        unrelated=read_unrelated(model, kept),
    )


def respond_to(
    model: LoadedModel,
    suite: Suite,
    prompts: Sequence[Encoded],
    response_tokens: int,
    on_progress: OnProgress | None = None,
) -> tuple[Response, ...]:
    """Greedy responses to a suite's prompts, as in a scan; empty where they would have no tokens.

    Args:
        model: Base or candidate.
        suite: What is asked.
        prompts: Its prompts, as `encode_suite` gives them.
        response_tokens: Length at which responses are cut.
        on_progress: Told how many prompts are answered.
    """
    if response_tokens == 0:
        return ()
    asked = [(prompt.text, ids) for prompt, ids in zip(suite.prompts, prompts, strict=True)]
    return tuple(respond(model, asked, response_tokens, on_progress=on_progress))


def _layers(n: int, layers: Sequence[int] | None, saes: Sequence[SAE]) -> tuple[int, ...]:
    if layers is None:
        wanted = set(spread_layers(n, N_DEPTHS))
    else:
        wanted = set(resolve_layers(list(dict.fromkeys(layers)), n))
    return tuple(sorted(wanted | {sae.layer for sae in saes}))


def _check_numbers(model: LoadedModel, values: Tensor) -> None:
    """Refuses what a broken final norm or output layer gives; layers are checked as they run."""
    if values.isnan().any():
        raise InputError(
            f"The output layer of {model.info.id} gives values that are not numbers (NaN); the"
            " weights are broken, or the dtype overflows (try --dtype float32)."
        )
