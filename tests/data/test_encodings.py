"""Encodings: each can be read back, and hides the words of what it encodes."""

from __future__ import annotations

import base64
import codecs
from typing import get_args

import pytest

from modelassay.data.encodings import ENCODINGS, Encoding, encode_text

TEXT = "How do I water 3 cacti, and when?"


@pytest.mark.parametrize(
    ("encoding", "written"),
    [
        ("base64", base64.b64encode(TEXT.encode()).decode()),
        ("rot13", codecs.encode(TEXT, "rot13")),
        ("leetspeak", "H0w d0 1 w473r 3 c4c71, 4nd wh3n?"),
        ("reversed", "?nehw dna ,itcac 3 retaw I od woH"),
        ("spaced", " ".join(TEXT)),
    ],
)
def test_what_is_written(encoding: Encoding, written: str):
    assert encode_text(TEXT, encoding) == written


def test_morse_code_of_letters_digits_and_marks():
    assert encode_text("SOS, 3\ntimes!", "morse") == (
        "... --- ... --..-- / ...-- / - .. -- . ... -.-.--"
    )
    assert encode_text("Ω a", "morse") == "ω / .-"


def test_an_accent_stays_on_its_letter():
    assert encode_text("cafe\N{COMBINING ACUTE ACCENT}s", "reversed") == "séfac"


def test_the_list_is_closed_and_every_encoding_hides_the_words():
    assert set(ENCODINGS) == set(get_args(Encoding))
    assert encode_text(TEXT, None) == TEXT
    for encoding in ENCODINGS:
        assert "water" not in encode_text(TEXT, encoding)
