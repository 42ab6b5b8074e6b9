"""What labels of features say, and how far they can be believed."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from scipy.sparse import csr_matrix

pytest.importorskip("sae_lens")
from labelled import AFTER_O, DEAD, HELD_OUT, ON_X, RANDOM, TEXTS, WIDTH, in_folder
from modelassay.errors import InputError
from modelassay.report.text import plain_line
from modelassay.sae import find_labels, find_sae, label_features, load_labels, save_labels
from modelassay.sae.evidence import Fired, count_predictions, read_features, score_labels
from modelassay.sae.labelling import Vocabulary
from modelassay.sae.labels import weights_hash
from modelassay.statistics import rank_auroc


def test_a_planted_feature_gets_the_right_tokens_and_is_believed(labels):
    found = labels.of(ON_X)
    assert set(found.tokens) == {"x"}
    assert found.fires == "on"
    assert "“x”" in found.text
    assert found.reliability.value > 0.97
    assert found.reliability.interval[0] > 0.9
    assert found.reliability.n_fired > 20
    assert all("«x»" in context for context in found.contexts)


def test_a_feature_of_the_token_before_is_labelled_by_it(labels):
    found = labels.of(AFTER_O)  # in these words x, v and g come after nothing but o
    assert found.fires == "after"
    assert found.named == ("o",)
    assert found.text.startswith("after “o”; promotes ")
    assert set(found.tokens) <= set("xvg")
    assert 0.95 < found.reliability.value < 1  # w comes after o as well


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


def test_a_feature_that_never_fires_has_no_label_and_no_score(labels):
    found = labels.of(DEAD)
    assert found.text == ""
    assert found.reliability is None
    assert found.tokens == ()
    assert len(found.promoted) == 8


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


def test_without_contexts_no_text_of_the_data_is_kept(tiny, planted):
    found = label_features(tiny(), planted, TEXTS, HELD_OUT, contexts=False)
    assert not found.record.contexts
    for row in found.table.to_pylist():
        assert row["contexts"] == []
        assert all(len(token) <= 6 for token in row["tokens"])  # a token is a byte here


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


def test_bad_texts_are_said(tiny, planted):
    with pytest.raises(InputError, match="to label features with are empty"):
        label_features(tiny(), planted, ["", ""], HELD_OUT)
    with pytest.raises(InputError, match="to score the labels on are empty"):
        label_features(tiny(), planted, TEXTS, [""])
    with pytest.raises(InputError, match="at least one token"):
        label_features(tiny(), planted, TEXTS, HELD_OUT, tokens=0)
    with pytest.raises(InputError, match="width"):
        label_features(tiny(), replace(planted, hidden_size=7), TEXTS, HELD_OUT)


def test_what_cannot_be_printed_is_escaped():
    assert plain_line("a\nb\u202ec\x1b") == "a\\nb\\u202ec\\x1b"


def test_what_was_saved_is_loaded(planted, labels, tmp_path):
    sae = in_folder(planted, tmp_path / "d")
    save_labels(labels, tmp_path / "d")
    found = find_labels(sae)
    assert found is not None
    assert [found.of(i) for i in range(WIDTH)] == [labels.of(i) for i in range(WIDTH)]
    assert found.record.data == ("words",)
    assert found.record.dictionary_sha256 == weights_hash(sae)
    with pytest.raises(InputError, match="no feature 24"):
        found.of(WIDTH)


def other_table(folder):
    import pyarrow.parquet as pq

    table = pq.read_table(folder / "labels.parquet")
    pq.write_table(table.slice(1), folder / "labels.parquet")


def as_if_hashed(folder):
    from modelassay.models.identity import hash_file

    other_table(folder)
    record = json.loads((folder / "labels.json").read_text())
    record["labels_sha256"] = hash_file(folder / "labels.parquet")
    (folder / "labels.json").write_text(json.dumps(record))


def other_dictionary(folder):
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "b_dec": tensors["b_dec"] + 1}, path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (other_table, "is not the file"),
        (as_if_hashed, "not have one row for each"),
        (other_dictionary, "belong to another SAE"),
        (lambda folder: (folder / "labels.parquet").unlink(), "cannot be read"),
        (lambda folder: (folder / "labels.json").write_text("{}"), "not a valid label file"),
    ],
)
def test_labels_that_do_not_belong_are_refused(planted, labels, tmp_path, damage, message):
    folder = tmp_path / "d"
    planted.module.save_model(folder)
    save_labels(labels, folder)
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_labels(folder, find_sae(str(folder)))
    assert "\n" not in str(error.value)
