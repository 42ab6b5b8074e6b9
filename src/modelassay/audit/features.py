"""Tools that look inside: features of the SAE in both models, and what they are about.

Activations of all features are never held for all tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from modelassay.audit.asking import Prompts, SuiteName, looks_harmful, prompts_of, spread
from modelassay.audit.reading import read_one, read_pair
from modelassay.audit.values import mean
from modelassay.audit.work import Work
from modelassay.diff.features import BROKEN, FeatureChange, compare_features
from modelassay.diff.reading import Matched
from modelassay.diff.suites import SuitePrompt
from modelassay.errors import InputError
from modelassay.reading.logit_lens import promoted_tokens
from modelassay.sae import SAE, FeatureLabel, nearest

TOKENS_AT_ONCE = 512
TOP_TOKENS = 8
Part = Annotated[
    Literal["prompt", "answer", "both"],
    Field(description="Tokens of the prompts, of short answers, or both."),
]
Model = Annotated[Literal["A", "B"], Field(description="Which model.")]
Count = Annotated[int, Field(ge=1, le=100, description="How many to list.")]
Feature = Annotated[int, Field(ge=0, description="Number of a feature.")]
RESPONSE_TOKENS = 24
MAX_TRACED = 8
MAX_VALUES = 6000
"""Activations that a trace lists, of all features, prompts and models together."""
PROMOTED = 10
HIDDEN = "[answer]"
"""Stands for a token of a response that is not shown."""


@torch.inference_mode()
def prompt_means(sae: SAE, activations: Tensor, matched: Matched, keep: np.ndarray) -> np.ndarray:
    """float32 [prompt, width], mean activation over the kept tokens of each prompt."""
    module, owners = sae.module, matched.owners()
    kept = torch.from_numpy(keep)
    sums = torch.zeros(len(matched.lengths), sae.width)
    for start in range(0, len(activations), TOKENS_AT_ONCE):
        part = slice(start, start + TOKENS_AT_ONCE)
        chosen = kept[part]
        if chosen.any():
            found = module.encode(activations[part][chosen].to(module.device)).float().cpu()
            sums.index_add_(0, owners[part][chosen], found)
    counts = torch.bincount(owners[kept], minlength=len(sums)).clamp_min(1)
    return (sums / counts[:, None]).numpy()


@torch.inference_mode()
def feature_activations(sae: SAE, activations: Tensor, features: Sequence[int]) -> np.ndarray:
    """float32 [token, feature] of some features."""
    module = sae.module
    parts = [
        module.encode(rows.to(module.device))[:, list(features)].float().cpu()
        for rows in activations.split(TOKENS_AT_ONCE)
    ]
    return torch.cat(parts).numpy()


def top_tokens(
    sae: SAE,
    activations: Tensor,
    keep: np.ndarray,
    tokens: Sequence[str],
    features: Sequence[int],
) -> dict[int, list[str]]:
    """The tokens on which each feature fires most, each once."""
    if not features:
        return {}
    values = np.where(keep[:, None], feature_activations(sae, activations, features), 0)
    found = {}
    for j, feature in enumerate(features):
        order = np.argsort(-values[:, j], kind="stable")
        fired = (tokens[t] for t in order if values[t, j] > 0)
        found[feature] = list(dict.fromkeys(fired))[:TOP_TOKENS]
    return found


def label_rows(work: Work, features: Sequence[int]) -> list[dict[str, Any]]:
    """Features with what they are about, each once."""
    distinct = list(dict.fromkeys(features))
    return [label_row(label) for label in work.labels(distinct).of_many(distinct)]


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


def get_top_features(
    work: Work, prompts: Prompts, model: Model, k: Count = 20, part: Part = "prompt"
) -> dict[str, Any]:
    """The features of one model that are most active on prompts, with their labels.

    Activations are averaged over the tokens of a prompt and then over prompts, with a 95% interval.
    """
    sae, asked = _asked(work, prompts)
    read = read_one(work, model, asked, (sae.layer,), _length(part))
    keep = _kept(read.matched, part)
    means = prompt_means(sae, read.reading.at(sae.layer), read.matched, keep)
    top = np.argsort(-means.mean(axis=0), kind="stable")[:k]
    top = [int(f) for f in top if means[:, f].any()]
    shown = keep & ~_hidden_responses(work, asked, read.matched)
    tokens = top_tokens(sae, read.reading.at(sae.layer), shown, read.tokens, top)
    return {
        "model": model,
        "part": part,
        **_about(sae),
        "n": len(asked),
        "features": [
            {
                **label,
                "activation": mean(means[:, label["feature"]].astype(float)),
                "n_prompts": int((means[:, label["feature"]] > 0).sum()),
                "tokens": tokens[label["feature"]],
            }
            for label in label_rows(work, top)
        ],
    }


def compare_top_features(
    work: Work, prompts: Prompts, k: Count = 20, part: Part = "prompt"
) -> dict[str, Any]:
    """The most active features of each model on the same tokens: shared, and of one model alone.

    A feature of one list alone need not have changed: differential_feature_analysis tests that.
    """
    sae, asked = _asked(work, prompts)
    read = read_pair(work, asked, (sae.layer,), _length(part))
    keep = _kept(read.matched, part)
    means = {
        name: prompt_means(sae, each.at(sae.layer), read.matched, keep)
        for name, each in (("A", read.a), ("B", read.b))
    }
    tops = {
        name: [int(f) for f in np.argsort(-m.mean(axis=0), kind="stable")[:k] if m[:, f].any()]
        for name, m in means.items()
    }
    every = list(dict.fromkeys([*tops["A"], *tops["B"]]))
    rows = {
        label["feature"]: {
            **label,
            "A": float(means["A"][:, label["feature"]].mean()),
            "B": float(means["B"][:, label["feature"]].mean()),
            "B_minus_A": mean(
                (means["B"][:, label["feature"]] - means["A"][:, label["feature"]]).astype(float)
            ),
        }
        for label in label_rows(work, every)
    }
    first, second = set(tops["A"]), set(tops["B"])
    return {
        "part": part,
        **_about(sae),
        "n": len(asked),
        "in_both": [rows[f] for f in every if f in first & second],
        "only_A": [rows[f] for f in every if f in first - second],
        "only_B": [rows[f] for f in every if f in second - first],
    }


def differential_feature_analysis(
    work: Work,
    prompts: Prompts | None = None,
    suite: SuiteName | None = None,
    k: Count = 20,
    answers: Annotated[bool, Field(description="Read short answers of A as well.")] = True,
) -> dict[str, Any]:
    """Features whose activation differs between the models, tested against chance.

    Paired sign flips over prompts, corrected for the number of features (Benjamini & Hochberg).
    Give prompts (six or more, better forty) or a suite. Differences are B minus A; q below 0.05 is
    significant.
    """
    if (prompts is None) == (suite is None):
        raise InputError("Give either `prompts` or `suite`.")
    sae = work.sae
    if suite is not None:
        asked = list(spread(work.suite(suite), work.config.limits.prompts).prompts)
        if not asked:
            raise InputError(f"The suite {suite} has no prompts to compare the models on.")
    else:
        asked = prompts_of(prompts or ())
    work.asked(asked)
    read = read_pair(work, asked, (sae.layer,), RESPONSE_TOKENS if answers else 0)
    hidden = _hidden_responses(work, asked, read.matched)
    named_tokens = [
        HIDDEN if hide else text for text, hide in zip(read.tokens, hidden, strict=True)
    ]
    found = compare_features(read.a, read.b, read.matched, sae, named_tokens, reported=k)
    named = {
        label["feature"]: label for label in label_rows(work, [c.feature for c in found.features])
    }
    return {
        **_about(sae),
        "n": len(asked),
        "n_tokens": len(read.tokens),
        "n_tested": found.n_tested,
        "n_significant": found.n_significant,
        "explained_variance": {"A": found.explained_base, "B": found.explained_candidate},
        "active_features_a_token": {"A": found.l0_base, "B": found.l0_candidate},
        "dictionary_fails_on": _fails_on(found.explained_base, found.explained_candidate),
        "moved": found.moved,
        "explained_of_change": found.explained_of_change,
        "features": [_change(change, named[change.feature]) for change in found.features],
    }


def specific_feature_activations(
    work: Work,
    features: Annotated[list[Feature], Field(min_length=1, max_length=MAX_TRACED)],
    prompts: Prompts,
    part: Part = "prompt",
) -> dict[str, Any]:
    """How strongly given features fire on every token of prompts, in both models.

    Where texts are redacted, tokens of responses to prompts that look harmful are not named.
    """
    sae, asked = _asked(work, prompts)
    _check_features(sae, features)
    read = read_pair(work, asked, (sae.layer,), _length(part))
    keep = _kept(read.matched, part)
    listed = 2 * len(features) * int(keep.sum())
    if listed > MAX_VALUES:
        raise InputError(
            f"That would list {listed} activations, and {MAX_VALUES} are the most; give fewer"
            " features or fewer or shorter prompts."
        )
    a = feature_activations(sae, read.a.at(sae.layer), features)
    b = feature_activations(sae, read.b.at(sae.layer), features)
    owners = read.matched.owners().numpy()
    # Answers token by token are responses.
    hidden = looks_harmful(work, asked) if part != "prompt" else [False] * len(asked)
    rows = []
    for i, prompt in enumerate(asked):
        here = np.flatnonzero((owners == i) & keep)
        rows.append(
            {
                "prompt": prompt.text,
                "tokens": None if hidden[i] else [read.tokens[t] for t in here],
                "features": [
                    {"feature": feature, "A": a[here, j].tolist(), "B": b[here, j].tolist()}
                    for j, feature in enumerate(features)
                ],
            }
        )
    return {"part": part, **_about(sae), "n": len(asked), "prompts": rows}


def get_feature_details(work: Work, feature: Feature) -> dict[str, Any]:
    """What is known of a feature: label and whose it is, reliability, density, tokens, direction.

    Labels made by rule say on which tokens a feature fires; their reliability is the balanced
    accuracy on held-out text, 0.5 for chance.
    """
    sae = work.sae
    _check_features(sae, [feature])
    labels = work.labels([feature])
    known = labels.of(feature)
    row = sae.module.W_dec.detach().float()[feature].cpu()
    promoted = list(known.promoted) or promoted_tokens(work.base, row[None], PROMOTED)[0]
    return {
        **_about(sae),
        **{key: value for key, value in asdict(known).items() if key != "text"},
        "label": known.text,
        "promoted": promoted,
        "decoder_norm": float(row.norm()),
        "note": labels.note,
    }


def nearest_explained_neighbors(work: Work, feature: Feature, k: Count = 10) -> dict[str, Any]:
    """The features with a label whose decoder rows point most nearly the same way.

    Their labels are hints: the cosine says how near they are, and below 0.3 means nothing.
    """
    sae = work.sae
    _check_features(sae, [feature])
    labels = work.labels([feature])
    explained = set(labels.explanations) | set(labels.own.labelled() if labels.own else ())
    found = nearest(sae, [feature], among=sorted(explained), top=k)[0] if explained else []
    known = {label.feature: label for label in labels.of_many([n.feature for n in found])}
    return {
        **_about(sae),
        "feature": feature,
        "label": labels.of(feature).text,
        "n": len(found),
        "n_explained": len(explained),
        "neighbors": [{**label_row(known[n.feature]), "cosine": n.cosine} for n in found],
        "note": labels.note,
    }


def _hidden_responses(work: Work, asked: Sequence[SuitePrompt], matched: Matched) -> np.ndarray:
    """Bool [token], tokens of responses to prompts that look harmful: one by one they tell."""
    in_response = matched.in_response().numpy()
    if not in_response.any():
        return in_response
    return in_response & np.array(looks_harmful(work, asked))[matched.owners().numpy()]


def _fails_on(a: float, b: float) -> str | None:
    """The model that the SAE explains so much worse that its features mean little there."""
    return None if abs(a - b) < BROKEN else "A" if a < b else "B"


def _asked(work: Work, prompts: Sequence[str]) -> tuple[SAE, list[SuitePrompt]]:
    sae = work.sae
    asked = prompts_of(prompts)
    work.asked(asked)
    return sae, asked


def _about(sae: SAE) -> dict[str, Any]:
    return {"layer": sae.layer, "width": sae.width}


def _check_features(sae: SAE, features: Sequence[int]) -> None:
    if wrong := [feature for feature in features if feature >= sae.width]:
        raise InputError(f"There is no feature {wrong[0]}: the SAE has {sae.width}, from 0.")


def _length(part: str) -> int:
    return 0 if part == "prompt" else RESPONSE_TOKENS


def _kept(matched: Matched, part: str) -> np.ndarray:
    """Bool [token], the tokens that are looked at."""
    in_response = matched.in_response().numpy()
    keep = {"prompt": ~in_response, "answer": in_response, "both": np.ones_like(in_response)}[part]
    if not keep.any():
        raise InputError("There are no answers to look at: the model ends each at once.")
    return keep


def _change(change: FeatureChange, label: dict[str, Any]) -> dict[str, Any]:
    """A change with the models' names in place of their roles."""
    return {
        **label,
        "part": change.part,
        "A": change.base,
        "B": change.candidate,
        "B_minus_A": change.difference,
        "interval": change.interval,
        "effect": change.effect,
        "moved": change.moved,
        "p_value": change.p_value,
        "q_value": change.q_value,
        "n_prompts": change.n_prompts,
        "tokens": change.tokens,
    }
