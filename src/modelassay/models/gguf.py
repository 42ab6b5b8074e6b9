"""A GGUF file's own account of its model: every key and every tensor is used, or refused by name.

transformers reads the weights of some twenty architectures out of GGUF files, and only part of what
the files say beside them: RoPE scaling, caps on logits, widths of heads or how text is split are
left at the defaults of a family. `modelassay.models.gguf_settings` puts those right;
`modelassay.models.gguf_tokens` does so for the tokenizer. Here is what both read from, and what
cannot be read at all.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from modelassay.errors import InputError, first_line

BY_NEW_READER = ("lfm2", "qwen35", "qwen35moe")
"""Architectures of which transformers itself reports the tensors that it had no place for."""
MOE = ("qwen2moe", "qwen3moe")
READ = (
    *("bloom", "falcon", "gemma2", "gemma3", "gpt2", "llama", "nemotron", "phi3"),
    *("qwen2", "qwen3", "stablelm", "starcoder2", *MOE, *BY_NEW_READER),
)
"""Architectures whose files give the logits of the checkpoint that they were made from."""
ROPE_TENSORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
ONE_FOR_ALL_LAYERS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
OTHER_TOWERS = ("v.", "mm.", "a.")
"""Tensors of encoders that some tools put into the same file."""
NO_MODELS = {
    "adapter": "a LoRA adapter; convert it to PEFT's format and give its base with --adapter",
    "mmproj": "the image or audio encoder of a model alone; give the file of the language model",
    "imatrix": "statistics for quantising, not a model",
}
ADVICE = "use the safetensors checkpoint that it was made from"


@dataclass(frozen=True)
class GgufFile:
    """What a GGUF file says, without its weights."""

    path: Path
    architecture: str
    values: Mapping[str, Any]
    """Metadata by key; lists of texts are left out."""
    shapes: Mapping[str, tuple[int, ...]]
    """Of each tensor, as torch has it."""
    vectors: Mapping[str, np.ndarray]
    """Tensors that change the rotary embedding."""
    taken: set[str] = field(default_factory=set)
    """Keys after the architecture's name that somebody has used."""

    def take(self, key: str, default: Any = None) -> Any:
        """The value of `<architecture>.key`, which counts as used from now on."""
        self.taken.add(key)
        return self.values.get(f"{self.architecture}.{key}", default)

    def left(self) -> dict[str, Any]:
        """What the file says of its architecture and nobody has used."""
        start = f"{self.architecture}."
        own = {k.removeprefix(start): v for k, v in self.values.items() if k.startswith(start)}
        return {key: value for key, value in own.items() if key not in self.taken}

    def refused(self, what: str, advice: str = ADVICE) -> InputError:
        """The error that says what in this file cannot be read."""
        return InputError(f"{self.path.name}: {what}; {advice}.")


def read_gguf(path: Path) -> GgufFile:
    """Reads what a GGUF file says of its model.

    Raises:
        InputError: it is damaged, a part, no language model, or of an architecture that is not
            read right.
    """
    try:
        found = path.stat()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from error
    # Config, tokenizer and weights all ask, and a large vocabulary takes seconds to walk through.
    return replace(_read(path, found.st_mtime_ns, found.st_size), taken=set())


