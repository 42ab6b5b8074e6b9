"""`explain_jailbreak()`: what did an attack switch off, and what brings the refusal back?

A plain request that the model refuses is held against the same request in an attack. Any change of
the wording moves something, so all that is said of an attack stands against a null: what neutral
rewordings do, of this request and of others that the model refuses. What is called changed lies
beyond what one more of those would do (`Prediction`), corrected over all components, or features.

**Which way the attack works** is told by two readings (`modelassay.mechanism.directions`): one that
no longer sees harm *hides the harm*; one that leaves it in sight and takes the refusal away
*overrides the refusal*; one that moves neither beyond neutral rewordings *acts
later*, as far as readings tell.

**Components** are judged by what brings the refusal back: one component's values, at the tokens of
the template that follow the message, are those of the plain request (activation patching).
Directions are put back as well, beside random ones of their length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec

import numpy as np
import torch
from torch import Tensor
from typing_extensions import Unpack

from modelassay.data.asking import spread_evenly
from modelassay.data.attacks import AttackedPrompt, attack_requests, load_attacks
from modelassay.data.concepts import HARMFUL_PROMPTS, shipped_prompts
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.mechanism.attacked import (
    Asked,
    InsideReading,
    along,
    ask_attacked,
    ask_plain,
    check_separate,
    read_inside,
    states_of,
    with_outcomes,
)
from modelassay.mechanism.circuit import LEAST_SHARE, Q_LEVEL, SEED
from modelassay.mechanism.directions import Direction, SafetyDirections, find_directions
from modelassay.mechanism.jailbreak_report import (
    AttackedComponent,
    AttackedFeature,
    JailbreakReport,
    Restoration,
    TokenReading,
)
from modelassay.mechanism.mechanisms import NullChanges, mechanism_of
from modelassay.mechanism.pathway import aligned
from modelassay.mechanism.swapping import Run, Swapper
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.models.components import Component, find_components
from modelassay.models.refs import require_template, take_ref
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.reading.interventions import Edit, add, at_positions
from modelassay.sae import SAE, find_sae, open_labels, sae_of
from modelassay.sae.firing import read_for
from modelassay.statistics import benjamini_hochberg, predict
from modelassay.threads import sharing

NULL_REQUESTS = 4
"""Requests that neutral rewordings are made of, the explained one included."""
TRIED = 20
"""Components that are held against neutral rewordings, those with the largest effects."""
N_RANDOM = 8
LEAST_GAP = 0.25
"""Nats of refusal log-odds that an attack must take away for there to be any to bring back."""


@sharing
def explain_jailbreak(
    model: str | ModelRef | LoadedModel,
    plain: str,
    jailbroken: str | AttackedPrompt,
    *,
    sae: str | SAE | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> JailbreakReport:
    """Explains one attack on one request.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        plain: A request that the model refuses.
        jailbroken: The same request in its attack: what the user says, or an attack with a system
            prompt or an opening of the response.
        sae: Tells which features change: as `modelassay.sae.find_sae` takes it, or one that is
            open; None takes the first on this machine that belongs to models of this shape.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: the model cannot be taken apart or does not refuse the plain request, or the
            two prompts are the same.
        UnavailableError: something needed is not there now.
    """
    attacked = (
        AttackedPrompt(plain, jailbroken, "given", "given")
        if isinstance(jailbroken, str)
        else jailbroken
    )
    if not plain.strip():
        raise InputError("The plain request is empty.")
    if not (attacked.system or attacked.opening) and attacked.jailbroken == plain:
        raise InputError("The plain request and the attack on it are the same; give two prompts.")
    found_sae = (
        find_sae(sae, token=load_options.get("token"), transcoders=True)
        if isinstance(sae, str)
        else sae
    )
    loaded = open_chat_model(model, on_progress, load_options)
    if found_sae is None and find_spec("sae_lens") is not None:
        found_sae = sae_of(loaded)
    if found_sae is not None:
        found_sae.check_belongs_to(loaded, transcoders=True)
    null_requests = [plain, *(text for text in harmful_requests() if text != plain)]
    directions = find_directions(
        loaded,
        left_out=null_requests[:NULL_REQUESTS],
        batch_tokens=batch_tokens,
        on_progress=on_progress,
    )
    tail = directions.tail
    pair = (ask_plain(loaded, plain, tail), ask_attacked(loaded, attacked, tail))
    check_separate(pair)
    readings = with_outcomes(
        loaded,
        pair,
        read_inside(loaded, pair, directions, batch_tokens=batch_tokens),
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "answering"),
    )
    check_refuses(loaded, readings[0])
    null = reword(loaded, null_requests[:NULL_REQUESTS], tail)
    changes = NullChanges.of(*_read_pairs(loaded, null, directions, batch_tokens))
    mechanism = mechanism_of(readings[0], readings[1], changes, directions)

    swapping = _Swapping.of(loaded, pair, null, tail, batch_tokens, on_progress)
    gap = readings[0].log_odds - readings[1].log_odds
    explains = gap >= LEAST_GAP and gap > changes.log_odds.interval[1]
    return JailbreakReport(
        model=loaded.info,
        plain=readings[0],
        jailbroken=readings[1],
        null=changes,
        mechanism=mechanism,
        directions=directions,
        components=swapping.components(gap) if explains else (),
        by_layer=swapping.by_layer(gap) if explains else (),
        restorations=_restore(swapping, pair[1], readings, directions) if explains else (),
        features=()
        if found_sae is None
        else _features(loaded, found_sae, pair, null, batch_tokens),
        sae=None if found_sae is None else found_sae.name,
        tokens=tuple(_tokens(loaded, each, directions, batch_tokens) for each in pair),
        n_null=len(null),
        provenance={"versions": installed_versions(), "time": utc_now()},
    )


def open_chat_model(
    model: str | ModelRef | LoadedModel, on_progress: OnPhase, load_options: ModelOptions
) -> LoadedModel:
    """The model, which must be one that is chatted with.

    Raises:
        InputError: it has no chat template.
    """
    require_template(load_options, "What attacks do to refusals")
    ref, options = take_ref(model, load_options)
    loaded = open_model(ref, on_progress=on_progress, **options)
    if not loaded.has_chat_template:
        raise InputError(
            f"{loaded.info.id} has no chat template: it does not refuse, and there is nothing to"
            " explain."
        )
    return loaded


def harmful_requests() -> list[str]:
    """The harmful requests of a scan, categories mixed."""
    return spread_evenly(shipped_prompts(HARMFUL_PROMPTS).prompts)


def check_refuses(model: LoadedModel, plain: InsideReading) -> None:
    """Refuses to explain an attack on what is not refused anyway.

    Raises:
        InputError: the model does not refuse the plain request.
    """
    if plain.outcome != "refuses":
        does = f"its answer {plain.outcome}" if plain.outcome else "its thought does not end"
        raise InputError(
            f"{model.info.id} does not refuse the plain request ({does}), so there is nothing for"
            " an attack to get past, and nothing to explain."
        )


def reword(model: LoadedModel, requests: Sequence[str], tail: int) -> list[tuple[Asked, Asked]]:
    """Requests as they are, each with its neutral rewordings."""
    neutral = load_attacks().neutral
    return [
        (ask_plain(model, attacked.plain, tail), ask_attacked(model, attacked, tail))
        for attacked in attack_requests(neutral, requests)
    ]


def _read_pairs(
    model: LoadedModel,
    pairs: Sequence[tuple[Asked, Asked]],
    directions: SafetyDirections,
    batch_tokens: int | None,
) -> tuple[list[InsideReading], list[InsideReading]]:
    asked = [each for pair in pairs for each in pair]
    read = read_inside(model, asked, directions, batch_tokens=batch_tokens)
    return read[::2], read[1::2]


@dataclass(frozen=True)
class _Swapping:
    """Values of a plain run put into runs of its rewordings."""

    attack: Swapper
    null: Swapper
    parts: tuple[Component, ...]
    on_progress: OnPhase

    @classmethod
    def of(
        cls,
        model: LoadedModel,
        pair: tuple[Asked, Asked],
        null: Sequence[tuple[Asked, Asked]],
        tail: int,
        batch_tokens: int | None,
        on_progress: OnPhase,
    ) -> _Swapping:
        components = find_components(model.network)
        if components.unsure:
            raise InputError(f"The model cannot be taken apart: {components.unsure}.")
        parts = components.of("attention", "mlp")

        def swapper(pairs: Sequence[tuple[Asked, Asked]]) -> Swapper:
            lined_up = [aligned(each, tail) for each in pairs]
            return Swapper(model, components, lined_up, parts, batch_tokens=batch_tokens)

        return cls(swapper([pair]), swapper(null), parts, on_progress)

    def components(self, gap: float) -> tuple[AttackedComponent, ...]:
        """What the components that bring most back, or take most away, do; the strongest first."""
        found = self.attack.direct()
        direct = {} if found is None else found[0]
        rises = _rises(self.attack, self.parts, phase_of(self.on_progress, "restoring"))
        strongest = sorted(self.parts, key=lambda part: -abs(float(rises[part][0])))[:TRIED]
        null = _rises(self.null, strongest, phase_of(self.on_progress, "rewordings"))
        usual = {part: predict(null[part]) for part in strongest}
        p_values = np.ones(len(self.parts))  # the others are not tried, and count
        p_values[: len(strongest)] = [
            usual[part].p_value_above(float(rises[part][0])) for part in strongest
        ]
        q_values = benjamini_hochberg(p_values)
        return tuple(
            AttackedComponent(
                component=str(part),
                layer=part.layer,
                part=part.part,
                restored=float(rises[part][0]) / gap,
                null=(usual[part].interval[0] / gap, usual[part].interval[1] / gap),
                plain=float(direct[part][1][0]) if part in direct else None,
                jailbroken=float(direct[part][0][0]) if part in direct else None,
                q_value=float(q),
                beyond=bool(q < Q_LEVEL and float(rises[part][0]) >= LEAST_SHARE * gap),
            )
            for part, q in zip(strongest, q_values, strict=False)
        )

    def by_layer(self, gap: float) -> tuple[float, ...]:
        """Share of the refusal that the plain run's state after each layer brings back."""
        blocks = self.attack.components.of("block")
        rises = _rises(self.attack, blocks, phase_of(self.on_progress, "layers"))
        return tuple(float(rises[block][0]) / gap for block in blocks)


