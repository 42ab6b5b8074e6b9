"""Labels of features, made from a stream of text by rule; no language model writes them.

A label says on which tokens a feature fires (or after which, where the tokens before are more alike
than those it fires on), and which tokens its direction promotes. It is a summary of a dozen of the
strongest firings and of a dozen drawn from all of them, so it can miss what the others are about:
`reliability` tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_matrix

from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.models import LoadedModel
from modelassay.progress import OnProgress
from modelassay.report.text import plain_line
from modelassay.sae.evidence import (
    FeatureEvidence,
    Scores,
    count_predictions,
    gather_evidence,
    promoted_ids,
    read_features,
    score_labels,
)
from modelassay.sae.files import SAE
from modelassay.sae.labels import SNIPPET, FeatureLabels, LabelsRecord, weights_hash

LONGEST = 40
PROMOTED = 8
NAMED, NAMED_PROMOTED = 4, 3
"""Tokens that a label's text names; the tables have them all."""
AFTER_MARGIN = 0.25
"""By how much more alike the tokens before must be for a label to name them."""
SEEN_AT_LEAST = 2
"""Times that a token is among the firings looked at, for a label to name it."""


class Vocabulary:
    """A model's tokens as text of one line."""

    def __init__(self, model: LoadedModel) -> None:
        self.tokenizer = model.tokenizer
        size = max(len(model.tokenizer), model.network.get_input_embeddings().weight.shape[0])
        self._texts: dict[int, str] = {}
        numbers: dict[str, int] = {}
        raw = model.tokenizer.convert_ids_to_tokens(list(range(len(model.tokenizer))))
        plain = [str(token).lstrip("Ġ▁ ").lower() or str(token) for token in raw]
        plain += [f"<{number}>" for number in range(len(plain), size)]  # rows that have no token
        self.kinds = np.array([numbers.setdefault(token, len(numbers)) for token in plain])
        """int64 [vocabulary]: tokens that differ only in case or in a space before are alike."""
        self.n_kinds = len(numbers)

    def text(self, token: int) -> str:
        """A token as text; what cannot be printed is escaped."""
        if token not in self._texts:
            text = self._decode([token])
            if "�" in text or not text:  # part of a character, or a row that has no token
                text = str(self.tokenizer.convert_ids_to_tokens(token) or f"<{token}>")
            self._texts[token] = plain_line(text)[:LONGEST]
        return self._texts[token]

    def snippet(self, window: Sequence[int], middle: int) -> str:
        """Tokens around one, which is marked; -1 is none."""
        before, here, later = window[:middle], window[middle : middle + 1], window[middle + 1 :]
        parts = (self._decode([t for t in part if t >= 0]) for part in (before, here, later))
        left, token, right = (plain_line(part) for part in parts)
        space = len(token) - len(token.lstrip())
        return f"{left}{token[:space]}«{token[space:]}»{right}"[:SNIPPET]

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(ids), clean_up_tokenization_spaces=False)


