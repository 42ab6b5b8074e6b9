"""Tokens become text as they come."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guarding import OPEN, text_of
from modelassay.errors import InputError
from modelassay.guard import Guard, Sampling
from modelassay.guard.decoding import IncrementalText, StopStrings
from tiny import probe_for


def metaspace_tokenizer():
    """As SentencePiece does it: a mark for spaces, byte tokens for what has no token."""
    pieces = ["<unk>", "▁", "▁hello", "▁world", "h", "é", *(f"<0x{b:02X}>" for b in range(256))]
    backend = Tokenizer(
        models.BPE({p: i for i, p in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")


@pytest.mark.parametrize(
    "text", ["hello world", "你好，世界", "naïve café 👩‍👩‍👧 ok", "  two  spaces\n\ttab", "🙂"]
)
@pytest.mark.parametrize("kind", ["bytes", "metaspace"])
def test_pieces_join_to_the_whole(tiny, text, kind):
    tokenizer = tiny().tokenizer if kind == "bytes" else metaspace_tokenizer()
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    pieces = IncrementalText(tokenizer)
    parts = [pieces.push(token) for token in ids] + [pieces.flush()]
    assert "".join(parts) == tokenizer.decode(ids, skip_special_tokens=True)
    assert not any("\ufffd" in part for part in parts)


def test_an_unfinished_character_is_not_shown(tiny):
    ids = tiny().tokenizer("ab🙂", add_special_tokens=False)["input_ids"][:-1]
    pieces = IncrementalText(tiny().tokenizer)
    assert "".join([*(pieces.push(i) for i in ids), pieces.flush()]) == "ab"


def test_stop_strings_are_never_shown_in_part():
    for cut in range(1, 8):
        stops = StopStrings(["\n\nUser:", "END"])
        whole = "Some text.\n\nUser: more"
        parts = [stops.push(whole[i : i + cut]) for i in range(0, len(whole), cut)]
        assert "".join(parts) == "Some text."
        assert stops.found
    stops = StopStrings(["END"])
    assert stops.push("an EN") + stops.push("D") == "an "
    stops = StopStrings(["END"])
    assert stops.push("an EN") + stops.flush() == "an EN"


def test_sampling_is_repeatable_and_bounded(tiny):
    guard = Guard(tiny(), probe_for(tiny()))

    def response(**settings):
        sampling = Sampling(temperature=1.5, **settings)
        return text_of(guard.stream("Hi", max_new_tokens=15, sampling=sampling, thresholds=OPEN))

    assert response(seed=1) == response(seed=1) != response(seed=2)
    greedy = text_of(guard.stream("Hi", max_new_tokens=15, thresholds=OPEN))
    assert response(seed=3, top_k=1) == greedy
    for bad in ({"top_p": 0}, {"temperature": -1}, {"temperature": float("nan")}, {"top_k": -1}):
        with pytest.raises(InputError):
            Sampling(**bad)