def _rises(
    swapper: Swapper, parts: Sequence[Component], on_progress: OnProgress
) -> dict[Component, np.ndarray]:
    """By component, the rise of the log-odds [pair] when it does what it did in the plain run."""
    before = swapper.clean()
    return {part: swapper.swap(part).log_odds - before for part in told(parts, on_progress)}


def _restore(
    swapping: _Swapping,
    attacked: Asked,
    readings: Sequence[InsideReading],
    directions: SafetyDirections,
) -> tuple[Restoration, ...]:
    """Puts back what the attack took along each direction, and random directions as long."""
    plain, jailbroken = readings
    swapper, found = swapping.attack, []
    gap = plain.log_odds - jailbroken.log_odds
    said = torch.zeros(1, len(attacked.prompt.ids), dtype=torch.bool)
    said[:, attacked.request_start : attacked.message_end + 1] = True
    rng = np.random.default_rng(SEED)
    for direction, lost, where in (
        (directions.harm, plain.harm - jailbroken.harm, said),
        (directions.refusal, plain.refusal - jailbroken.refusal, None),
    ):
        if lost <= 0:
            continue
        vector = lost * direction.unit * direction.vector
        draws = torch.from_numpy(rng.standard_normal((N_RANDOM, len(vector)))).float()
        random = torch.nn.functional.normalize(draws, dim=1) * vector.norm()
        rises = [_rise(swapper, direction, each, where) for each in (vector, *random)]
        found.append(
            Restoration(
                what=f"{direction.name} direction",
                layer=direction.layer,
                restored=rises[0] / gap,
                random=tuple(rise / gap for rise in rises[1:]),
            )
        )
    return tuple(found)


