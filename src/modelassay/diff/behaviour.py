"""Behaviour on the same tokens: next-token probabilities, refusals, responses.

Three readouts, from cheap to dear. The **KL divergence** of the next-token distributions tells how
much the candidate speaks differently and where; it is summed over the base's likeliest tokens and
one cell for all others, which is a lower bound on the full divergence (grouping outcomes never
raises it) and misses little. The **refusal log-odds** and, where answers were made, **refusal
rates** tell whether it still declines. **Contrasts** tell which of two responses about itself it
prefers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from modelassay.diff.reading import Reading
from modelassay.diff.suites import Suite
from modelassay.measures.refusal import MOST_UNFINISHED, outcome
from modelassay.measures.refusal_judge import Outcome
from modelassay.reading.generation import Response
from modelassay.report.json import published
from modelassay.statistics import MeanChange, mcnemar_p_value, mean_change, wilson_interval

WORST_PLACES = 20


@dataclass(frozen=True)
class Place:
    """A token after which the two models expect different things."""

    prompt: int
    """Index into the suite."""
    position: int
    """Of the token, among the compared ones of its prompt."""
    token: str
    in_response: bool
    kl: float


@dataclass(frozen=True)
class RefusalChange:
    """Refusals among greedy responses on one group of prompts, judged as in a scan."""

    base_rate: float
    base_interval: tuple[float, float]
    candidate_rate: float
    candidate_interval: tuple[float, float]
    lost: int
    """Prompts that the base refuses and the candidate answers."""
    gained: int
    p_value: float
    """Exact McNemar test of lost against gained."""
    n: int
    """Prompts on which both responses could be judged."""
    base_evades: float
    """Share of them on which the base neither refuses nor complies."""
    candidate_evades: float

    @property
    def answered(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Wilson's 95% intervals of the share that base and candidate neither refuse nor evade."""
        complied = (
            1 - self.base_rate - self.base_evades,
            1 - self.candidate_rate - self.candidate_evades,
        )
        base, candidate = (wilson_interval(round(share * self.n), self.n) for share in complied)
        return base, candidate


@dataclass(frozen=True)
class BehaviourDiff:
    """How differently the candidate behaves."""

    kl_mean: float
    """Nats a token, D(base ‖ candidate)."""
    kl_prompt: float
    """On tokens of prompts."""
    kl_response: float | None
    """On tokens of the base's responses; None without responses."""
    kl_quantiles: dict[str, float]
    worst: tuple[Place, ...]
    log_odds: dict[str, MeanChange]
    """Change of the refusal log-odds by group of prompts, in nats."""
    contrasts: MeanChange | None
    """Change of log P(unsafe response) - log P(safe response), in nats a token."""
    refusals: dict[str, RefusalChange]
    """By group of prompts; empty where no responses were made."""
    responses: tuple[tuple[str, str], ...]
    """Of base and candidate to each prompt; empty where none were made."""
    kl_harmless: float | None = None
    """Nats a token on harmless prompts and the base's responses to them; None without such."""
    base_spread: float | None = None
    """Standard deviation of the base's refusal log-odds between all prompts; None of one."""
    base_leaning: float | None = None
    """Standard deviation of log P(unsafe) - log P(safe) in the base between the contrasts, in nats
    a token; None of one."""
    thinks: bool = False
    """Whether a model thinks before it answers: first tokens are then a thought's, and refusal
    log-odds are not compared."""
    n_unfinished: int = 0
    """Prompts on which a response was still a thought when it was cut."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values; answers are left to the report, which redacts them."""
        values = published(asdict(self), kl_response="kl_answer")
        del values["responses"]
        worst = [published(place, in_response="in_answer") for place in values["worst"]]
        return {**values, "worst": worst}


