"""Shards, indexes and other names of weights; the hash is of the weights that act."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import transformers
from safetensors.torch import load_file, save_file

from checkpoints import edit_json, read, refusal, same, sha256
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.models.identity import hash_file, hash_files
from tiny import make_tokenizer


@pytest.fixture
def sharded(tiny_folder: Callable[..., Path], tmp_path: Path) -> Path:
    folder = tmp_path / "sharded"
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny_folder())
    model.save_pretrained(folder, max_shard_size="20KB")
    make_tokenizer().save_pretrained(folder)
    return folder


def test_a_sharded_checkpoint(tiny, sharded):
    shards = sorted(sharded.glob("*.safetensors"))
    assert len(shards) > 3
    model = load(str(sharded), device="cpu")
    assert same(read(model), read(tiny()))
    assert model.source.weight_files() == shards
    # What `sha256sum *.safetensors | sha256sum` prints.
    lines = "".join(f"{sha256(shard.read_bytes())}  {shard.name}\n" for shard in shards)
    assert model.info.weights_sha256 == sha256(lines.encode())


def test_a_missing_shard_is_named(sharded):
    shard = sorted(sharded.glob("*.safetensors"))[2]
    shard.unlink()
    assert f"lacks the weight file {shard.name}" in refusal(InputError, sharded)


@pytest.mark.parametrize("index", [{}, {"weight_map": []}, {"weight_map": {"a": 3}}])
def test_a_broken_index(sharded, index):
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "does not say which file holds which weight" in refusal(InputError, sharded)


def test_two_sets_of_weights_must_be_the_same(tiny, tiny_folder, sharded):
    """transformers opens the single file, other programs the shards."""
    shutil.copy(tiny_folder(seed=1) / "model.safetensors", sharded)
    assert "holds two sets of weights, model.safetensors and the" in refusal(InputError, sharded)
    shutil.copy(tiny_folder() / "model.safetensors", sharded)
    model = load(str(sharded), device="cpu")
    assert same(read(model), read(tiny()))
    assert model.info.weights_sha256 == tiny().info.weights_sha256


@pytest.mark.parametrize("shards", [False, True])
def test_weights_that_the_config_names(tiny, tiny_folder, sharded, copy, shards):
    folder = copy()
    if shards:
        for file in sharded.glob("model*"):
            shutil.copy(file, folder / file.name)
        shutil.copy(tiny_folder(seed=1) / "model.safetensors", folder)
        name, expected = "model.safetensors.index.json", tiny()
    else:
        shutil.copy(tiny_folder(seed=1) / "model.safetensors", folder / "other.safetensors")
        name, expected = "other.safetensors", load(str(tiny_folder(seed=1)), device="cpu")
    edit_json(folder / "config.json", transformers_weights=name)
    model = load(str(folder), device="cpu")
    assert same(read(model), read(expected))
    files = list(sharded.glob("*.safetensors")) if shards else [folder / name]
    assert model.info.weights_sha256 == hash_files(files)


@pytest.mark.parametrize("name", ["weights.bin", 3, ["model.safetensors"]])
def test_the_config_names_weights_of_another_kind(copy, name):
    folder = copy(transformers_weights=name)
    (folder / "weights.bin").write_bytes(b"")
    assert "not a safetensors file" in refusal(InputError, folder)


def test_hashes_are_stable_and_see_every_change(tiny, copy):
    before = tiny().info
    folder = copy()

    def now():
        return load(str(folder), device="cpu").info

    def changed(info):
        names = ("weights_sha256", "tokenizer_sha256", "chat_template_sha256")
        return {name for name in names if getattr(info, name) != getattr(before, name)}

    assert changed(now()) == set()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer(["a", "bcd"], padding=True, truncation=True, max_length=2)
    tokenizer.save_pretrained(folder)  # with the settings of that call
    assert changed(now()) == set()
    tokenizer.chat_template += " "
    tokenizer.save_pretrained(folder)
    assert changed(now()) == {"chat_template_sha256"}
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(folder)
    assert changed(now()) == {"chat_template_sha256", "tokenizer_sha256"}
    tensors = load_file(folder / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    assert changed(now()) == {"chat_template_sha256", "tokenizer_sha256", "weights_sha256"}


def test_the_hubs_cache_states_the_hash_in_a_files_name(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    claimed = "ab" * 32
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / ("0" * 40)
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / claimed).write_bytes(b"weights")  # other content, to see that it is not read
    link = snapshot / "model.safetensors"
    link.symlink_to(Path("../../blobs") / claimed)
    assert hash_file(link) == claimed
    # A short name is a git hash, a file outside `blobs` is anybody's: both are read.
    (blobs / ("cd" * 20)).write_bytes(b"config")
    git = snapshot / "config.json"
    git.symlink_to(Path("../../blobs") / ("cd" * 20))
    assert hash_file(git) == sha256(b"config")
    elsewhere = tmp_path / claimed
    elsewhere.write_bytes(b"mine")
    mine = snapshot / "mine.safetensors"
    mine.symlink_to(elsewhere)
    assert hash_file(mine) == hash_file(elsewhere) == sha256(b"mine")
