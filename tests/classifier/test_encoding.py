"""What is read of an exchange, whatever its length."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from modelassay.classifier import load_classifier
from modelassay.classifier.encoding import collate, encode_pairs, room
from modelassay.data.labels import LABELS
from modelassay.errors import InputError


def test_short_exchanges_are_read_whole(tokenizer):
    (row,) = encode_pairs(tokenizer, [("w1 w2", "w3 w4 w5 w6 w7 w8 w9")], 32)
    assert tokenizer.convert_ids_to_tokens(list(row.ids)) == (
        ["[CLS]", "w1", "w2", "[SEP]", *(f"w{i}" for i in range(3, 10)), "[SEP]"]
    )
    assert row.response_start == 4


def test_long_ones_keep_the_start_of_the_prompt_and_the_newest_of_the_response(tokenizer):
    prompt = " ".join(f"w{i}" for i in range(50))
    response = " ".join(f"w{i}" for i in range(50, 100))
    (row,) = encode_pairs(tokenizer, [(prompt, response)], 33)
    tokens = tokenizer.convert_ids_to_tokens(list(row.ids))
    assert tokens[1:11] == [f"w{i}" for i in range(10)]
    assert tokens[12:-1] == [f"w{i}" for i in range(80, 100)]
    assert len(tokens) == 33


def test_texts_of_any_length_take_bounded_time(tokenizer):
    (row,) = encode_pairs(tokenizer, [("w1 " * 10**6, "w2 " * 10**6 + "w3")], 32)
    assert len(row.ids) == 32
    assert tokenizer.convert_ids_to_tokens(list(row.ids))[-2] == "w3"


def test_the_beginning_of_a_long_response_can_be_read_instead(tokenizer):
    response = " ".join(f"w{i}" for i in range(50))
    newest, first, short = (
        encode_pairs(tokenizer, [("w1", text)], 24, newest=newest)[0]
        for text, newest in ((response, True), (response, False), ("w2 w3", False))
    )
    words = tokenizer.convert_ids_to_tokens(list(first.ids))[first.response_start : -1]
    assert words == [f"w{i}" for i in range(20)]
    assert (newest.cut, first.cut, short.cut) == (True, True, False)


def test_whole_answers_are_judged_by_both_ends(trained):
    classifier = load_classifier(str(trained), device="cpu")
    long = "sorry cannot unable decline " * 15 + "zap zorp zing zonk " * 15
    pairs = [("a", long), ("a", "garden flour window")]
    newest, whole = classifier.predict(pairs), classifier.predict(pairs, whole=True)
    assert newest[0].argmax() == LABELS.index("unsafe_compliance")
    start = classifier.predict([("a", long[:150])])[0]
    assert start.argmax() == LABELS.index("safe_refusal")
    assert whole[0][1] > newest[0][1]
    assert np.allclose(whole[1], newest[1], atol=1e-5)


@pytest.mark.parametrize(
    ("n_prompt", "n_response", "kept"),
    [
        (5, 5, (5, 5)),
        (100, 5, (25, 5)),  # what the answer leaves free is the prompt's
        (5, 100, (5, 25)),
        (100, 100, (10, 20)),
        (15, 100, (10, 20)),
        (0, 100, (0, 30)),
        (100, 0, (30, 0)),
    ],
)
def test_the_response_has_two_thirds_when_both_are_long(n_prompt, n_response, kept):
    assert room(n_prompt, n_response, 33) == kept


def test_prompt_and_response_may_be_empty(trained):
    classifier = load_classifier(str(trained), device="cpu")
    found = classifier.predict([("", "garden flour"), ("what", ""), ("", "")])
    assert found.shape == (3, 3)
    assert found.dtype == np.float32
    assert np.allclose(found.sum(axis=1), 1, atol=1e-5)


def test_segments_and_padding(tokenizer):
    rows = encode_pairs(tokenizer, [("w1", "w2"), ("", "w1 w2 w3 w4")], 32)
    batch = collate(rows, 0, types=True)
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 0, 0], [0, 0, 1, 1, 1, 1, 1]]
    assert batch["attention_mask"].sum(1).tolist() == [5, 7]
    assert "token_type_ids" not in collate(rows, 0, types=False)


def test_a_tokenizer_without_separators_is_refused():
    bare = SimpleNamespace(cls_token_id=None, bos_token_id=None, sep_token_id=1, eos_token_id=1)
    with pytest.raises(InputError, match="choose an encoder such as"):
        encode_pairs(bare, [("a", "b")], 32)
