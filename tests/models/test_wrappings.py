"""One model in many wrappings: what is read is the plain model, to rounding, or it is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress

import pytest
import torch
import transformers
from safetensors.torch import load_file

from checkpoints import edit_json, read
from modelassay.errors import InputError
from modelassay.models import LoadedModel, load
from packing import FP8, INT8, Tensors, in_float8, in_int8, put, unpacked
from tiny import make_tokenizer, save_tiny

FAMILIES = ("llama", "gemma2", "gpt2", "mixtral", "gemma3", "phi3")
PREFIXES = ("model.", "transformer.")


def prefixed(old: str, new: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        new + key.removeprefix(old) if key.startswith(old) else key: value
        for key, value in tensors.items()
    }


def as_base_class(tensors: Tensors) -> Tensors:
    """As a class without a head saves them."""
    for prefix in PREFIXES:
        tensors = prefixed(prefix, "")(tensors)
    return tensors


def doubled(tensors: Tensors) -> Tensors:
    """Each tensor once more, under the name that a class without a head gives it."""
    copies = {key: value.clone() for key, value in as_base_class(tensors).items()}
    return {**copies, **tensors}


# Those that must be read have a bound on the relative distance of their logits.
WRAPPINGS: dict[str, tuple[Callable[[Tensors], Tensors], float | None]] = {
    "as it is": (lambda tensors: tensors, 1e-6),
    "bfloat16": (lambda tensors: {k: v.bfloat16() for k, v in tensors.items()}, 2e-2),
    "float16": (lambda tensors: {k: v.half() for k, v in tensors.items()}, 2e-3),
    "base class": (as_base_class, 1e-6),
    "twice": (doubled, None),
    "twice, one changed": (lambda t: {**doubled(t), **_changed(as_base_class(t))}, None),
    "in a multimodal model": (prefixed("", "language_model."), None),
    "in its language tower": (prefixed("model.", "model.language_model."), None),
    "of another library": (prefixed("model.", "transformer."), None),
    "compiled": (prefixed("", "_orig_mod."), None),
    "trained in parallel": (prefixed("", "module."), None),
    "beside an adapter": (lambda t: {**t, "layers.0.lora_A.weight": torch.ones(2, 2)}, None),
}


def _changed(tensors: Tensors) -> Tensors:
    key = next(key for key in tensors if key.endswith("weight") and ".0." in key)
    return {key: tensors[key] + 1}


def distance(model: LoadedModel, reference: torch.Tensor) -> float:
    logits = read(model).readout
    assert logits is not None
    return float((logits - reference).norm() / reference.norm())


@pytest.fixture
def plain(tiny: Callable[..., LoadedModel]) -> Callable[[str], torch.Tensor]:
    """Logits of a family's tiny model."""

    def get(family: str) -> torch.Tensor:
        logits = read(tiny(family)).readout
        assert logits is not None
        return logits

    return get


@pytest.mark.parametrize("family", FAMILIES)
def test_wrappings_of_plain_weights(tiny_folder, tmp_path, plain, family):
    original = load_file(tiny_folder(family) / "model.safetensors")
    reference = plain(family)
    for name, (wrap, bound) in WRAPPINGS.items():
        folder = tmp_path / name
        shutil.copytree(tiny_folder(family), folder)
        wrapped = wrap(original)
        put(folder, wrapped)
        if wrapped.keys() == original.keys() and bound is None:
            continue  # the family has no such names
        if bound is None:
            with suppress(InputError):
                assert distance(load(str(folder), device="cpu"), reference) <= 1e-6, name
        else:
            assert distance(load(str(folder), device="cpu"), reference) <= bound, name


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gemma3"])
def test_shards_and_heads(tiny_folder, tmp_path, plain, family):
    original = load_file(tiny_folder(family) / "model.safetensors")
    model = transformers.AutoModelForImageTextToText if family == "gemma3" else None
    model = (model or transformers.AutoModelForCausalLM).from_pretrained(tiny_folder(family))
    model.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    make_tokenizer().save_pretrained(tmp_path / "sharded")
    assert distance(load(str(tmp_path / "sharded"), device="cpu"), plain(family)) == 0
    if "lm_head.weight" not in original:  # tied: as a copy, in a model that isn't
        shutil.copytree(tiny_folder(family), tmp_path / "untied")
        embedding = next(key for key in original if key.endswith("embed_tokens.weight"))
        put(tmp_path / "untied", {**original, "lm_head.weight": original[embedding].clone()})
        assert distance(load(str(tmp_path / "untied"), device="cpu"), plain(family)) == 0
        edit_json(tmp_path / "untied" / "config.json", tie_word_embeddings=False)
        assert distance(load(str(tmp_path / "untied"), device="cpu"), plain(family)) == 0


def pack_float8(tensors: Tensors) -> Tensors:
    return in_float8(tensors, "weight_scale_inv")


@pytest.mark.parametrize(
    ("family", "pack", "entry", "bound"),
    [
        # On a CPU transformers unpacks float8 itself; bitsandbytes rounds activations to 8 bits.
        *((family, pack_float8, FP8, 1e-5) for family in ("llama", "gemma2", "mixtral")),
        *((family, in_int8, INT8, 5e-2) for family in ("llama", "gemma2")),
    ],
)
def test_packed_weights_act_as_what_they_mean(tmp_path, family, pack, entry, bound):
    folder = save_tiny(tmp_path / "packed", family)
    packed = pack(load_file(folder / "model.safetensors"))
    put(folder, unpacked(packed))
    reference = read(load(str(folder), device="cpu")).readout
    assert reference is not None
    put(folder, packed)
    with pytest.raises(InputError):
        load(str(folder), device="cpu")
    edit_json(folder / "config.json", quantization_config=entry)
    assert distance(load(str(folder), device="cpu"), reference) <= bound


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_weights_that_bitsandbytes_packed_and_saved(tmp_path, quantization):
    wide = save_tiny(tmp_path / "wide", hidden_size=128, intermediate_size=256, head_dim=32)
    model = load(str(wide), device="cpu", quantization=quantization)
    model.network.save_pretrained(tmp_path / "packed")
    model.tokenizer.save_pretrained(tmp_path / "packed")
    reference = read(model).readout
    assert reference is not None
    stored = load(str(tmp_path / "packed"), device="cpu")
    assert stored.info.quantization == "bitsandbytes"
    assert distance(stored, reference) < 1e-5
