"""An adapter's change is read from its own matrices as from the merged model."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from modelassay.diff import weights
from modelassay.diff.lora import read_lora
from modelassay.diff.pair import Pair
from modelassay.diff.weights import WeightDiff, diff_pair
from modelassay.models import load
from modelassay.models.sources import Source
from tiny import save_tiny, unit

SETTINGS: dict[str, Any] = {
    "r": 4,
    "lora_alpha": 24,
    "target_modules": ["q_proj", "down_proj"],
    "init_lora_weights": False,
}


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


def save_adapter(base: Path, folder: Path, **options: Any) -> Path:
    torch.manual_seed(3)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    config = peft.LoraConfig(**{**SETTINGS, **options}, task_type="CAUSAL_LM")
    wrapped = peft.get_peft_model(model, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name:
            parameter.data *= 1 + 0.1 * torch.rand(parameter.shape)
    wrapped.save_pretrained(str(folder))
    return folder


def compare(base: Path, candidate: Path) -> WeightDiff:
    return diff_pair(
        Pair(lambda: load(str(base), device="cpu"), lambda: load(str(candidate), device="cpu"))
    )


@pytest.fixture
def read(monkeypatch) -> list[str]:
    """Names of the tensors that are read from files, as they are read."""
    names: list[str] = []
    real = weights.open_shards

    def counted(files, stack):
        for name, reader in real(files, stack):
            yield name, lambda name=name, reader=reader: (names.append(name), reader())[1]

    monkeypatch.setattr(weights, "open_shards", counted)
    return names


@pytest.mark.parametrize(
    "options",
    [{"use_dora": True}, {"use_rslora": True, "rank_pattern": {"layers.1.mlp.down_proj": 2}}],
)
def test_numbers_are_those_of_the_merged_model(base, tmp_path, read, options):
    adapter = save_adapter(base, tmp_path / "adapter", **options)
    found = compare(base, adapter)
    touched = {name for name in read if name.endswith(".weight")}
    assert len(touched) == 10  # two in each of five layers, of 48 in all
    assert found.n_compared > 40
    model = load(str(adapter), device="cpu")
    model.network.save_pretrained(tmp_path / "merged")
    model.tokenizer.save_pretrained(tmp_path / "merged")
    merged = compare(base, tmp_path / "merged")
    assert [m.name for m in found.matrices] == [m.name for m in merged.matrices]
    assert found.relative == pytest.approx(merged.relative, rel=1e-4)
    assert found.energy_by_layer == pytest.approx(merged.energy_by_layer, rel=1e-4)
    assert (found.adapter_rank, found.n_compared) == (merged.adapter_rank, merged.n_compared)
    for ours, theirs in zip(found.matrices, merged.matrices, strict=True):
        assert ours.relative == pytest.approx(theirs.relative, rel=1e-4)
        # DoRA scales whole rows: its change has every rank, and how many of the least lie above
        # rounding differs from one processor to the next.
        if "use_dora" not in options:
            assert ours.rank == theirs.rank
        assert ours.signal_share == pytest.approx(theirs.signal_share, rel=1e-3)
    ours, theirs = found.edits.to_dict(), merged.edits.to_dict()
    assert ours.pop("score") == pytest.approx(theirs.pop("score"), rel=1e-4)
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"modules_to_save": ["embed_tokens"]},
        {"bias": "lora_only"},
        {"alpha_pattern": {"layers.1.mlp.down_proj": 3}},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"init_lora_weights": "pissa"},
    ],
)
def test_what_its_matrices_do_not_tell_is_read_merged(base, tmp_path, options):
    adapter = Source("adapter", save_adapter(base, tmp_path, **options), None)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    with ExitStack() as stack:
        assert read_lora(adapter, model, stack) == {}


def test_an_adapter_of_layers_that_lie_the_other_way_is_read_merged(tmp_path, read):
    base = save_tiny(tmp_path / "base", "gpt2")
    adapter = save_adapter(base, tmp_path / "adapter", target_modules=["c_proj"])
    found = compare(base, adapter)
    assert {m.rank for m in found.matrices} == {4}
    assert len(set(read)) > 40


def test_an_adapter_over_another_base_is_read_merged(base, tmp_path, read):
    other = save_tiny(tmp_path / "other", seed=5)
    found = compare(base, save_adapter(other, tmp_path / "adapter"))
    assert found.relative > 1
    assert len(found.matrices) > 30


def test_an_edit_that_is_shipped_as_an_adapter_is_told(base, tmp_path):
    """As tools do that cut their edit to a low rank."""
    targets = ["o_proj", "down_proj"]
    adapter = save_adapter(base, tmp_path, r=1, lora_alpha=1, target_modules=targets)
    r, weights = unit(32), load_file(base / "model.safetensors")
    file = adapter / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        weight = weights[re.sub(r"^base_model\.model\.|lora_[AB]\.", "", name)]
        tensors[name] = (r @ weight)[None] if "lora_A" in name else -r[:, None]
    save_file(tensors, file)
    mark = compare(base, adapter).mark
    assert mark is not None
    assert mark.shared
    assert mark.strength == pytest.approx(1, abs=0.01)
    assert mark.layers == tuple(range(5))
