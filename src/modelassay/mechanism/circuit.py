"""`find_circuit()`: which parts of a model carry its refusals?

A component counts as relevant to safety where giving it what it makes of the harmless twin lowers
the refusal log-odds, by a hundredth of the twins' difference or more and beyond chance. Two tests
have to reject, corrected over all components (Benjamini & Hochberg 1995): random exchanges of the
twins' labels (sign flips), and a rank test against what the same component does between harmless
prompts that have nothing to do with each other (Mann & Whitney 1947), because any difference
between prompts moves something.

Whether the relevant ones make up a circuit is tried as well: only the strongest are left, all
others giving their means (is that faithful?), or the strongest alone give their means (is anything
left?), each beside as many other components drawn at random. The relevant ones come first; by how
strong they are is told on half of the pairs, and what becomes of them on the other half.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from typing_extensions import Unpack

from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.mechanism.keeping import Kept, key_of
from modelassay.mechanism.pairs import align_twins, match_requests, unrelated
from modelassay.mechanism.removal import remove_circuit
from modelassay.mechanism.report import CircuitReport, ComponentEffect, CurvePoint
from modelassay.mechanism.swapping import STEPS, NoGradientsError, Run, Swapper
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.models.components import Component, Components, find_components
from modelassay.models.refs import require_template, take_ref
from modelassay.progress import OnPhase, OnProgress, phase_of, silent, told
from modelassay.reading.interventions import Edit, at_positions, replace_by
from modelassay.statistics import benjamini_hochberg, mean_change, sign_flip_p_value
from modelassay.threads import sharing

N_PAIRS = 32
EXACT = 20
"""Components that are patched after the sweep of attributions."""
Q_LEVEL = 0.05
LEAST_SHARE = 0.01
"""Of the difference between the twins: what does less is told from nothing, but carries nothing."""
SIZES = (1, 2, 3, 4, 8, 16, 32)
N_RANDOM = 3
RANKS, SCORES = slice(0, None, 2), slice(1, None, 2)
"""Pairs that rank the components of a curve, and pairs that the curve is of."""
SEED = 0


@sharing
def find_circuit(
    model: str | ModelRef | LoadedModel,
    *,
    twins: Sequence[tuple[str, str]] | None = None,
    heads: bool = False,
    n_pairs: int = N_PAIRS,
    exact: int | None = EXACT,
    curve: bool = True,
    answers: bool = True,
    keep: Path | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> CircuitReport:
    """Finds the attention layers, MLPs or heads that carry a model's refusals.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        twins: A harmful prompt and its harmless twin each; None takes the harmful requests of a
            scan, each with a harmless one of its length.
        heads: Look at single heads in place of whole attention layers.
        n_pairs: Most pairs that are read.
        exact: Components that are patched one by one, the strongest by attribution; None for all.
        curve: Try out whether the strongest make up a circuit.
        answers: Let the model answer without its circuit, and without random components.
        keep: Folder in which patched components are kept as they come; a run that was stopped goes
            on from there.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: the model cannot be taken apart, refuses nothing, or too few pairs align.
        UnavailableError: something needed is not there now.
    """
    require_template(load_options, "A circuit of refusals")
    ref, options = take_ref(model, load_options)
    loaded = open_model(ref, on_progress=on_progress, **options)
    if not loaded.has_chat_template:
        raise InputError(
            f"{loaded.info.id} has no chat template: it does not refuse, and there is nothing to"
            " explain."
        )
    components = find_components(loaded.network)
    parts = _parts(components, heads)
    pairs = (
        match_requests(loaded, n_pairs) if twins is None else align_twins(loaded, twins, n_pairs)
    )

    swapper = Swapper(
        loaded,
        components,
        pairs,
        parts,
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "reading"),
    )
    harmful, harmless = swapper.clean(), swapper.clean(harmless=True)
    if (reason := swapper.nothing_to_explain()) is not None:
        raise InputError(reason)
    estimated: Estimated = {}
    sums, no_gradients = None, None
    try:
        estimated, sums = swapper.attribute(on_progress=phase_of(on_progress, "attribution"))
    except NoGradientsError as error:
        no_gradients = str(error)
    tried = list(parts)  # without gradients nothing says which are the strongest
    if estimated:
        tried.sort(key=lambda part: -abs(float(estimated[part].mean())))
        tried = tried[:exact]
    kept = Kept.open(keep, key_of(loaded, pairs, list(map(str, parts))))
    patched = _patch(swapper, tried, kept, phase_of(on_progress, "patching"))
    total = mean_change(harmful - harmless)
    least = LEAST_SHARE * total.mean
    # Only of those that chance and size leave over is it worth knowing what unrelated prompts do.
    asked = [
        part
        for part, (effect, _) in patched.items()
        if effect.mean() >= least and sign_flip_p_value(effect) < Q_LEVEL
    ]
    others = unrelated(pairs)[: len(pairs) // 2]
    null = Swapper(loaded, components, others, parts, batch_tokens=batch_tokens)
    usual: Estimated = {}
    if estimated:
        usual = null.attribute(on_progress=phase_of(on_progress, "unrelated attribution"))[0]
    progress = phase_of(on_progress, "unrelated patching")
    found = _patch(null, asked, kept, progress, "unrelated ")
    usual |= {part: effect for part, (effect, _) in found.items()}
    direct, rest = swapper.direct() or ({}, None)

    p_values = np.array([_p_value(part, estimated, usual, patched) for part in parts])
    q_values = benjamini_hochberg(p_values)
    effects = tuple(
        ComponentEffect(
            component=str(part),
            layer=part.layer,
            part=part.part,
            index=part.index,
            attribution=float(estimated[part].mean()) if estimated else None,
            effect=mean_change(patched[part][0]) if part in patched else None,
            kl=float(patched[part][1].mean()) if part in patched else None,
            direct=float((direct[part][0] - direct[part][1]).mean()) if part in direct else None,
            unrelated=float(np.abs(usual[part]).mean()) if part in usual else None,
            p_value=float(p),
            q_value=float(q),
            relevant=bool(q < Q_LEVEL and _mean(part, estimated, patched) >= least),
        )
        for part, p, q in zip(parts, p_values, q_values, strict=True)
    )
    ranked = sorted(parts, key=lambda part: -_mean(part, estimated, patched))
    circuit = [part for part in ranked if effects[parts.index(part)].relevant]
    order = _rank(parts, circuit, estimated, patched)
    means = swapper.means(parts) if curve or answers else {}
    points = _curve(swapper, parts, order, means, on_progress) if curve else ()
    removal = None
    if answers:
        removal = remove_circuit(
            loaded,
            components,
            circuit,
            [part for part in parts if part not in circuit],
            means,
            read=[prompt for pair in pairs for prompt in (pair.harmful, pair.harmless)],
            batch_tokens=batch_tokens,
            on_progress=phase_of(on_progress, "silencing"),
        )
    return CircuitReport(
        model=loaded.info,
        difference=total,
        refused=float(np.mean(1 / (1 + np.exp(-harmful)))),
        effects=tuple(sorted(effects, key=lambda e: -e.mean)),
        circuit=tuple(map(str, circuit)),
        curve=points,
        removal=removal,
        rank_correlation=_rank_correlation(estimated, patched),
        attribution_error=None
        if sums is None
        else _error(float(sums.mean()), float((harmful - swapper.replaced()).mean())),
        no_gradients=no_gradients,
        direct_rest=None if rest is None else float(rest.mean()),
        n_pairs=len(pairs),
        n_left_out=0 if twins is None else len(twins) - len(pairs),
        provenance={
            "versions": installed_versions(),
            "pairs_sha256": key_of(loaded, pairs, ()),
            "attribution_steps": STEPS,
            "forward_passes": swapper.n_passes,
            "heads": heads,
            "time": utc_now(),
        },
    )


def _parts(components: Components, heads: bool) -> tuple[Component, ...]:
    if components.unsure:
        raise InputError(f"The model cannot be taken apart: {components.unsure}.")
    wanted = ("head", "mlp") if heads else ("attention", "mlp")
    if heads and not components.of("head"):
        raise InputError(
            "This model's attention gives no heads to tell apart; leave --heads out for whole"
            " layers."
        )
    return components.of(*wanted)


Estimated = dict[Component, np.ndarray]
"""By component, the estimated effect [pair]; empty where weights give no gradients."""
Patched = dict[Component, tuple[np.ndarray, np.ndarray]]
"""By component, effect and KL [pair]."""


def _patch(
    swapper: Swapper,
    tried: Sequence[Component],
    kept: Kept,
    on_progress: OnProgress,
    prefix: str = "",
) -> Patched:
    before = swapper.clean()

    def patch(part: Component) -> tuple[np.ndarray, np.ndarray]:
        after = swapper.swap(part)
        return before - after.log_odds, after.kl

    found = {}
    for part in told(tried, on_progress):
        effect, kl = kept.get(f"{prefix}{part}", partial(patch, part))
        found[part] = (effect, kl)
    return found


def _mean(part: Component, estimated: Mapping[Component, np.ndarray], patched: Patched) -> float:
    return float((patched[part][0] if part in patched else estimated[part]).mean())


def _rank(
    parts: Sequence[Component],
    circuit: Sequence[Component],
    estimated: Mapping[Component, np.ndarray],
    patched: Patched,
) -> list[Component]:
    """Those beyond chance, then the others; each by their effect on the pairs that rank them."""
    effects = {part: patched[part][0] if part in patched else estimated[part] for part in parts}
    return sorted(parts, key=lambda c: (c not in circuit, -float(effects[c][RANKS].mean())))


def _p_value(
    part: Component,
    estimated: Mapping[Component, np.ndarray],
    usual: Mapping[Component, np.ndarray],
    patched: Patched,
) -> float:
    """The larger of two: both have to reject (Berger 1982).

    Without gradients only those that may be relevant are held against unrelated prompts.
    """
    from scipy.stats import mannwhitneyu

    if part not in usual:
        return 1.0
    effect = patched[part][0] if part in patched else estimated[part]
    among, any_ = np.abs(effect), np.abs(usual[part])
    if not (among.any() or any_.any()):
        return 1.0
    return max(
        sign_flip_p_value(effect), float(mannwhitneyu(among, any_, alternative="greater").pvalue)
    )


def _rank_correlation(estimated: Mapping[Component, np.ndarray], patched: Patched) -> float | None:
    """Spearman's, of attribution with exact patching; None of fewer than three, or without."""
    from scipy.stats import spearmanr

    if len(patched) < 3 or not estimated:
        return None
    by_gradient = [float(estimated[part].mean()) for part in patched]
    exact = [float(effect.mean()) for effect, _ in patched.values()]
    found: Any = spearmanr(by_gradient, exact)
    return float(found.statistic)


