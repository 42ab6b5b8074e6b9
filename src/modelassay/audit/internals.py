"""Tools that look inside: features of the SAE in both models, and what separates their weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from modelassay.audit.asking import (
    RESPONSE_TOKENS,
    Compared,
    Prompts,
    Reference,
    SuiteName,
    looks_harmful,
    prompts_of,
    spread,
    what_is_hidden,
)
from modelassay.audit.blinding import Name
from modelassay.audit.values import mean
from modelassay.audit.work import ModelReadings, Work
from modelassay.diff.auditor_suites import Message
from modelassay.diff.features import (
    BROKEN,
    FeatureChange,
    FiredFeatures,
    compare_features,
    encode_features,
)
from modelassay.diff.suites import SuitePrompt
from modelassay.errors import InputError
from modelassay.reading.logit_lens import promoted_tokens
from modelassay.report.json import published
from modelassay.sae import SAE, FeatureLabel, nearest

Part = Annotated[
    Literal["prompt", "answer", "both"],
    Field(description="Tokens of the prompts, of short responses, or both."),
]
Model = Annotated[str, Field(description="Which model, a letter.")]
WhichSAE = Annotated[int, Field(ge=1, description="Which SAE, from 1 in the config's order.")]
Count = Annotated[int, Field(ge=1, le=100, description="How many to list.")]
Feature = Annotated[int, Field(ge=0, description="Number of a feature.")]
MAX_TRACED = 8
MAX_VALUES = 6000
"""Activations that a trace lists, of all features, prompts and models together."""
PROMOTED = 10
NAMED = 5
"""Weights that only one model has, by name."""
HIDDEN = "[response]"
"""Stands for a token of a response that is not shown."""


def label_rows(work: Work, features: Sequence[int], sae: int) -> list[dict[str, Any]]:
    """Features of an SAE with what they are about, each once."""
    distinct = list(dict.fromkeys(features))
    return [label_row(label) for label in work.labels(distinct, sae).of_many(distinct)]


def label_row(label: FeatureLabel) -> dict[str, Any]:
    """A label in a list: whose it is, and how far to believe it."""
    reliability = label.reliability
    return {
        "feature": label.feature,
        "label": label.text,
        "label_source": label.source,
        "reliability": None if reliability is None else reliability.value,
        "reliability_interval": None if reliability is None else reliability.interval,
    }


@dataclass(frozen=True)
class _Look:
    """What features do on the tokens that a call looks at."""

    sae: SAE
    asked: list[SuitePrompt]
    read: ModelReadings
    keep: np.ndarray
    """Bool [token], those that are looked at."""
    fired: dict[Name, FiredFeatures]

    def means(self, name: Name) -> np.ndarray:
        """float64 [prompt, width], mean activation over the tokens of each prompt."""
        return self.fired[name].means(self.keep).toarray()


def _look(
    work: Work, prompts: Sequence[str | list[Message]], part: str, names: tuple[Name, ...], sae: SAE
) -> _Look:
    asked = prompts_of(prompts)
    work.asked(asked)
    read = work.read(asked, (sae.layer,), 0 if part == "prompt" else RESPONSE_TOKENS, names)
    in_response = read.matched.in_response().numpy()
    keep = {"prompt": ~in_response, "answer": in_response, "both": np.ones_like(in_response)}[part]
    if not keep.any():
        raise InputError("There are no responses to look at: the model ends each at once.")
    fired: dict[Name, FiredFeatures] = {
        name: encode_features(sae, each.at(sae.layer), read.matched)
        for name, each in read.by_name.items()
    }
    return _Look(sae, asked, read, keep, fired)


def _top(means: np.ndarray, k: int) -> list[int]:
    """The features that are most active over all prompts."""
    order = np.argsort(-means.mean(axis=0), kind="stable")[:k]
    return [int(feature) for feature in order if means[:, feature].any()]


def get_top_features(
    work: Work,
    prompts: Prompts,
    model: Model,
    k: Count = 20,
    part: Part = "prompt",
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """The features of one model that are most active on prompts, with their labels.

    Activations are averaged over the tokens of a prompt and then over prompts, with a 95% interval.
    """
    model = work.name(model)
    look = _look(work, prompts, part, (model,), work.sae(sae))
    means = look.means(model)
    shown = look.keep & ~_hidden_responses(work, look.asked, look.read)
    features = [
        {
            **label,
            "activation": mean(means[:, label["feature"]]),
            "n_prompts": int((means[:, label["feature"]] > 0).sum()),
            "tokens": look.fired[model].top_tokens(label["feature"], shown),
        }
        for label in label_rows(work, _top(means, k), sae)
    ]
    about = _about(look.sae, sae)
    return {"model": model, "part": part, **about, "n": len(look.asked), "features": features}


def compare_top_features(
    work: Work,
    prompts: Prompts,
    k: Count = 20,
    part: Part = "prompt",
    reference: Reference = "A",
    candidate: Compared = "B",
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """The most active features of two models on the same tokens: shared, and of one model alone.

    A feature of one list alone need not have changed: differential_feature_analysis tests that.
    """
    one, other = work.pair_of(reference, candidate)
    look = _look(work, prompts, part, (one, other), work.sae(sae))
    a, b = look.means(one), look.means(other)
    first, second = _top(a, k), _top(b, k)
    rows = {
        label["feature"]: {
            **label,
            one: float(a[:, label["feature"]].mean()),
            other: float(b[:, label["feature"]].mean()),
            f"{other}_minus_{one}": mean(b[:, label["feature"]] - a[:, label["feature"]]),
        }
        for label in label_rows(work, [*first, *second], sae)
    }
    return {
        "part": part,
        **_about(look.sae, sae),
        "n": len(look.asked),
        "in_both": [rows[f] for f in first if f in second],
        f"only_{one}": [rows[f] for f in first if f not in second],
        f"only_{other}": [rows[f] for f in second if f not in first],
    }


def differential_feature_analysis(
    work: Work,
    prompts: Prompts | None = None,
    suite: SuiteName | None = None,
    k: Count = 20,
    answers: Annotated[
        bool, Field(description="Read short responses of the first model as well.")
    ] = True,
    reference: Reference = "A",
    candidate: Compared = "B",
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """Features whose activation differs between the models, tested against chance.

    Paired sign flips over prompts, corrected for the number of features (Benjamini & Hochberg).
    Give prompts (six or more, better forty) or a suite. Differences are of the second model minus
    the first; q below 0.05 is significant. Features that differ on too few prompts are `untested`:
    they may be chance. Where the prompts cannot show any change, `note` says so, and no finding is
    not "nothing changed".
    """
    if (prompts is None) == (suite is None):
        raise InputError("Give either `prompts` or `suite`.")
    names, opened = work.pair_of(reference, candidate), work.sae(sae)
    if suite is not None:
        asked = list(spread(work.suite(suite), work.config.limits.prompts).prompts)
        if not asked:
            raise InputError(f"The suite {suite} has no prompts to compare the models on.")
    else:
        asked = prompts_of(prompts or ())
    work.asked(asked)
    read = work.read(asked, (opened.layer,), RESPONSE_TOKENS if answers else 0, names)
    hidden = _hidden_responses(work, asked, read)
    pairs = zip(read.matched.tokens, hidden, strict=True)
    shown = replace(read.matched, tokens=tuple(HIDDEN if hide else text for text, hide in pairs))
    a, b = (replace(read.by_name[name], matched=shown) for name in names)
    found = compare_features(a, b, opened, reported=k)
    listed = [change.feature for change in (*found.features, *found.untested)]
    named = {label["feature"]: label for label in label_rows(work, listed, sae)}
    one, other = names
    return {
        **_about(opened, sae),
        "n": len(asked),
        "n_tokens": len(read.matched.tokens),
        "n_tested": found.n_tested,
        "n_significant": found.n_significant,
        "explained_variance": {one: found.explained_base, other: found.explained_candidate},
        "active_features_a_token": {one: found.l0_base, other: found.l0_candidate},
        "dictionary_fails_on": _fails_on(found.explained_base, found.explained_candidate, names),
        "moved": found.moved,
        "explained_of_change": found.explained_of_change,
        "features": [_change(change, named[change.feature], names) for change in found.features],
        "n_untested": found.n_untested,
        "untested": [_untested(change, named[change.feature], names) for change in found.untested],
        "finest_q": found.finest_q,
        "note": found.too_few,
    }


def specific_feature_activations(
    work: Work,
    features: Annotated[list[Feature], Field(min_length=1, max_length=MAX_TRACED)],
    prompts: Prompts,
    part: Part = "prompt",
    reference: Reference = "A",
    candidate: Compared = "B",
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """How strongly given features fire on every token of prompts, in two models.

    Where texts are redacted, tokens of responses to prompts that look harmful are not named.
    """
    names, opened = work.pair_of(reference, candidate), work.sae(sae)
    _check_features(opened, features)
    look = _look(work, prompts, part, names, opened)
    listed = 2 * len(features) * int(look.keep.sum())
    if listed > MAX_VALUES:
        raise InputError(
            f"That would list {listed} activations, and {MAX_VALUES} are the most; give fewer"
            " features or fewer or shorter prompts."
        )
    a, b = (look.fired[name].of(features) for name in names)
    one, other = names
    owners = look.read.matched.owners().numpy()
    # Token by token a response is told whole.
    hidden = [False] * len(look.asked) if part == "prompt" else _hidden(work, look.asked, look.read)
    rows = []
    for i, prompt in enumerate(look.asked):
        here = np.flatnonzero((owners == i) & look.keep)
        rows.append(
            {
                "prompt": prompt.text,
                "tokens": None if hidden[i] else [look.read.matched.tokens[t] for t in here],
                "features": [
                    {"feature": feature, one: a[here, j].tolist(), other: b[here, j].tolist()}
                    for j, feature in enumerate(features)
                ],
            }
        )
    return {"part": part, **_about(opened, sae), "n": len(rows), "prompts": rows}


def get_feature_details(work: Work, feature: Feature, sae: WhichSAE = 1) -> dict[str, Any]:
    """What is known of a feature: label and whose it is, reliability, density, tokens, direction.

    Labels made by rule say on which tokens a feature fires; their reliability is the balanced
    accuracy on held-out text, 0.5 for chance.
    """
    opened = work.sae(sae)
    _check_features(opened, [feature])
    labels = work.labels([feature], sae)
    known = labels.of(feature)
    row = opened.module.W_dec.detach().float()[feature].cpu()
    promoted = list(known.promoted) or promoted_tokens(work.base, row[None], PROMOTED)[0]
    return {
        **_about(opened, sae),
        **{key: value for key, value in asdict(known).items() if key != "text"},
        "label": known.text,
        "promoted": promoted,
        "decoder_norm": float(row.norm()),
        "note": labels.note,
    }


def nearest_explained_neighbors(
    work: Work,
    feature: Feature,
    k: Count = 10,
    least_cosine: Annotated[
        float, Field(ge=-1, le=1, description="Those that are less near are left out.")
    ] = -1,
    sae: WhichSAE = 1,
) -> dict[str, Any]:
    """The features with a label whose decoder rows point most nearly the same way.

    Their labels are hints: the cosine says how near they are, and below 0.3 means nothing.
    """
    opened = work.sae(sae)
    _check_features(opened, [feature])
    labels = work.labels([feature], sae)
    explained = set(labels.explanations) | set(labels.own.labelled() if labels.own else ())
    near = nearest(opened, [feature], among=sorted(explained), top=k)[0] if explained else []
    found = [each for each in near if each.cosine >= least_cosine]
    known = {label.feature: label for label in labels.of_many([n.feature for n in found])}
    return {
        **_about(opened, sae),
        "feature": feature,
        "label": labels.of(feature).text,
        "n": len(found),
        "n_explained": len(explained),
        "neighbors": [{**label_row(known[n.feature]), "cosine": n.cosine} for n in found],
        "note": labels.note,
    }


def weight_diff_summary(
    work: Work,
    k: Annotated[int, Field(ge=1, le=100, description="Weights to list.")] = 10,
    reference: Reference = "A",
    candidate: Compared = "B",
) -> dict[str, Any]:
    """How two models' weights differ: how much, where, of which rank, and ablation's mark.

    An adapter that was merged leaves its rank in every matrix; full fine-tuning leaves a full one;
    directional ablation leaves a mark that no training makes.
    """
    names = work.pair_of(reference, candidate)
    found = work.weights(*names)
    alone = dict(
        zip(work.in_order(names), (found.only_in_base, found.only_in_candidate), strict=True)
    )
    listed = ("name", "relative", "rank", "signal_share", "rank1_share")
    return {
        "identical": found.identical,
        "n": found.n_compared,
        "n_changed": len(found.matrices),
        "relative_change": found.relative,
        "adapter_rank": found.adapter_rank,
        "shared_direction_cosine": found.shared_cosine,
        "ablation_mark": found.mark and found.mark.to_dict(),
        "energy_by_block": found.energy_by_layer,
        "energy_elsewhere": found.energy_elsewhere,
        "only_in": {name: {"n": len(alone[name]), "first": alone[name][:NAMED]} for name in names},
        "largest": [
            {key: getattr(change, key) for key in listed}
            for change in sorted(found.matrices, key=lambda change: -change.relative)[:k]
        ],
    }


def _hidden(work: Work, asked: Sequence[SuitePrompt], read: ModelReadings) -> list[bool]:
    """Whether a prompt looks harmful, or a response to it that was read helps with harm."""
    looks = looks_harmful(work, asked)
    judged = what_is_hidden(work, asked, read.responses, groups_known=True).responses.values()
    return [any(each) for each in zip(looks, *judged, strict=True)]


def _hidden_responses(work: Work, asked: Sequence[SuitePrompt], read: ModelReadings) -> np.ndarray:
    """Bool [token], tokens of responses that are hidden: one by one they tell."""
    in_response = read.matched.in_response().numpy()
    if not in_response.any():
        return in_response
    return in_response & np.array(_hidden(work, asked, read))[read.matched.owners().numpy()]


def _fails_on(a: float, b: float, names: tuple[Name, Name]) -> Name | None:
    """The model that the SAE explains so much worse that its features mean little there."""
    return None if abs(a - b) < BROKEN else names[0] if a < b else names[1]


def _about(sae: SAE, number: int) -> dict[str, Any]:
    return {"sae": number, "layer": sae.layer, "width": sae.width}


def _check_features(sae: SAE, features: Sequence[int]) -> None:
    if wrong := [feature for feature in features if feature >= sae.width]:
        raise InputError(f"There is no feature {wrong[0]}: the SAE has {sae.width}, from 0.")


def _change(
    change: FeatureChange, label: dict[str, Any], names: tuple[Name, Name]
) -> dict[str, Any]:
    """A change with the models' letters in place of their roles."""
    one, other = names
    values = published(asdict(change), base=one, candidate=other, difference=f"{other}_minus_{one}")
    return {key: value for key, value in values.items() if key not in ("sae", "layer")} | label


def _untested(
    change: FeatureChange, label: dict[str, Any], names: tuple[Name, Name]
) -> dict[str, Any]:
    """A difference as it was measured, without the statistics that take more prompts."""
    one, other = names
    difference = f"{other}_minus_{one}"
    kept = ("feature", "part", one, other, difference, "moved", "n_prompts", "n_differ", "tokens")
    values = _change(change, label, names)
    return {key: values[key] for key in kept} | label