def _rise(swapper: Swapper, direction: Direction, vector: Tensor, where: Tensor | None) -> float:
    def edits(run: Run, _twin: Run) -> Mapping[Component, Edit]:
        here = run.side.own if where is None else where
        return {Component(direction.layer, "block"): at_positions(add(vector), here)}

    changed = swapper.run(edits, first_layer=direction.layer).log_odds
    return float(changed[0] - swapper.clean()[0])


@torch.inference_mode()
def _features(
    model: LoadedModel,
    sae: SAE,
    pair: tuple[Asked, Asked],
    null: Sequence[tuple[Asked, Asked]],
    batch_tokens: int | None,
) -> tuple[AttackedFeature, ...]:
    """Features at the token before the response that an attack moves beyond neutral rewordings."""
    asked = [each.prompt for two in (pair, *null) for each in two]
    states = read_for(model, sae, asked, batch_tokens=batch_tokens).given
    fired = sae.module.encode(states.to(sae.module.device)).double().cpu().numpy()
    before, after = fired[::2], fired[1::2]
    tried = np.flatnonzero((before[0] > 0) | (after[0] > 0))
    if not len(tried):
        return ()
    usual = [predict((after - before)[1:, feature]) for feature in tried]
    # A feature that no rewording moves has no spread of its own; what others have is its least.
    moved = [each.error for each in usual if each.error > 0]
    least = float(np.median(moved)) if moved else 0.0
    usual = [replace(each, error=max(each.error, least)) for each in usual]
    changes = (after - before)[0, tried]
    p_values = [each.p_value(float(x)) for each, x in zip(usual, changes, strict=True)]
    q_values = benjamini_hochberg(np.array(p_values))
    labels = open_labels(sae)
    found = [
        AttackedFeature(
            feature=int(feature),
            plain=float(before[0, feature]),
            jailbroken=float(after[0, feature]),
            null=each.interval,
            q_value=float(q),
            beyond=bool(q < Q_LEVEL),
            label=labels.of(int(feature)).text,
        )
        for feature, each, q in zip(tried, usual, q_values, strict=True)
    ]
    return tuple(sorted(found, key=lambda f: (not f.beyond, -abs(f.jailbroken - f.plain))))


def _tokens(
    model: LoadedModel, asked: Asked, directions: SafetyDirections, batch_tokens: int | None
) -> tuple[TokenReading, ...]:
    """Both readings at every token of a prompt, and cosines at every layer."""
    layers = tuple(range(len(model.layers)))
    states = states_of(model, [asked], layers, batch_tokens=batch_tokens).values
    harm = directions.harm.read(states[:, directions.harm.layer])
    refusal = directions.refusal.read(states[:, directions.refusal.layer])
    cosines = along(states, directions)
    return tuple(
        TokenReading(
            text=model.tokenizer.decode([token]),
            in_request=asked.request_start <= i <= asked.request_end,
            in_tail=i > asked.message_end,
            harm=float(harm[i]),
            refusal=float(refusal[i]),
            harm_by_layer=tuple(np.round(cosines[i, :, 0], 4).tolist()),
            refusal_by_layer=tuple(np.round(cosines[i, :, 1], 4).tolist()),
        )
        for i, token in enumerate(asked.prompt.ids)
    )
