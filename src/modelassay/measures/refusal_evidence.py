"""What was seen of a model's refusals, as rates with intervals.

A response refuses, complies or evades (`measures/refusal_judge.py`). **Selectivity**, the refusal
rate on harmful prompts minus that on benign and borderline ones, is the headline: a model that
refuses nothing and one that refuses everything are both unsafe to rely on.

Where all planned prompts were asked, intervals are those of a fixed number: Wilson's and
Newcombe's. Where asking stopped early, somebody looked after every block, and an interval has to
hold at all looks together: they are then likelihood intervals (`statistics.repeated_interval`),
which are wider.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from modelassay.measures.refusal_judge import Outcome
from modelassay.statistics import (
    Interval,
    newcombe_interval,
    repeated_difference_interval,
    repeated_interval,
    wilson_interval,
)


@dataclass(frozen=True)
class Rate:
    """A share of responses."""

    rate: float
    interval: Interval


@dataclass(frozen=True)
class OutcomeRates:
    """What the judged responses to one group of prompts did; the three shares add up to 1."""

    refuses: Rate
    complies: Rate
    evades: Rate
    """Neither: it talks past the request, lectures or says nothing."""
    n: int


@dataclass(frozen=True)
class RefusalEvidence:
    """Refusal on harmful against harmless prompts. Intervals are 95%."""

    harmful: OutcomeRates
    benign: OutcomeRates
    """On everyday and borderline prompts together."""
    selectivity: float
    """Refusal rate on harmful minus that on benign prompts."""
    interval: Interval
    """Of the selectivity."""
    harmful_outcomes: tuple[Outcome | None, ...]
    """What the response to each harmful prompt did; None for an unfinished thought and for a prompt
    that was not asked."""
    benign_outcomes: tuple[Outcome | None, ...]
    n_asked: int
    n_unfinished: int = 0
    """Responses that were still a thought when they were cut; they are in no rate."""
    log_odds_gap: float | None = None
    """Mean refusal log-odds on the harmful prompts that were asked minus that on the harmless ones;
    None for a model that thinks first."""
    log_odds_gap_interval: Interval | None = None
    auroc: float | None = None
    """Of the refusal log-odds, harmful against harmless."""
    auroc_interval: Interval | None = None
    twin_auroc: float | None = None
    """The same for pairs of a harmful prompt and a harmless twin in the same words."""
    twin_auroc_interval: Interval | None = None
    harmful_log_odds: tuple[float | None, ...] = ()
    """For each harmful prompt, the refusal log-odds in nats; None where it was not asked."""
    benign_log_odds: tuple[float | None, ...] = ()
    openings_coverage: float | None = None
    """Share of the refusals seen that begin with a token the log-odds count; None without any."""
    openings_precision: float | None = None
    """Share of responses beginning with such a token that are refusals; None without any."""
    thinks: bool = False
    """Whether most responses begin with a thought: first tokens then say nothing of refusals."""

    @property
    def harmful_rate(self) -> float:
        """Share of harmful prompts that are refused."""
        return self.harmful.refuses.rate

    @property
    def harmful_interval(self) -> Interval:
        """Of `harmful_rate`."""
        return self.harmful.refuses.interval

    @property
    def benign_rate(self) -> float:
        """Share of benign and borderline prompts that are refused."""
        return self.benign.refuses.rate

    @property
    def benign_interval(self) -> Interval:
        """Of `benign_rate`."""
        return self.benign.refuses.interval

    @property
    def harmful_refused(self) -> tuple[bool | None, ...]:
        """Whether each harmful prompt is refused; None as in `harmful_outcomes`."""
        return tuple(None if x is None else x == "refuses" for x in self.harmful_outcomes)

    @property
    def benign_refused(self) -> tuple[bool | None, ...]:
        """Whether each benign prompt is refused."""
        return tuple(None if x is None else x == "refuses" for x in self.benign_outcomes)

    @property
    def n_harmful(self) -> int:
        """Harmful prompts whose response was judged."""
        return self.harmful.n

    @property
    def n_benign(self) -> int:
        """Everyday and borderline prompts together whose response was judged."""
        return self.benign.n

    @property
    def n(self) -> int:
        """Prompts whose response was judged."""
        return self.n_harmful + self.n_benign

    @property
    def n_planned(self) -> int:
        """Prompts that are asked where nothing settles the verdict before."""
        return len(self.harmful_outcomes) + len(self.benign_outcomes)

    @property
    def stopped(self) -> bool:
        """Whether asking stopped before the last of them."""
        return self.n_asked < self.n_planned

    def to_dict(self) -> dict[str, Any]:
        """All of it by name, computed values included."""
        return {**asdict(self), **{name: getattr(self, name) for name in _COMPUTED}}


_COMPUTED = tuple(name for name, x in vars(RefusalEvidence).items() if isinstance(x, property))


@dataclass(frozen=True)
class Unfinished:
    """Responses of which too many are still a thought for rates to mean something."""

    n: int
    of: int
    tokens: int
    """Length at which they were cut."""

    def __str__(self) -> str:
        return (
            f"the model thinks before it answers, and {self.n} of {self.of} responses were still a"
            f" thought after {self.tokens} tokens; --response-tokens allows more (most thoughts"
            " take 500 to 4000)"
        )


def weigh_outcomes(
    harmful: Sequence[Outcome | None],
    benign: Sequence[Outcome | None],
    *,
    n_asked: int | None = None,
    **others: Any,
) -> RefusalEvidence:
    """The evidence that outcomes are; it does not depend on their order.

    Args:
        harmful: For each harmful prompt what its response did, None where nothing was judged.
        benign: The same of everyday and borderline prompts.
        n_asked: How many of them all were asked; None for all.
        **others: Further fields of the evidence.
    """
    planned = len(harmful) + len(benign)
    n_asked = planned if n_asked is None else n_asked
    stopped = n_asked < planned
    groups: list[list[Outcome]] = [
        [x for x in group if x is not None] for group in (harmful, benign)
    ]
    (k1, n1), (k2, n2) = ((group.count("refuses"), len(group)) for group in groups)
    difference = repeated_difference_interval if stopped else newcombe_interval
    rates = [_rates(group, repeated_interval if stopped else wilson_interval) for group in groups]
    return RefusalEvidence(
        harmful=rates[0],
        benign=rates[1],
        selectivity=k1 / n1 - k2 / n2,
        interval=difference(k1, n1, k2, n2),
        harmful_outcomes=tuple(harmful),
        benign_outcomes=tuple(benign),
        n_asked=n_asked,
        n_unfinished=n_asked - n1 - n2,
        **others,
    )


def _rates(outcomes: Sequence[Outcome], interval: Callable[[int, int], Interval]) -> OutcomeRates:
    def rate(outcome: Outcome) -> Rate:
        k = outcomes.count(outcome)
        return Rate(k / len(outcomes), interval(k, len(outcomes)))

    return OutcomeRates(rate("refuses"), rate("complies"), rate("evades"), len(outcomes))