def label_features(
    model: LoadedModel,
    sae: SAE,
    texts: Iterable[str],
    held_out_texts: Sequence[str],
    *,
    tokens: int = 500_000,
    context: int = 128,
    contexts: bool = True,
    data: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> FeatureLabels:
    """Labels every feature of an SAE, and scores the labels on other text.

    Args:
        model: The model, or a fine-tune of it.
        sae: Whose features.
        texts: Stream of texts to label with.
        held_out_texts: Texts to score the labels on; not among the others.
        tokens: Of the stream, to read.
        context: Tokens that are read together.
        contexts: Keep a few tokens on each side of those that a feature fires on. Without, labels
            hold single tokens only, and no text of the data.
        data: What the texts are from, for the record.
        on_progress: Told (tokens read, tokens in all).

    Raises:
        InputError: the SAE does not fit the model, or there is no text.
    """
    sae.check_belongs_to(model)
    if tokens < 1 or context < 2:
        raise InputError("Labels need at least one token, in contexts of at least two.")
    found = gather_evidence(
        model,
        sae,
        texts,
        tokens=tokens,
        context=context,
        on_progress=on_progress,
    )
    vocabulary = Vocabulary(model)
    shared = _Shared(found, vocabulary)
    on, after = shared.matrices()
    parts = read_features(model, sae, held_out_texts, context)
    counts = count_predictions(parts, vocabulary.kinds, on, after, sae.width)
    if not counts.tokens.sum():
        raise InputError("The texts to score the labels on are empty.")
    scores = score_labels(counts)
    promoted = promoted_ids(model, sae, PROMOTED).tolist()
    rows = [
        _row(feature, found, shared, scores, promoted[feature], vocabulary, contexts)
        for feature in range(sae.width)
    ]
    measured = scores.value[~np.isnan(scores.value)]
    record = LabelsRecord(
        dictionary=sae.name[:300],
        dictionary_sha256=weights_hash(sae),
        created=utc_now(),
        model=model.info.keep("weights_sha256"),
        layer=sae.layer,
        width=sae.width,
        data=tuple(data),
        tokens=found.n_tokens,
        held_out_tokens=scores.n_tokens,
        contexts=contexts,
        fired=int((found.density > 0).sum()),
        scored=len(measured),
        median_reliability=float(np.median(measured)) if len(measured) else None,
        versions=installed_versions("torch", "transformers", "sae-lens"),
        labels_sha256="0" * 64,
    )
    return FeatureLabels.from_rows(record, rows)


class _Shared:
    """What the firings of each feature have in common."""

    def __init__(self, found: FeatureEvidence, vocabulary: Vocabulary) -> None:
        middle = found.windows.shape[2] // 2
        # [width, firing, 2]: the token before, and the one that fired; the strongest come first.
        pairs = torch.cat([found.windows[:, :, middle - 1 : middle + 1], found.sampled], dim=1)
        kinds = torch.from_numpy(vocabulary.kinds)
        groups = torch.where(pairs >= 0, kinds[pairs.clamp_min(0)], -1)
        drawn = groups[:, found.windows.shape[1] :]
        after = _most_common(drawn[..., 0]) > _most_common(drawn[..., 1]) + AFTER_MARGIN
        self.after = after.numpy()
        """bool [width], whether the label names the token before."""
        side = torch.where(after, 0, 1)[:, None, None].expand(-1, pairs.shape[1], 1)
        self.ids = pairs.gather(2, side)[..., 0]
        """int64 [width, firing], tokens that the label may name."""
        groups = groups.gather(2, side)[..., 0]
        often = _repeats(groups) >= SEEN_AT_LEAST
        often |= ~often.any(dim=1, keepdim=True)
        self.groups = torch.where(often, groups, -1)
        """int64 [width, firing], the kinds of those that it does name; else -1."""
        self.n_kinds = vocabulary.n_kinds

    def matrices(self) -> tuple[csr_matrix, csr_matrix]:
        """[kind, width] of labels that name the token, and of those that name the one before."""
        feature, place = (self.groups >= 0).nonzero(as_tuple=True)
        cells = np.stack([self.groups[feature, place].numpy(), feature.numpy()])
        cells = np.unique(cells, axis=1)
        shape = (self.n_kinds, len(self.groups))
        sides = []
        for side in (False, True):
            kind, column = cells[:, self.after[cells[1]] == side]
            sides.append(csr_matrix((np.ones(len(kind), dtype=bool), (kind, column)), shape=shape))
        return sides[0], sides[1]


def _repeats(groups: torch.Tensor) -> torch.Tensor:
    """How often each number occurs in its row; -1 is none."""
    same = (groups[:, :, None] == groups[:, None, :]) & (groups >= 0)[:, :, None]
    return same.sum(dim=2)


def _most_common(groups: torch.Tensor) -> torch.Tensor:
    """Share of the most frequent number in each row."""
    return _repeats(groups).amax(dim=1) / (groups >= 0).sum(dim=1).clamp_min(1)


def _row(
    feature: int,
    found: FeatureEvidence,
    shared: _Shared,
    scores: Scores,
    promoted: Sequence[int],
    vocabulary: Vocabulary,
    contexts: bool,
) -> dict[str, Any]:
    n = int((found.values[feature] > 0).sum())
    windows = found.windows[feature, :n].tolist()
    middle = found.windows.shape[2] // 2
    tokens = [vocabulary.text(window[middle]) for window in windows]
    speaks_for = [vocabulary.text(token) for token in promoted]
    named, seen = [], set()
    for token, group in zip(
        shared.ids[feature].tolist(), shared.groups[feature].tolist(), strict=True
    ):
        if group >= 0 and group not in seen:
            seen.add(group)
            named.append(vocabulary.text(token))
    after = bool(shared.after[feature])
    value, low, high = (
        None if np.isnan(x[feature]) else float(x[feature])
        for x in (scores.value, scores.low, scores.high)
    )
    snippets = [vocabulary.snippet(window, middle) for window in windows] if contexts else []
    return {
        "feature": feature,
        "label": _text(named, after, speaks_for) if named else "",
        "fires": "after" if after else "on",
        "density": float(found.density[feature]),
        "max_activation": float(found.values[feature, 0]),
        "named": named,
        "tokens": tokens,
        "activations": found.values[feature, :n].tolist(),
        "contexts": snippets,
        "promoted": speaks_for,
        "reliability": value,
        "reliability_low": low,
        "reliability_high": high,
        "n_fired": int(scores.n_fired[feature]),
    }


def _text(named: Sequence[str], after: bool, promoted: Sequence[str]) -> str:
    where = ", ".join(f"“{token.strip() or token}”" for token in named[:NAMED])
    more = "…" if len(named) > NAMED else ""
    what = ", ".join(f"“{token.strip() or token}”" for token in promoted[:NAMED_PROMOTED])
    return f"{'after' if after else 'on'} {where}{more}; promotes {what}"
