"""The pathway of an attack: which components does it switch, over many requests?

One request says little of an attack such as a trigger phrase, because any other phrase would move
refusals as well. Over many requests two nulls are left, and both have to reject (Berger 1982):
random exchanges of the plain and the attacked request (sign flips) ask whether a component brings
refusals back on requests in general, and harmless wordings of the same requests whether it does
more for this attack than one more harmless wording would have it do. A wording counts once, with
its mean over requests: all of its requests share what is special about it. Of several attacks,
whether each takes refusals away at all is corrected over all of them, and its components over all
components.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from modelassay.data.attacks import Attack, AttackedPrompt, attack_requests, load_attacks
from modelassay.mechanism.attacked import Asked, ask_attacked, ask_plain, states_of
from modelassay.mechanism.circuit import LEAST_SHARE, Q_LEVEL, SEED
from modelassay.mechanism.pairs import AlignedPair
from modelassay.mechanism.swapping import Run, Swapper, put_in
from modelassay.models import LoadedModel
from modelassay.models.components import Component, Components
from modelassay.progress import OnPhase, phase_of, silent, told
from modelassay.reading.interventions import Edit
from modelassay.statistics import (
    Interval,
    MeanChange,
    Prediction,
    benjamini_hochberg,
    mean_change,
    predict,
    sign_flip_p_value,
)

LEAST_REQUESTS = 12
"""Refused requests that an attack needs: fewer give no sign flip rarer than the correction asks."""
NULL_REQUESTS = 6
"""Requests that are put into each harmless wording."""
TRIED = 20
"""Components that are held against harmless wordings, those with the largest effects."""
N_RANDOM = 4
"""Draws of as many other components as are beyond chance."""
AT_ONCE = 16
"""Pairs whose components are kept at a time."""
LEAST_LOSS = 0.25
"""Nats of refusal log-odds that an attack must take away on average for there to be a pathway."""
CLOSINGS = tuple(
    Attack(family="neutral", name=f"closing_{number}", template=f"{{request}} {text}")
    for number, text in enumerate(
        (
            "Thanks for reading this far.",
            "The meeting is on Tuesday.",
            "Greetings from a rainy town.",
            "I will read it over lunch.",
            "Yours, a careful reader.",
            "My train leaves in ten minutes.",
        ),
        start=1,
    )
)
"""Harmless words after a request, as a trigger phrase is: beside the neutral rewordings."""


@dataclass(frozen=True)
class PathwayComponent:
    """What one component has to do with an attack, over requests."""

    component: str
    layer: int
    part: str
    restored: MeanChange
    """Nats of refusal log-odds that come back when it does what it did on the plain request."""
    share: float
    """Of what the attack takes away on average."""
    usual: Interval
    """Nats, 95% prediction interval of the same for one more harmless wording."""
    plain: float | None
    """What it writes to the last token for refusal itself on plain requests, in nats; None where
    parts do not add up to the stream."""
    attacked: float | None
    """The same on attacked requests."""
    p_value: float
    q_value: float
    beyond: bool
    """Whether it brings back more than chance and harmless wordings explain."""


@dataclass(frozen=True)
class Pathway:
    """Through which components one attack takes refusals away."""

    attack: str
    lost: MeanChange
    """Nats of refusal log-odds that it takes away."""
    usual: Interval
    """Nats, 95% prediction interval of the same for one more harmless wording."""
    q_value: float
    """False discovery rate, over all attacks, at which taking them away would be called."""
    takes: bool
    """Whether it takes away more than chance and harmless wordings explain."""
    components: tuple[PathwayComponent, ...]
    """Those that were held against harmless wordings, the strongest first; empty where it does not
    take anything away."""
    together: MeanChange | None
    """Nats that come back with all components beyond chance at once, on the requests that they were
    found on; None of none."""
    random: tuple[float, ...]
    """Mean nats that as many other components bring back."""
    by_layer: tuple[float, ...]
    """Share of the loss that the plain requests' states after each layer bring back, at the tokens
    of the template after the message."""
    n_wordings: int

    @property
    def beyond(self) -> tuple[PathwayComponent, ...]:
        """The components of the pathway."""
        return tuple(each for each in self.components if each.beyond)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)


def aligned(pair: tuple[Asked, Asked], tail: int) -> AlignedPair:
    """A reworded prompt over its plain one, aligned at the tokens that follow the message."""
    plain, reworded = (each.prompt for each in pair)
    return AlignedPair(reworded, plain, min(tail, len(plain.ids), len(reworded.ids)))


def find_pathways(
    model: LoadedModel,
    components: Components,
    attacks: Sequence[AttackedPrompt],
    tail: int,
    *,
    lost: Sequence[float] | None = None,
    parts: Sequence[Component] | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
) -> tuple[Pathway, ...]:
    """Finds the pathway of each attack that is made on enough requests.

    Args:
        model: A chat model.
        components: Its components.
        attacks: Attacked requests, each refused as it is; attacks on fewer than `LEAST_REQUESTS`
            of them have no pathway.
        tail: Tokens of the template after the message.
        lost: Nats of refusal log-odds that each attack takes away, where they are known; None reads
            them.
        parts: Components that are looked at; None for all attention layers and MLPs, and for how
            much comes back layer by layer.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told (phase, done, total).

    Raises:
        InputError: a run gives numbers that are none.
    """
    by_attack: dict[str, list[AttackedPrompt]] = {}
    known: dict[str, list[float]] = {}
    for i, each in enumerate(attacks):
        by_attack.setdefault(each.attack, []).append(each)
        if lost is not None:
            known.setdefault(each.attack, []).append(lost[i])
    enough = {k: v for k, v in by_attack.items() if len(v) >= LEAST_REQUESTS}
    blocks = () if parts is not None else components.of("block")
    parts = components.of("attention", "mlp") if parts is None else tuple(parts)
    if not enough or components.unsure:
        return ()
    requests = list(dict.fromkeys(each.plain for some in enough.values() for each in some))
    wordings = _Wordings(model, components, requests[:NULL_REQUESTS], tail, batch_tokens)
    groups = [
        (name, _Pairs(model, components, some, tail, batch_tokens)) for name, some in enough.items()
    ]
    attacked = [
        _Attacked(name, pairs, np.array(known[name]) if known else pairs.lost())
        for name, pairs in told(groups, phase_of(on_progress, "losses"))
    ]
    usual = predict(wordings.lost)
    q_values = benjamini_hochberg(np.array([p_value_above(each.lost, usual) for each in attacked]))
    return tuple(
        _pathway(each, float(q), usual, parts, blocks, wordings)
        for each, q in told(
            list(zip(attacked, q_values, strict=True)), phase_of(on_progress, "pathways")
        )
    )


def p_value_above(values: np.ndarray, usual: Prediction) -> float:
    """Of values [request] that lie no higher than chance and one more harmless wording have them.

    Both nulls have to be rejected, so the larger p-value counts.
    """
    return max(sign_flip_p_value(values), usual.p_value_above(float(values.mean())))


class _Pairs:
    """Attacked requests with their plain ones, in groups that fit into memory."""

    def __init__(
        self,
        model: LoadedModel,
        components: Components,
        attacked: Sequence[AttackedPrompt],
        tail: int,
        batch_tokens: int | None,
    ) -> None:
        self.components = components
        self._attacked = attacked
        self._groups = [attacked[i : i + AT_ONCE] for i in range(0, len(attacked), AT_ONCE)]
        self._model, self._tail, self._batch_tokens = model, tail, batch_tokens

    def lost(self) -> np.ndarray:
        """Nats of refusal log-odds that the attack takes away [pair], from one pass over them."""
        plain = {each.plain: None for each in self._attacked}
        asked = [ask_plain(self._model, text, self._tail) for text in plain]
        asked += [ask_attacked(self._model, each, self._tail) for each in self._attacked]
        read = states_of(
            self._model,
            asked,
            [len(self._model.layers) - 1],
            batch_tokens=self._batch_tokens,
        ).readout
        assert read is not None  # noqa: S101 (asked for)
        log_odds = read[:, 0].double().cpu().numpy()
        before = dict(zip(plain, log_odds, strict=False))
        return np.array([before[each.plain] for each in self._attacked]) - log_odds[len(plain) :]

    def run(
        self, sets: Sequence[Sequence[Component]], *, direct: bool = False
    ) -> tuple[np.ndarray, dict[Component, tuple[float, float]]]:
        """What comes back when each set of components does what it did on the plain requests.

        Returns:
            Nats that come back [pair, set], and where it is asked for what each component writes
            for refusal on plain and on attacked requests.
        """
        back = []
        writes: dict[Component, list[np.ndarray]] = {}
        for group in self._groups:
            pairs = [
                aligned(
                    (
                        ask_plain(self._model, each.plain, self._tail),
                        ask_attacked(self._model, each, self._tail),
                    ),
                    self._tail,
                )
                for each in group
            ]
            kept = dict.fromkeys(part for some in sets for part in some)
            swapper = Swapper(
                self._model, self.components, pairs, list(kept), batch_tokens=self._batch_tokens
            )
            before = swapper.clean()
            found = [_together(swapper, some) - before for some in sets]
            back.append(np.stack(found, axis=1))
            if direct:
                found_direct = swapper.direct()
                written = {} if found_direct is None else found_direct[0]
                for part, (attacked, plain) in written.items():
                    writes.setdefault(part, []).append(np.stack([plain, attacked], axis=1))
        means = {part: np.concatenate(rows).mean(axis=0) for part, rows in writes.items()}
        return (
            np.concatenate(back),
            {part: (float(row[0]), float(row[1])) for part, row in means.items()},
        )


def _together(swapper: Swapper, parts: Sequence[Component]) -> np.ndarray:
    """Refusal log-odds [pair] of attacked requests with these parts as on the plain ones."""

    def edits(run: Run, twin: Run) -> Mapping[Component, Edit]:
        return {part: put_in(run, twin, part) for part in parts}

    return swapper.run(edits, first_layer=min(part.layer for part in parts)).log_odds


@dataclass(frozen=True)
class _Attacked:
    """One attack: its requests, and the nats [pair] that it takes away."""

    name: str
    pairs: _Pairs
    lost: np.ndarray


class _Wordings:
    """What harmless wordings do, one mean over requests for each; components as they are asked."""

    def __init__(
        self,
        model: LoadedModel,
        components: Components,
        requests: Sequence[str],
        tail: int,
        batch_tokens: int | None,
    ) -> None:
        wordings = (*load_attacks().neutral, *CLOSINGS)
        self.n = len(wordings)
        self._n_requests = len(requests)
        asked = attack_requests(wordings, requests)
        self._pairs = _Pairs(model, components, asked, tail, batch_tokens)
        self._known: dict[Component, np.ndarray] = {}
        self.lost = self._means(self._pairs.lost())

    def _means(self, values: np.ndarray) -> np.ndarray:
        """[wording] of values [pair], which stand wording by wording."""
        return values.reshape(self.n, self._n_requests).mean(axis=1)

    def back(self, parts: Sequence[Component]) -> dict[Component, np.ndarray]:
        """Nats [wording] that each component brings back."""
        if new := [part for part in parts if part not in self._known]:
            found = self._pairs.run([[part] for part in new])[0]
            self._known |= {part: self._means(found[:, i]) for i, part in enumerate(new)}
        return {part: self._known[part] for part in parts}


def _pathway(
    attacked: _Attacked,
    q_value: float,
    usual_loss: Prediction,
    parts: tuple[Component, ...],
    blocks: tuple[Component, ...],
    wordings: _Wordings,
) -> Pathway:
    pairs, lost = attacked.pairs, attacked.lost
    takes = lost.mean() >= LEAST_LOSS and q_value < Q_LEVEL
    summary = Pathway(
        attack=attacked.name,
        lost=mean_change(lost),
        usual=usual_loss.interval,
        q_value=q_value,
        takes=bool(takes),
        components=(),
        together=None,
        random=(),
        by_layer=(),
        n_wordings=wordings.n,
    )
    if not takes:
        return summary
    back, writes = pairs.run([[part] for part in (*parts, *blocks)], direct=True)
    effects = {part: back[:, i] for i, part in enumerate(parts)}
    whole = float(lost.mean())
    tried = sorted(parts, key=lambda part: -abs(float(effects[part].mean())))[:TRIED]
    usual = {part: predict(values) for part, values in wordings.back(tried).items()}
    p_values = np.ones(len(parts))  # the others are not tried, and count
    p_values[: len(tried)] = [p_value_above(effects[part], usual[part]) for part in tried]
    q_values = benjamini_hochberg(p_values)
    components = tuple(
        PathwayComponent(
            component=str(part),
            layer=part.layer,
            part=part.part,
            restored=mean_change(effects[part]),
            share=float(effects[part].mean()) / whole,
            usual=usual[part].interval,
            plain=writes[part][0] if part in writes else None,
            attacked=writes[part][1] if part in writes else None,
            p_value=float(p),
            q_value=float(q),
            beyond=bool(q < Q_LEVEL and effects[part].mean() >= LEAST_SHARE * whole),
        )
        for part, p, q in zip(tried, p_values, q_values, strict=False)
    )
    found = [part for part, row in zip(tried, components, strict=True) if row.beyond]
    together, random = _all_at_once(pairs, found, [part for part in parts if part not in found])
    return Pathway(
        **{
            **vars(summary),
            "components": components,
            "together": together,
            "random": random,
            "by_layer": tuple(
                float(back[:, len(parts) + i].mean()) / whole for i in range(len(blocks))
            ),
        }
    )


def _all_at_once(
    pairs: _Pairs, found: Sequence[Component], others: Sequence[Component]
) -> tuple[MeanChange | None, tuple[float, ...]]:
    """What all that were found bring back at once, and means of as many others."""
    if not found:
        return None, ()
    rng = np.random.default_rng(SEED)
    n = N_RANDOM if len(others) >= len(found) else 0
    draws = [
        [others[i] for i in rng.choice(len(others), size=len(found), replace=False)]
        for _ in range(n)
    ]
    back = pairs.run([found, *draws])[0]
    return mean_change(back[:, 0]), tuple(float(x) for x in back[:, 1:].mean(axis=0))