def compare_behaviour(
    base: Reading,
    candidate: Reading,
    suite: Suite,
    *,
    responses: tuple[Sequence[Response], Sequence[Response]] = ((), ()),
    contrasts: tuple[Tensor, Tensor] | None = None,
) -> BehaviourDiff:
    """Compares two readings of the same tokens.

    Args:
        base: The base's reading.
        candidate: The candidate's.
        suite: What was asked.
        responses: Greedy responses of base and candidate, in the order of the suite's prompts;
            empty where none were made.
        contrasts: Of base and candidate, as `read_contrasts` gives them.
    """
    matched = base.matched
    kl = token_kl(base.log_p, candidate.log_p).numpy()
    in_response = matched.in_response().numpy()
    owners = matched.owners().numpy()
    starts = np.cumsum([0, *matched.lengths])
    order = np.argsort(-kl, kind="stable")[:WORST_PLACES]
    thinks = any(sum(r.thought for r in side) > len(side) / 2 for side in responses)
    outcomes: list[list[Outcome | None]] = [
        [outcome(prompt.text, said) for prompt, said in zip(suite.prompts, side, strict=False)]
        for side in responses
    ]
    changed = (candidate.log_odds - base.log_odds).double().numpy()
    leanings = [_leaning(side) for side in contrasts] if contrasts and len(contrasts[0]) else None
    harmless = np.isin(owners, suite.indices("harmless"))
    groups = {
        group: rows
        for group in ("harmful", "harmless", "neutral")
        if (rows := suite.indices(group))
    }
    return BehaviourDiff(
        kl_mean=float(kl.mean()),
        kl_prompt=float(kl[~in_response].mean()),
        kl_response=float(kl[in_response].mean()) if in_response.any() else None,
        kl_quantiles={str(q): float(np.quantile(kl, q)) for q in (0.5, 0.9, 0.99, 1.0)},
        worst=tuple(
            Place(
                prompt=int(owners[row]),
                position=int(row - starts[owners[row]]),
                token=matched.tokens[int(row)],
                in_response=bool(in_response[row]),
                kl=float(kl[row]),
            )
            for row in order
        ),
        log_odds={}
        if thinks
        else {group: mean_change(changed[rows]) for group, rows in groups.items()},
        contrasts=None if leanings is None else mean_change(leanings[1] - leanings[0]),
        refusals={
            group: change
            for group, rows in groups.items()
            if responses[0]
            and (
                change := refusal_change(
                    [outcomes[0][i] for i in rows], [outcomes[1][i] for i in rows]
                )
            )
        },
        responses=tuple((a.text, b.text) for a, b in zip(*responses, strict=True)),
        kl_harmless=float(kl[harmless].mean()) if harmless.any() else None,
        base_spread=None if thinks or len(changed) < 2 else float(base.log_odds.std()),
        base_leaning=None
        if leanings is None or len(leanings[0]) < 2
        else float(leanings[0].std(ddof=1)),
        thinks=thinks,
        n_unfinished=sum(None in pair for pair in zip(*outcomes, strict=True)),
    )


def token_kl(base: Tensor, candidate: Tensor) -> Tensor:
    """D(base ‖ candidate) [token] in nats over the given tokens and one cell for the rest.

    Args:
        base: [token, k] log-probabilities.
        candidate: Those of the same tokens.
    """
    base, candidate = base.double(), candidate.double()
    rest_base = (1 - base.exp().sum(dim=-1)).clamp_min(1e-12)
    rest_candidate = (1 - candidate.exp().sum(dim=-1)).clamp_min(1e-12)
    inside = (base.exp() * (base - candidate)).sum(dim=-1)
    return (inside + rest_base * (rest_base / rest_candidate).log()).clamp_min(0).float()


def refusal_change(
    base: Sequence[Outcome | None], candidate: Sequence[Outcome | None]
) -> RefusalChange | None:
    """Compares what refuses; None where too many outcomes are None, an unfinished thought."""
    pairs = [(a, b) for a, b in zip(base, candidate, strict=True) if not (a is None or b is None)]
    n = len(pairs)
    if len(base) - n > MOST_UNFINISHED * len(base):
        return None
    said = np.array(pairs)
    before, after = (said == "refuses").T
    evaded = (said == "evades").mean(axis=0)
    lost, gained = int((before & ~after).sum()), int((~before & after).sum())
    return RefusalChange(
        base_rate=float(before.mean()),
        base_interval=wilson_interval(int(before.sum()), n),
        candidate_rate=float(after.mean()),
        candidate_interval=wilson_interval(int(after.sum()), n),
        lost=lost,
        gained=gained,
        p_value=mcnemar_p_value(lost, gained),
        n=n,
        base_evades=float(evaded[0]),
        candidate_evades=float(evaded[1]),
    )


def _leaning(contrasts: Tensor) -> np.ndarray:
    return (contrasts[:, 1] - contrasts[:, 0]).double().numpy()
