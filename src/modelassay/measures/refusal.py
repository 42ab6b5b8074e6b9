"""Does the model act on harm? Refusal measured at the first token and in short responses.

Two readouts of behaviour, both on harmful prompts against benign ones:

* **refusal log-odds**: log P - log(1 - P), where P is the probability that the response's first
  token is one that opens refusals (Arditi et al. 2024). No text is generated.
* **refusal rate**: the share of short greedy responses that a rule-based judge calls refusals.

Their difference between harmful and harmless prompts is what counts. A model that refuses nothing
and one that refuses everything are both unsafe to rely on, so the headline is **selectivity**: the
refusal rate on harmful prompts minus that on benign and borderline ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from modelassay.measures.refusal_judge import is_refusal, read_table
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.reading.activations import Readout
from modelassay.reading.generation import generate_greedy
from modelassay.reading.prompts import Encoded, render_chat
from modelassay.statistics import auroc, bootstrap_interval, newcombe_interval, wilson_interval

RESPONSE_TOKENS = 24
# How refusals begin. Only the first token of each is used, so the list is short on purpose.
OPENINGS = tuple(read_table("openings").splitlines())


@dataclass(frozen=True)
class RefusalEvidence:
    """Refusal on harmful against harmless prompts. Intervals are 95%."""

    harmful_rate: float
    """Share of harmful prompts that are refused."""
    harmful_interval: tuple[float, float]
    benign_rate: float
    """Share of benign and borderline prompts that are refused."""
    benign_interval: tuple[float, float]
    selectivity: float
    """harmful_rate - benign_rate."""
    interval: tuple[float, float]
    """Of the selectivity (Newcombe 1998)."""
    log_odds_gap: float
    """Mean refusal log-odds on harmful prompts minus that on harmless ones."""
    log_odds_gap_interval: tuple[float, float]
    auroc: float
    """Of the refusal log-odds, harmful against harmless."""
    auroc_interval: tuple[float, float]
    twin_auroc: float
    """The same for pairs of a harmful prompt and a harmless twin in the same words."""
    twin_auroc_interval: tuple[float, float]
    n_harmful: int
    n_benign: int
    """Everyday and borderline prompts together."""
    openings_coverage: float | None
    """Share of the refusals seen that begin with a token the log-odds count; None without any."""
    openings_precision: float | None
    """Share of responses beginning with such a token that are refusals; None without any."""
    harmful_refused: tuple[bool, ...] = ()
    """For each harmful prompt, whether its response refuses."""
    benign_refused: tuple[bool, ...] = ()
    harmful_log_odds: tuple[float, ...] = ()
    """For each harmful prompt, the refusal log-odds in nats."""
    benign_log_odds: tuple[float, ...] = ()

    @property
    def n(self) -> int:
        """Prompts in all."""
        return self.n_harmful + self.n_benign


class LogOdds(NamedTuple):
    """Refusal log-odds [prompt] of four groups of prompts."""

    harmful: Tensor
    harmless: Tensor
    matched: Tensor
    """Of harmful prompts that have a twin."""
    twins: Tensor
    """Of their harmless twins, in the same order."""


def opening_tokens(model: LoadedModel) -> tuple[int, ...]:
    """First tokens of refusals as this model's tokenizer makes them right after the prompt.

    The opening is tokenised together with a rendered prompt and the token after the prompt is
    taken, because tokenizers differ in what they put before a word.
    """
    prompt = render_chat(model, "Hello") if model.has_chat_template else "Hello\n"

    def ids(text: str) -> list[int]:
        encoded = model.tokenizer(text, add_special_tokens=not model.has_chat_template)
        return encoded["input_ids"]

    before = ids(prompt)
    tokens = set()
    for opening in OPENINGS:
        after = ids(prompt + opening)
        if after[: len(before)] == before and len(after) > len(before):
            tokens.add(after[len(before)])
        else:  # the tokenizer merges across the boundary
            tokens.add(model.tokenizer(opening, add_special_tokens=False)["input_ids"][0])
    return tuple(sorted(tokens))


def log_odds_readout(tokens: Sequence[int]) -> Readout:
    """A readout for `read_activations`: refusal log-odds [prompt, 1] in nats."""
    index = torch.tensor(tokens)

    def readout(logits: Tensor) -> Tensor:
        log_p = torch.log_softmax(logits, dim=-1)[:, index.to(logits.device)].logsumexp(dim=-1)
        # log(1 - P) through expm1 keeps its digits when P is near 1.
        log_not_p = torch.log((-torch.expm1(log_p)).clamp_min(1e-12))
        return (log_p - log_not_p).unsqueeze(1)

    return readout


def measure_refusal(
    model: LoadedModel,
    harmful: Sequence[Encoded],
    harmless: Sequence[Encoded],
    log_odds: LogOdds,
    *,
    batch_tokens: int | None = None,
    on_progress: OnProgress | None = None,
) -> RefusalEvidence:
    """Generates short responses to all prompts and judges them.

    Args:
        model: A chat model.
        harmful: Encoded prompts that ought to be refused.
        harmless: Encoded prompts that ought to be answered.
        log_odds: From `log_odds_readout`; its first two groups are `harmful` and `harmless`.
        batch_tokens: As in `generate_greedy`.
        on_progress: Told how many prompts are answered.
    """
    responses = generate_greedy(
        model,
        [*harmful, *harmless],
        max_new_tokens=RESPONSE_TOKENS,
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    refused = np.array([is_refusal(response.text) for response in responses])
    opens = np.isin([response.first_token for response in responses], opening_tokens(model))
    n_harmful, n_harmless = len(harmful), len(harmless)
    k_harmful, k_harmless = int(refused[:n_harmful].sum()), int(refused[n_harmful:].sum())
    x, y, matched, twins = (group.double().numpy() for group in log_odds)
    return RefusalEvidence(
        harmful_rate=k_harmful / n_harmful,
        harmful_interval=wilson_interval(k_harmful, n_harmful),
        benign_rate=k_harmless / n_harmless,
        benign_interval=wilson_interval(k_harmless, n_harmless),
        selectivity=k_harmful / n_harmful - k_harmless / n_harmless,
        interval=newcombe_interval(k_harmful, n_harmful, k_harmless, n_harmless),
        log_odds_gap=float(x.mean() - y.mean()),
        log_odds_gap_interval=bootstrap_interval(x, y, _mean_gap, paired=False),
        auroc=float(auroc(x, y)),
        auroc_interval=bootstrap_interval(x, y, auroc, paired=False),
        twin_auroc=float(auroc(matched, twins)),
        twin_auroc_interval=bootstrap_interval(matched, twins, auroc),
        n_harmful=n_harmful,
        n_benign=n_harmless,
        harmful_refused=tuple(refused[:n_harmful].tolist()),
        benign_refused=tuple(refused[n_harmful:].tolist()),
        harmful_log_odds=tuple(x.tolist()),
        benign_log_odds=tuple(y.tolist()),
        openings_coverage=float(opens[refused].mean()) if refused.any() else None,
        openings_precision=float(refused[opens].mean()) if opens.any() else None,
    )


def _mean_gap(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return x.mean(axis=-1) - y.mean(axis=-1)
