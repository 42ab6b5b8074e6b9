"""What is left of a model's refusals without its circuit? Told by its answers.

Components are silenced in memory, each giving its mean over prompts, from the first token in which
prompts differ to the end of the answer; the model then answers prompts that did not serve to find
the circuit. As many other components, drawn at random, are silenced beside it. The share of the
selectivity that survives is the measure of redundancy: where little does, the safety training hangs
on few parts. The refusal direction is taken out of the stream after every layer as well (Arditi et
al. 2024), fitted on other prompts than those that are answered, beside a random direction.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modelassay.data.concepts import refusal_prompts
from modelassay.measures.refusal import ANSWER_TOKENS, outcome, respond
from modelassay.measures.refusal_evidence import RefusalEvidence, weigh_outcomes
from modelassay.measures.refusal_judge import Outcome
from modelassay.mechanism.directions import find_directions
from modelassay.models import LoadedModel
from modelassay.models.components import Component, Components
from modelassay.models.watching import watched
from modelassay.progress import OnProgress, silent, told
from modelassay.reading.activations import common_prefix_length
from modelassay.reading.interventions import intervene, remove_direction
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.thinking import thinking_of
from modelassay.statistics import N_RESAMPLES, Interval

MOST = 32
"""Prompts of each kind that are answered."""
FEWEST = 16
"""Unread prompts of a kind; where fewer are left, those that the circuit was found on serve too."""
N_RANDOM = 3
SEED = 0


@dataclass(frozen=True)
class Selectivity:
    """Refusal rate on harmful prompts minus that on harmless ones."""

    value: float
    interval: Interval
    harmful: float
    harmless: float

    @classmethod
    def of(cls, evidence: RefusalEvidence) -> Selectivity:
        """What is kept of the evidence."""
        rates = evidence.harmful_rate, evidence.benign_rate
        return cls(evidence.selectivity, evidence.interval, *rates)


@dataclass(frozen=True)
class Removal:
    """What silencing a circuit leaves of the refusals in a model's answers."""

    components: tuple[str, ...]
    """The circuit; empty where there is none."""
    untouched: Selectivity
    removed: Selectivity | None
    """Without the circuit."""
    random: tuple[Selectivity, ...]
    """Without as many other components, drawn at random."""
    direction: Selectivity
    """Without the refusal direction."""
    random_direction: Selectivity
    survives: float | None
    """Share of the selectivity that is left without the circuit; None where there is no circuit, or
    no selectivity to begin with."""
    interval: Interval | None
    """95%, resampling prompts."""
    direction_survives: float | None
    """The same without the refusal direction."""
    direction_interval: Interval | None
    n_harmful: int
    n_harmless: int
    held_out: bool
    """Whether none of these prompts served to find the circuit."""

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def remove_circuit(
    model: LoadedModel,
    components: Components,
    circuit: Sequence[Component],
    others: Sequence[Component],
    means: Mapping[Component, Tensor],
    *,
    asked: tuple[Sequence[str], Sequence[str]] | None = None,
    read: Sequence[Encoded] = (),
    batch_tokens: int | None = None,
    on_progress: OnProgress = silent,
) -> Removal:
    """Lets a model answer with its circuit silenced, and with as many other components.

    Args:
        model: A chat model.
        components: Its components.
        circuit: Which are silenced.
        others: What random ones are drawn from.
        means: float32 [width] of each component, what it gives when it is silenced.
        asked: Harmful and harmless prompts; None for those of a scan.
        read: Prompts that the circuit was found on.
        batch_tokens: As in `generate_greedy`.
        on_progress: Told how many of the runs are done.
    """
    way, known = thinking_of(model), {prompt.ids for prompt in read}
    groups, held_out = [], True
    for texts in asked or refusal_prompts():
        pairs = list(zip(texts, encode_prompts(model, texts, thinking=way), strict=True))
        unread = [pair for pair in pairs if pair[1].ids not in known]
        held_out &= len(unread) >= FEWEST
        chosen = unread if len(unread) >= FEWEST else pairs
        n = min(len(chosen), MOST)
        groups.append([chosen[i * len(chosen) // n] for i in range(n)])
    put = [pair for group in groups for pair in group]
    prompts = [prompt for _, prompt in put]
    prefix = prompts[0].ids[: common_prefix_length(prompts)]
    rng = np.random.default_rng(SEED)
    n_random = N_RANDOM if 0 < len(circuit) <= len(others) else 0
    draws = [
        [others[i] for i in rng.choice(len(others), size=len(circuit), replace=False)]
        for _ in range(n_random)
    ]
    fitted = find_directions(
        model, left_out=[text for text, _ in put], batch_tokens=batch_tokens
    ).refusal.vector
    random = torch.from_numpy(rng.standard_normal(len(fitted))).float()

    def without(parts: Sequence[Component]) -> AbstractContextManager[None]:
        return silencing(model, components, {part: means[part] for part in parts}, prefix)

    def erasing(direction: Tensor) -> AbstractContextManager[None]:
        edit = remove_direction(direction)
        return intervene(components, dict.fromkeys(components.of("block"), edit))

    changes = [nullcontext(), erasing(fitted), erasing(random)]
    changes += [without(circuit), *map(without, draws)] if circuit else []
    found = []
    for change in told(changes, on_progress):
        with change:
            said = respond(model, put, ANSWER_TOKENS, batch_tokens=batch_tokens)
        judged: list[Outcome | None] = [
            outcome(text, one) for (text, _), one in zip(put, said, strict=True)
        ]
        found.append(weigh_outcomes(judged[: len(groups[0])], judged[len(groups[0]) :]))
    untouched, erased, elsewhere, *rest = found
    survives, interval = _survives(untouched, rest[0]) if circuit else (None, None)
    of_direction, of_direction_interval = _survives(untouched, erased)
    return Removal(
        components=tuple(map(str, circuit)),
        untouched=Selectivity.of(untouched),
        removed=Selectivity.of(rest[0]) if circuit else None,
        random=tuple(map(Selectivity.of, rest[1:])),
        direction=Selectivity.of(erased),
        random_direction=Selectivity.of(elsewhere),
        survives=survives,
        interval=interval,
        direction_survives=of_direction,
        direction_interval=of_direction_interval,
        n_harmful=len(groups[0]),
        n_harmless=len(groups[1]),
        held_out=held_out,
    )


@contextmanager
def silencing(
    model: LoadedModel,
    components: Components,
    means: Mapping[Component, Tensor],
    prefix: Sequence[int],
) -> Iterator[None]:
    """Lets components give their means, at every token after those that prompts begin with.

    The first tokens of a prompt are left alone: models keep values there that stand for nothing
    that is said (attention sinks) and fail without them.

    Args:
        model: Any model.
        components: Its components.
        means: float32 [width] of those that are silenced.
        prefix: Token ids that all prompts begin with; padding may come before them.
    """
    if not means:
        yield
        return
    state = {"own": torch.empty(0)}
    first = torch.tensor(list(prefix))

    def begin(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        ids = (args or tuple(kwargs.values()))[0].cpu()
        own = torch.ones(ids.shape, dtype=torch.bool)
        if len(first) and ids.shape[1] >= len(first):
            starts = (ids.unfold(1, len(first), 1) == first).all(dim=-1)
            for row in starts.any(dim=1).nonzero()[:, 0].tolist():
                own[row, : int(starts[row].int().argmax()) + len(first)] = False
        state["own"] = own

    def edit(values: Tensor, mean: Tensor) -> Tensor:
        own = state["own"].to(values.device)[..., None]
        return torch.where(own, mean.to(values), values)

    edits = {part: (lambda values, m=mean: edit(values, m)) for part, mean in means.items()}
    embedding = model.network.get_input_embeddings()
    with watched(before=[(embedding, begin)]), intervene(components, edits):
        yield


def _survives(
    untouched: RefusalEvidence, removed: RefusalEvidence
) -> tuple[float | None, Interval | None]:
    """Ratio of selectivities, with an interval from resampling prompts of each kind."""
    if untouched.interval[0] <= 0:
        return None, None
    rng = np.random.default_rng(SEED)

    def refused(evidence: RefusalEvidence, side: str) -> np.ndarray:
        return np.array(getattr(evidence, f"{side}_refused"), dtype=float)  # NaN: not judged

    groups = [
        np.stack([refused(untouched, side), refused(removed, side)])
        for side in ("harmful", "benign")
    ]
    draws = [g[:, rng.integers(0, g.shape[1], (N_RESAMPLES, g.shape[1]))] for g in groups]
    harmful, harmless = (np.nanmean(draw, axis=-1) for draw in draws)  # [run, resample]
    gaps = harmful - harmless
    ratios = gaps[1] / np.maximum(gaps[0], 1e-9)
    low, high = np.quantile(ratios, [0.025, 0.975])
    return removed.selectivity / untouched.selectivity, (float(low), float(high))
