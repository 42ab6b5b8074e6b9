"""Tokenizers that lose text."""

from __future__ import annotations

import json
import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from modelassay.errors import InputError
from modelassay.models import load
from modelassay.reading import tokens
from modelassay.reading.prompts import encode_prompts
from modelassay.reading.tokens import tokenize
from tiny import save_tiny


def change(folder, **settings):
    """Rewrites entries of a folder's tokenizer.json."""
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def words(*known):
    """A tokenizer that knows these words and no other."""
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", *known]))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="<e>", pad_token="<e>"
    )


@pytest.fixture
def folder(tmp_path):
    return save_tiny(tmp_path / "model")


def test_cuts_and_padding_that_a_file_asks_for_are_off(folder):
    own = encode_prompts(load(str(folder), device="cpu"), ["Bread", "Bread and butter"])
    cut = {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0}
    fill = {
        "strategy": {"Fixed": 99},
        "direction": "Right",
        "pad_to_multiple_of": None,
        "pad_id": 257,
        "pad_type_id": 0,
        "pad_token": "<|im_end|>",
    }
    change(folder, truncation=cut, padding=fill)
    assert encode_prompts(load(str(folder), device="cpu"), ["Bread", "Bread and butter"]) == own


def test_a_tokenizer_that_cuts_all_the_same_is_refused(folder, monkeypatch):
    model = load(str(folder), device="cpu")
    whole = type(model.tokenizer).__call__

    def cut(self, texts, **options):
        made = whole(self, texts, **options)
        return {"input_ids": [row[:512] for row in made["input_ids"]]}

    monkeypatch.setattr(type(model.tokenizer), "__call__", cut)
    with pytest.raises(InputError, match="cuts long texts; take `truncation` out"):
        tokenize(model, ["Hello"], special=False)


def test_a_tokenizer_of_another_model(folder):
    words("bread", "bomb").save_pretrained(folder)
    with pytest.raises(InputError, match="knows 0% of the tokens of plain English"):
        encode_prompts(load(str(folder), device="cpu"), ["bread"], chat_template=False)


def test_different_words_have_to_be_different_tokens(folder):
    words(*re.findall(r"\w+|\W", f"{tokens.ENGLISH} Yes No")).save_pretrained(folder)
    model = load(str(folder), device="cpu")
    with pytest.raises(InputError, match=r"reads “Zork…” and “Frob…” as the same tokens"):
        encode_prompts(model, ["The town", "Zork", "Frob"], chat_template=False)


def test_a_tokenizer_may_drop_case_and_accents(folder):
    change(folder, normalizer={"type": "Lowercase"})
    a, b, c = encode_prompts(load(str(folder), device="cpu"), ["To Be", "to be", "to be?"])
    assert a.ids == b.ids != c.ids


def test_a_token_that_would_end_a_raw_text_is_left_out(folder):
    start, end = "<|im_start|>", "<|im_end|>"
    whole, more = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    around = [{"SpecialToken": {"id": token, "type_id": 0}} for token in (start, end)]
    change(
        folder,
        post_processor={
            "type": "TemplateProcessing",
            "single": [around[0], whole, around[1]],
            "pair": [whole, more],
            "special_tokens": {
                token: {"id": token, "ids": [i], "tokens": [token]}
                for token, i in ((start, 256), (end, 257))
            },
        },
    )
    model = load(str(folder), device="cpu")
    assert encode_prompts(model, ["A"], chat_template=False)[0].ids == (256, 32)
    chat = encode_prompts(model, ["A"])[0].ids
    assert chat.count(256) == 3  # the template's turns, and no more
