"""A GGUF file's own account of its model: every key and every tensor is used, or refused by name.

transformers reads the weights of some twenty architectures out of GGUF files, and only part of what
the files say beside them: RoPE scaling, caps on logits, widths of heads or how text is split are
left at the defaults of a family. `modelassay.models.gguf_settings` puts those right;
`modelassay.models.gguf_tokens` does so for the tokenizer. Here is what both read from, and what
cannot be read at all.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Iterator, Mapping
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
TEXT, LIST, LONGEST, SMALLEST = 8, 9, 4096, 24
NUMBERS: dict[int, str] = dict(
    zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True)
)
"""What the types of numbers in metadata are called in `struct`."""
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
    data = np.memmap(path, np.uint8, "r") if size >= SMALLEST else np.zeros(SMALLEST, np.uint8)
    if data[:4].tobytes() != b"GGUF":
        raise InputError(f"{path.name} is not a GGUF file.")
    header = _Header(data.data)
    if header.version & 0xFFFF == 0:
        raise InputError(
            f"{path.name}: its numbers are big-endian; convert it with gguf_convert_endian.py."
        )
    try:
        values = dict(header.values())
        tensors = list(header.tensors())
        start = -(-header.at // (align := int(values.get("general.alignment", 32)))) * align
    except (struct.error, ValueError, OverflowError, ZeroDivisionError, TypeError) as error:
        raise InputError(
            f"{path.name} cannot be read as a GGUF file ({first_line(error)}); it is damaged, cut"
            " short or of a newer format. Download it again."
        ) from error
    architecture = str(values.get("general.architecture", ""))
    file = GgufFile(path, architecture, values, {t.name: t.shape for t in tensors}, {})
    _check_kind(file)
    vectors = {}
    for tensor in tensors:
        packed = _packed(file, tensor, data[start + tensor.offset :])
        if tensor.name in ROPE_TENSORS:
            vectors[tensor.name] = _unpack(packed, tensor.kind).reshape(-1)
    return replace(file, vectors=vectors)


def _check_kind(file: GgufFile) -> None:
    """Refuses a file that holds no model of its own, or one that is not read right."""
    values, architecture = file.values, file.architecture
    if (parts := int(values.get("split.count") or 1)) > 1:
        part = int(values.get("split.no") or 0) + 1
        raise file.refused(
            f"it is part {part} of {parts}", "join the parts with llama-gguf-split --merge"
        )
    kind = "mmproj" if architecture == "clip" else values.get("general.type")
    if kind in NO_MODELS:
        raise InputError(f"{file.path.name} holds {NO_MODELS[kind]}.")
    if architecture not in READ:
        raise file.refused(f"GGUF files of the architecture {architecture!r} are not read right")
    if "token_embd.weight" not in file.shapes:
        raise file.refused("it holds no weights of a language model (no token_embd.weight)")
    if architecture not in BY_NEW_READER:
        for key in ONE_FOR_ALL_LAYERS:
            if isinstance(file.take(key), list):
                raise file.refused(f"{architecture}.{key} says one for each layer")


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    kind: int
    """Number of its GGML type."""
    offset: int
    """From the start of all tensors."""


class _Header:
    """Reads a file's beginning from front to back.

    gguf's own reader makes an array of each token of a vocabulary, which takes it 20 seconds where
    there are 262,144; here they are passed over.
    """

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 4
        self.version, self._n_tensors, self._n_values = self._numbers("IQQ")

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each key with its value; of a list of texts, or a long list, its length."""
        for _ in range(self._n_values):
            yield self._text(), self._value(*self._numbers("I"))

    def tensors(self) -> Iterator[_Tensor]:
        """What is said of each tensor; `at` is then the end of the header."""
        for _ in range(self._n_tensors):
            name, (n,) = self._text(), self._numbers("I")
            shape = self._numbers(f"{n}Q")[::-1]
            kind, offset = self._numbers("IQ")
            yield _Tensor(name, shape, kind, offset)

    def _numbers(self, form: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{form}", self.data, self.at)
        self.at += struct.calcsize(f"<{form}")
        return found

    def _text(self) -> str:
        (length,) = self._numbers("Q")
        self.at += length
        return self.data[self.at - length : self.at].tobytes().decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == TEXT:
            return self._text()
        if kind != LIST:
            return self._numbers(NUMBERS[kind])[0]
        of_kind, count = self._numbers("IQ")
        if of_kind == TEXT:
            for _ in range(count):
                self.at += 8 + struct.unpack_from("<Q", self.data, self.at)[0]
            return count
        if count > LONGEST:  # scores and types of tokens
            self.at += count * struct.calcsize(f"<{NUMBERS[of_kind]}")
            return count
        return list(self._numbers(f"{count}{NUMBERS[of_kind]}"))


def _packed(file: GgufFile, tensor: _Tensor, rest: np.ndarray) -> np.ndarray:
    """A tensor's bytes, of a type that can be unpacked."""
    import gguf

    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
        block, size = gguf.GGML_QUANT_SIZES[kind]
        _unpack(np.zeros((1, size), np.uint8), tensor.kind)
    except (ValueError, KeyError, NotImplementedError) as error:
        known = [each.name for each in gguf.GGMLQuantizationType if each == tensor.kind]
        stored = known[0] if known else f"GGML type {tensor.kind}"
        raise file.refused(
            f"{tensor.name} is stored as {stored}, which cannot be unpacked"
        ) from error
    length = math.prod(tensor.shape) // block * size
    if tensor.shape[-1] % block or length > len(rest):
        raise InputError(
            f"{file.path.name} cannot be read as a GGUF file ({tensor.name} does not fit into it);"
            " it is damaged or cut short. Download it again."
        )
    return rest[:length]


def _unpack(data: np.ndarray, kind: int) -> np.ndarray:
    import gguf

    of_type = gguf.GGMLQuantizationType(kind)
    if of_type.name in ("F32", "F16"):
        return data.view(np.dtype(f"<f{4 if of_type.name == 'F32' else 2}")).astype(np.float32)
    return gguf.quants.dequantize(data, of_type)


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