def _error(found: float, whole: float) -> float | None:
    """How far a sum misses what it ought to be, as a share; None of hardly anything."""
    return abs(found - whole) / abs(whole) if abs(whole) > 1e-6 else None


def _curve(
    swapper: Swapper,
    parts: Sequence[Component],
    ranked: Sequence[Component],
    means: Mapping[Component, Tensor],
    on_progress: OnPhase,
) -> tuple[CurvePoint, ...]:
    def gap(silenced: Sequence[Component]) -> float:
        """Difference of the mean log-odds with these components giving their means."""

        def edits(run: Run, _twin: Run) -> Mapping[Component, Edit]:
            return {c: at_positions(replace_by(means[c]), run.side.own) for c in silenced}

        a, b = (swapper.run(edits, harmless=side).log_odds for side in (False, True))
        return float((a - b)[SCORES].mean())

    whole = float((swapper.clean() - swapper.clean(harmless=True))[SCORES].mean())
    empty = gap(parts)
    rng = np.random.default_rng(SEED)
    sizes = [k for k in SIZES if k < len(parts)]

    def shares(chosen: Sequence[Component]) -> tuple[float, float]:
        rest = [part for part in parts if part not in set(chosen)]
        kept = (gap(rest) - empty) / (whole - empty)
        return kept, gap(chosen) / whole

    found = []
    for k in told(sizes, phase_of(on_progress, "circuit")):
        kept, left = shares(ranked[:k])
        outside = list(ranked[k:])
        draws = [
            [outside[i] for i in rng.choice(len(outside), size=k, replace=False)]
            for _ in range(N_RANDOM if len(outside) >= k else 0)
        ]
        random = [shares(draw) for draw in draws]
        found.append(
            CurvePoint(
                size=k,
                faithfulness=kept,
                left=left,
                random_faithfulness=tuple(each[0] for each in random),
                random_left=tuple(each[1] for each in random),
            )
        )
    return tuple(found)