@lru_cache(maxsize=2)
def _read(path: Path, changed: int, size: int) -> GgufFile:
    """The same for a file in one state."""
    import gguf

    try:
        with path.open("rb") as stream:
            magic = stream.read(4)
        if magic != b"GGUF":
            raise InputError(f"{path.name} is not a GGUF file.")
        reader = gguf.GGUFReader(str(path))
        values = {key: _value(entry) for key, entry in reader.fields.items()}
        tensors = {tensor.name: tensor for tensor in reader.tensors}
    except (ValueError, IndexError, KeyError, OverflowError, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read as a GGUF file ({first_line(error)}); it is damaged, cut"
            " short or of a newer format. Download it again."
        ) from error
    architecture = str(values.get("general.architecture", ""))
    shapes = {name: tuple(int(n) for n in t.shape[::-1]) for name, t in tensors.items()}
    file = GgufFile(path, architecture, values, shapes, {})
    if reader.endianess == gguf.GGUFEndian.BIG:
        raise file.refused("its numbers are big-endian", "convert it with gguf_convert_endian.py")
    if (parts := int(values.get("split.count") or 1)) > 1:
        part = int(values.get("split.no") or 0) + 1
        raise file.refused(
            f"it is part {part} of {parts}", "join the parts with llama-gguf-split --merge"
        )
    kind = values.get("general.type")
    kind = "mmproj" if architecture == "clip" else kind
    if kind in NO_MODELS:
        raise InputError(f"{path.name} holds {NO_MODELS[kind]}.")
    if architecture not in READ:
        raise file.refused(f"GGUF files of the architecture {architecture!r} are not read right")
    if "token_embd.weight" not in shapes:
        raise file.refused("it holds no weights of a language model (no token_embd.weight)")
    if architecture not in BY_NEW_READER:
        for key in ONE_FOR_ALL_LAYERS:
            if isinstance(file.take(key), list):
                raise file.refused(f"{architecture}.{key} says one for each layer")
    for name, tensor in tensors.items():
        _check_type(file, name, tensor)
    vectors = {
        name: gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type).reshape(-1)
        for name in ROPE_TENSORS
        if name in tensors
    }
    return GgufFile(path, architecture, values, shapes, vectors)


def _value(entry: Any) -> Any:
    """A key's value; a vocabulary is no setting, so of a list of texts only the length is kept."""
    from gguf import GGUFValueType

    if entry.types[:1] == [GGUFValueType.ARRAY] and entry.types[-1] == GGUFValueType.STRING:
        return len(entry.data)
    if entry.types[:1] == [GGUFValueType.ARRAY] and len(entry.data) > 4096:
        return len(entry.data)  # scores and types of tokens
    return entry.contents()


def _check_type(file: GgufFile, name: str, tensor: Any) -> None:
    """Refuses numbers that cannot be unpacked."""
    import gguf

    _, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    block = np.zeros((1, size), np.uint8)
    try:
        gguf.quants.dequantize(block, tensor.tensor_type)
    except NotImplementedError as error:
        raise file.refused(
            f"{name} is stored as {tensor.tensor_type.name}, which cannot be unpacked"
        ) from error


def check_tensors(file: GgufFile, model: Any) -> None:
    """Refuses a file with tensors that its model has no place for.

    Args:
        file: What the file says.
        model: The transformers model that was made from it.

    Raises:
        InputError: names the first of them.
    """
    if file.architecture in BY_NEW_READER:
        return
    known = _known_tensors(file, model)
    unused = sorted(
        name
        for name in file.shapes
        if name not in known and name not in file.vectors and not name.startswith(OTHER_TOWERS)
    )
    if unused:
        more = f" and {len(unused) - 1} more tensors" if len(unused) > 1 else ""
        kind = type(model).__name__
        raise file.refused(f"{unused[0]}{more} would be left out, for {kind} has no place for them")


def _known_tensors(file: GgufFile, model: Any) -> set[str]:
    """The tensors that transformers finds a place for, by the names that gguf gives weights."""
    import gguf

    arch = next(a for a, name in gguf.MODEL_ARCH_NAMES.items() if name == file.architecture)
    names = gguf.get_tensor_name_map(arch, file.take("block_count", 0))
    known: set[str] = set()
    for own in model.state_dict():
        parts = re.sub(r"experts\.\d+\.", "experts.", own).split(".")
        for start in range(len(parts)):  # some families are named from an inner module on
            found = names.get_name(".".join(parts[start:]), try_suffixes=(".weight", ".bias"))
            known |= {found, f"{found}.weight"} if found else set()
    if file.architecture in MOE:
        layers = range(file.take("block_count", 0))
        known |= {f"blk.{i}.ffn_{kind}_exps.weight" for i in layers for kind in ("gate", "up")}
    return known
