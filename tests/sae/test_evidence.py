"""What features fire on, and how well labels predict it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

pytest.importorskip("sae_lens")
from labelled import DEAD, HELD_OUT, ON_X, RANDOM, TEXTS, WIDTH
from modelassay.sae import label_features
from modelassay.sae.evidence import Fired, count_predictions, read_features, score_labels
from modelassay.sae.labelling import Vocabulary
from modelassay.statistics import rank_auroc


def test_density_and_activations_are_counted_right(tiny, planted, labels):
    rows = torch.cat([part.features for part in read_features(tiny(), planted, TEXTS, 128)])
    for feature in (ON_X, RANDOM, DEAD):
        found = labels.of(feature)
        assert found.density == pytest.approx(float((rows[:, feature] > 0).double().mean()))
        assert found.max_activation == pytest.approx(float(rows[:, feature].max()), rel=1e-5)
    # At most one a context, so the strongest of each text are what was kept.
    best = [
        float(part.features[:, ON_X].max()) for part in read_features(tiny(), planted, TEXTS, 128)
    ]
    expected = [value for value in sorted(best, reverse=True) if value > 0][:12]
    assert labels.of(ON_X).activations == pytest.approx(expected, rel=1e-5)


def test_labels_of_noise_are_not_believed_and_exact_ones_are():
    draw = np.random.default_rng(3)
    vocabulary, width = 30, 3
    label = np.zeros((vocabulary, width), dtype=bool)
    label[4, 0] = label[4, 1] = label[:10, 2] = True
    parts = []
    for text in range(60):
        ids = draw.integers(0, vocabulary, size=50)
        fires = draw.random((49, width)) < 0.2
        fires[:, 0] = ids[1:] == 4
        parts.append(Fired(text, tuple(ids.tolist()), torch.from_numpy(fires).float()))
    none = csr_matrix((vocabulary, width), dtype=bool)
    kinds = np.arange(vocabulary)
    scores = score_labels(count_predictions(parts, kinds, csr_matrix(label), none, width))
    assert scores.value[0] == scores.low[0] == scores.high[0] == 1
    assert scores.n_tokens == 60 * 49
    for feature in (1, 2):  # they fire at random, whatever the token
        assert scores.value[feature] == pytest.approx(0.5, abs=0.03)
        assert scores.low[feature] < 0.5 < scores.high[feature]
    shifted = score_labels(count_predictions(parts, kinds, none, csr_matrix(label), width))
    assert shifted.value[0] < 0.55


def test_reliability_is_the_auroc_of_the_label(tiny, planted, labels):
    model = tiny()
    kinds = Vocabulary(model).kinds
    named = set(labels.of(RANDOM).named)
    by_text = {kinds[i] for i in range(len(model.tokenizer)) if Vocabulary(model).text(i) in named}
    says, fires = [], []
    for part in read_features(model, planted, HELD_OUT, 128):
        ids = part.ids[:-1] if labels.of(RANDOM).fires == "after" else part.ids[1:]
        says += [float(kinds[token] in by_text) for token in ids]
        fires += (part.features[:, RANDOM] > 0).tolist()
    expected = rank_auroc(np.array(says), np.array(fires))
    assert labels.of(RANDOM).reliability.value == pytest.approx(expected, abs=1e-6)
    low, high = labels.of(RANDOM).reliability.interval
    assert low <= expected <= high
    assert labels.record.held_out_tokens == len(says)


def test_promoted_tokens_are_what_the_direction_adds_to(tiny, planted, labels):
    model = tiny()
    row = planted.module.W_dec[ON_X]
    logits = model.network.lm_head(model.network.model.norm(row[None] * row.shape[0] ** 0.5))[0]
    vocabulary = Vocabulary(model)
    expected = [vocabulary.text(token) for token in logits.topk(8).indices.tolist()]
    assert list(labels.of(ON_X).promoted) == expected


def test_reading_stops_when_enough_tokens_were_read(tiny, planted):
    def endless():
        while True:
            yield TEXTS[0]

    found = label_features(tiny(), planted, endless(), HELD_OUT[:3], tokens=500)
    assert 500 <= found.record.tokens < 700
    assert labels_have_no_interval(found)


def labels_have_no_interval(found):
    scored = [found.of(f).reliability for f in range(WIDTH) if found.of(f).reliability]
    return scored and all(score.interval is None for score in scored)
