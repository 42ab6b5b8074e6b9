"""States that a probe is fitted on: kept, and the same in every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from modelassay.probes import features as features_module
from modelassay.probes.features import pooled_features
from probe_rows import exchanges


def test_features_are_kept_and_read_again(tiny, monkeypatch):
    model, rows = tiny(), exchanges(12)
    first = pooled_features(model, rows, "answer")
    monkeypatch.setattr(features_module, "read_activations", None)  # a second pass would fail
    again = pooled_features(model, rows, "answer")
    assert torch.equal(first.values, again.values)
    assert np.array_equal(first.row, again.row)
    part = pooled_features(model, rows, "answer", layers=[3, 1])
    assert torch.equal(part.values, first.values[:, [3, 1]])
    kept = next((features_module.cache_dir() / "features").glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-100])  # a disk that was full
    with pytest.raises(TypeError):
        pooled_features(model, rows, "answer")


def test_features_that_cannot_be_kept_are_read_again(tiny, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_text("in the way")
    assert len(pooled_features(tiny(), exchanges(4), "prompt").row) == 4


def test_features_do_not_depend_on_the_batch(tiny):
    model, rows = tiny(), exchanges(12)
    whole = pooled_features(model, rows, "answer", use_cache=False)
    for i in (0, 5, 11):
        alone = pooled_features(model, [rows[i]], "answer", use_cache=False)
        assert torch.allclose(alone.values.float(), whole.values[whole.row == i].float(), atol=2e-3)
