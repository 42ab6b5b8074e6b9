"""`find_features()`: which features of an SAE tell of safety, and which of them move refusals?

Two questions, answered on different prompts. **What a feature is about** is told by a contrast set
for each type: the mean of its activation over the tokens of a response or, where a pair is of
prompts, over the user's words and the template's end. **What it does** is told on harmful requests
and harmless ones, by its influence on the refusal log-odds.

A feature is called confirmed after two steps. Its influence has to be beyond that of all features
that fire about as often on the same tokens, corrected over the features that are listed for its
type. The most influential are then suppressed and boosted one by one, beside random features of
their density; both effects have to be beyond these, corrected over those tried, and their intervals
have to lie on one side of zero. A model that refuses nothing has features of all types, and nothing
is said of what they do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from typing_extensions import Unpack

from modelassay.data.concepts import Concept, concept_set_hash
from modelassay.data.feature_types import FEATURE_TYPES, feature_types
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.measures.bag_of_words import measure_bag_of_words
from modelassay.mechanism.feature_effects import Effects, rank_correlation, ranks_of
from modelassay.mechanism.feature_runs import BOOST, FeatureRuns
from modelassay.mechanism.features_report import (
    FeatureEffect,
    FeaturesReport,
    FoundFeature,
    InfluentialFeature,
    TypeFeatures,
)
from modelassay.mechanism.pairs import align_twins, match_requests
from modelassay.mechanism.separating import Separating, find_separating
from modelassay.mechanism.swapping import STEPS, Swapper
from modelassay.models import LoadedModel, ModelOptions, ModelRef, open_model
from modelassay.models.components import find_components
from modelassay.models.refs import require_template, take_ref
from modelassay.progress import OnPhase, phase_of, silent, told
from modelassay.reading.activations import common_prefix_length
from modelassay.reading.prompts import Encoded, encode_exchanges, encode_prompts
from modelassay.reading.thinking import thinking_of
from modelassay.sae import SAE, find_sae, sae_of
from modelassay.sae.firing import fire, mean_by_owner, read_for
from modelassay.sae.lookup import known_texts
from modelassay.statistics import mean_change
from modelassay.threads import sharing

N_PAIRS = 32
TOP = 10
"""Features that each half of a contrast set chooses: up to twice as many are listed."""


@sharing
def find_features(
    model: str | ModelRef | LoadedModel,
    *,
    sae: str | SAE | None = None,
    types: Sequence[str] | Mapping[str, Concept] | None = None,
    twins: Sequence[tuple[str, str]] | None = None,
    top: int = TOP,
    n_pairs: int = N_PAIRS,
    curve: bool = True,
    keep: Path | None = None,
    batch_tokens: int | None = None,
    on_progress: OnPhase = silent,
    **load_options: Unpack[ModelOptions],
) -> FeaturesReport:
    """Finds the features of safety in a model, and tries out what they do for its refusals.

    Args:
        model: An id (see `modelassay.load`), a reference or a loaded model.
        sae: As `modelassay.sae.find_sae` takes it, or one that is open, a transcoder as well; None
            takes the first on this machine that belongs to models of this shape.
        types: Names among `FEATURE_TYPES`, or contrast sets by name; None for all types.
        twins: A harmful prompt and its harmless twin each, to read refusals on; None takes the
            harmful requests of a scan, each with a harmless one of its length.
        top: Features that each half of a contrast set chooses.
        n_pairs: Most twins that are read.
        curve: Suppress the most influential features together.
        keep: Folder in which effects of features are kept as they come; a run that was stopped
            goes on from there.
        batch_tokens: Upper bound on tokens in a batch.
        on_progress: Told (phase, done, total).
        **load_options: Passed to `modelassay.load`.

    Raises:
        InputError: an unknown type, no SAE for the model, one that does not fit it or explains
            nothing of what it reads, or too few twins that align.
        UnavailableError: something needed is not there now.
    """
    require_template(load_options, "What features do for refusals")
    concepts = _concepts(types)
    ref, options = take_ref(model, load_options)
    if isinstance(sae, str):
        sae = find_sae(sae, token=options.get("token"), transcoders=True)
    loaded = open_model(ref, on_progress=on_progress, **options)
    opened = _sae_of(loaded) if sae is None else sae
    opened.check_belongs_to(loaded, transcoders=True)
    opened.module.to(loaded.device)

    contrasts = [
        _read_contrast(name, concept, loaded, opened, top, batch_tokens)
        for name, concept in told(list(concepts.items()), phase_of(on_progress, "contrast sets"))
    ]
    explained = float(np.mean([contrast.explained for contrast in contrasts]))
    if explained <= 0:
        raise InputError(
            f"The SAE {opened.name} explains nothing of what {opened.place} of"
            f" {loaded.info.id} makes (its mean would do better): it belongs to another model or"
            " layer."
        )

    swapper, reason = None, _no_template(loaded)
    if reason is None:
        swapper = _read_twins(loaded, opened, twins, n_pairs, batch_tokens, on_progress)
        reason = swapper.nothing_to_explain()
    effects = None
    if swapper is not None and reason is None:
        effects = Effects(FeatureRuns(swapper, opened, keep), on_progress)
    listed = [_type_features(contrast, effects) for contrast in contrasts]
    influential: tuple[InfluentialFeature, ...] = ()
    if effects is not None:
        influential = effects.influential({each.name: each.beyond for each in contrasts})
    rows = [*influential, *(row for each in listed for row in each.features)]
    known = known_texts(opened, [row.feature for row in rows])
    return FeaturesReport(
        model=loaded.info,
        sae=opened.name,
        layer=opened.layer,
        part="mlp" if opened.transcoder else "block",
        width=opened.width,
        explained=explained,
        nothing_to_explain=reason,
        difference=None
        if swapper is None
        else mean_change(swapper.clean() - swapper.clean(harmless=True)),
        influence_share=None if effects is None else effects.share,
        types=tuple(each.with_labels(known) for each in listed),
        influential=tuple(replace(row, label=known.get(row.feature)) for row in influential),
        rank_correlation=None if effects is None else effects.agreement(),
        curve=effects.curve() if effects is not None and curve else (),
        n_pairs=0 if swapper is None else len(swapper.pairs),
        provenance={
            "versions": installed_versions(),
            "contrast_sets_sha256": concept_set_hash(concepts.values()),
            "attribution_steps": STEPS,
            "boost": BOOST,
            "passes_above_the_sae": 0 if swapper is None else swapper.n_passes,
            "time": utc_now(),
        },
    )


def _concepts(types: Sequence[str] | Mapping[str, Concept] | None) -> dict[str, Concept]:
    if isinstance(types, Mapping) and types:
        return dict(types)
    known = feature_types()
    if unknown := [name for name in types or () if name not in known]:
        raise InputError(
            f"There is no feature type {unknown[0][:60]!r}; choose {', '.join(FEATURE_TYPES)}."
        )
    return {name: known[name] for name in dict.fromkeys(types or known)}


def _sae_of(model: LoadedModel) -> SAE:
    if (found := sae_of(model)) is None:
        raise InputError(
            f"No SAE of {model.info.id} is known here: give one with --sae (`modelassay sae list"
            " --model NAME` names those that others have published)."
        )
    return found


def _no_template(model: LoadedModel) -> str | None:
    if model.has_chat_template:
        return None
    return (
        f"{model.info.id} has no chat template: it does not refuse, and there is nothing to"
        " explain."
    )


def _read_twins(
    model: LoadedModel,
    sae: SAE,
    twins: Sequence[tuple[str, str]] | None,
    n_pairs: int,
    batch_tokens: int | None,
    on_progress: OnPhase,
) -> Swapper:
    pairs = match_requests(model, n_pairs) if twins is None else align_twins(model, twins, n_pairs)
    return Swapper(
        model,
        find_components(model.network),
        pairs,
        [sae.part],
        given=[sae.part] if sae.transcoder else (),
        batch_tokens=batch_tokens,
        on_progress=phase_of(on_progress, "twins"),
    )


@dataclass(frozen=True)
class _Contrast:
    """A contrast set as an SAE sees it."""

    name: str
    concept: Concept
    difference: np.ndarray
    """float64 [width], mean activation on the positive side minus that on the negative, a token."""
    explained: float
    """Share of the variance that the SAE explains."""
    chosen: tuple[Separating, ...]
    beyond: np.ndarray
    """Indices of all features that tell the sides apart beyond chance."""


def _read_contrast(
    name: str,
    concept: Concept,
    model: LoadedModel,
    sae: SAE,
    top: int,
    batch_tokens: int | None,
) -> _Contrast:
    sides = [pair.positive for pair in concept.pairs], [pair.negative for pair in concept.pairs]
    if concept.of_responses:
        asked = [pair.prompt for pair in concept.pairs]
        exchanges = [each for side in sides for each in zip(asked, side, strict=True)]
        encoded = encode_exchanges(model, exchanges)
    else:
        texts = [text for side in sides for text in side]
        encoded = _from_first_word(encode_prompts(model, texts, thinking=thinking_of(model)))
    read = read_for(model, sae, encoded, position="all", batch_tokens=batch_tokens)
    fired = fire(sae, read.given, read.made)
    owners = np.repeat(np.arange(len(encoded)), np.diff(np.array(read.offsets)))
    means = mean_by_owner(fired.values, np.arange(len(owners)), owners, len(encoded)).tocsr()
    positive, negative = means[: len(concept.pairs)], means[len(concept.pairs) :]
    difference = np.asarray((positive - negative).mean(axis=0)).ravel()
    chosen, beyond = find_separating(positive, negative, top)
    return _Contrast(name, concept, difference, fired.explained, chosen, beyond)


def _from_first_word(prompts: Sequence[Encoded]) -> list[Encoded]:
    """With the tokens that all begin with left out, and the first one in any case."""
    first = max(common_prefix_length(prompts), 1)
    return [replace(prompt, response_start=min(first, len(prompt.ids) - 1)) for prompt in prompts]


def _type_features(found: _Contrast, effects: Effects | None) -> TypeFeatures:
    words = measure_bag_of_words(found.concept)
    ranks = ranks_of(found.difference, found.beyond)
    done: dict[int, FeatureEffect] = {}
    if effects is not None:
        done = effects.of_type([each.feature for each in found.chosen], found.beyond)
    rows = [
        FoundFeature(
            **vars(each),
            label=None,
            rank=ranks[each.feature],
            beyond_words=each.auroc_interval[0] > max(words.auroc, 0.5),
            effect=done.get(each.feature),
        )
        for each in found.chosen
    ]
    if done:
        rows.sort(key=lambda row: done[row.feature].rank)
    correlation = None
    if effects is not None:
        correlation = rank_correlation(effects.mean[found.beyond], found.difference[found.beyond])
    return TypeFeatures(
        name=found.name,
        positive=found.concept.positive,
        negative=found.concept.negative,
        n_pairs=len(found.concept.pairs),
        words_auroc=words.auroc,
        n_beyond=len(found.beyond),
        rank_correlation=correlation,
        features=tuple(rows),
    )
