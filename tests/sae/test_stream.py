"""Activations to train on: every token once, none lost."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

pytest.importorskip("sae_lens")
from modelassay.errors import InputError
from modelassay.reading.activations import read_activations
from modelassay.sae.stream import encode_contexts, read_windows, shuffled_batches
from saes import TEXTS


def test_windows_hold_every_token_but_the_first_of_a_context(tiny):
    model = tiny()
    window = next(read_windows(model, lambda: TEXTS[:20], 2, window_tokens=300, context=10_000))
    rows = encode_contexts(model, TEXTS[:20], 10_000)
    read = read_activations(model, rows, [2], position="all")
    assert len(window.values) == sum(len(row.ids) - 1 for row in rows)
    assert torch.equal(window.values, read.values[:, 0].bfloat16())


def test_long_texts_are_cut_and_none_is_lost(tiny):
    rows = encode_contexts(tiny(), TEXTS[:3], 10)
    whole = [list(row.ids) for row in encode_contexts(tiny(), TEXTS[:3], 10_000)]
    assert all(1 < len(row.ids) <= 10 for row in rows)
    cut = [token for row in rows for token in row.ids]
    assert len(cut) >= sum(map(len, whole)) - 3  # a single token left over is not a context


def test_a_stream_that_ends_begins_again(tiny):
    windows = read_windows(tiny(), lambda: TEXTS[:3], 2, window_tokens=500, context=32)
    first, second = next(windows), next(windows)
    assert len(first.values) >= 500
    assert second.number == 1
    assert second.texts_read <= 3


def test_empty_texts_are_said(tiny):
    windows = read_windows(tiny(), lambda: ["", ""], 2, window_tokens=10, context=32)
    with pytest.raises(InputError, match="are empty"):
        next(windows)


def test_each_activation_is_used_as_often_as_asked(tiny):
    window = next(read_windows(tiny(), lambda: TEXTS, 2, window_tokens=1000, context=32))
    window = replace(window, values=window.values[:1000])
    batches = list(shuffled_batches(window, 100, 3, seed=0))
    assert len(batches) == 30
    used = torch.cat(batches[:10]).sort(dim=0).values
    assert torch.equal(used, window.values.float().sort(dim=0).values)
    assert not torch.equal(batches[0], batches[10])
