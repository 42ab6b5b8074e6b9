"""What identifies a model: names, numbers and hashes that any report carries."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from modelassay.hub import blob_sha256


@dataclass(frozen=True)
class ModelInfo:
    """Identity of a loaded model, JSON-ready."""

    id: str
    """As the user gave it."""
    revision: str | None
    """Hub commit (40 hex digits), or None for a local model."""
    adapter: str | None
    """Adapter id or folder that was applied over the base, or None."""
    organism: str | None
    """What was done to it if it is a model organism, else None."""
    architecture: str
    n_layers: int
    hidden_size: int
    dtype: str
    quantization: str | None
    weights_sha256: str
    tokenizer_sha256: str
    chat_template_sha256: str | None
    """None when the tokenizer has no chat template."""

    @property
    def name(self) -> str:
        """The id, and that of the adapter over it where it is another one."""
        return " + ".join(dict.fromkeys(filter(None, [self.id, self.adapter])))

    def to_dict(self) -> dict[str, Any]:
        """All fields by name."""
        return asdict(self)


def hash_files(files: Iterable[Path], rounding: str | None = None) -> str:
    """sha256 of a set of weight files.

    One file gives its own sha256, the number that the Hub shows for it. Several give the sha256 of
    the lines "<sha256>  <name>" sorted by name, which is what `sha256sum *.safetensors | sha256sum`
    prints. Weights that are rounded on loading are not the files'; `rounding` is one more line.
    """
    digests = {file.name: hash_file(file) for file in files}
    if len(digests) == 1 and rounding is None:
        return next(iter(digests.values()))
    lines = "".join(f"{digests[name]}  {name}\n" for name in sorted(digests))
    lines += f"{rounding}\n" if rounding else ""
    return hashlib.sha256(lines.encode()).hexdigest()


def hash_file(file: Path) -> str:
    """sha256 of a file; that of a file in the Hub's cache is its name there."""
    if (known := blob_sha256(file)) is not None:
        return known
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()


TOKENIZER_SETTINGS = ("add_bos_token", "add_eos_token", "model_max_length", "truncation_side")


def hash_tokenizer(tokenizer: Any) -> str:
    """sha256 of what decides how text becomes tokens: vocabulary, merges, special tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        spec = json.loads(backend.to_str())
        # Padding and truncation are settings of the last call, not of the tokenizer.
        spec.pop("padding", None)
        spec.pop("truncation", None)
    else:
        spec = {"vocab": tokenizer.get_vocab(), "special": tokenizer.special_tokens_map}
    spec = {
        "spec": spec,
        "special": {name: str(token) for name, token in tokenizer.special_tokens_map.items()},
        "settings": {name: getattr(tokenizer, name, None) for name in TOKENIZER_SETTINGS},
    }
    text = json.dumps(spec, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_chat_template(tokenizer: Any) -> str | None:
    """sha256 of the chat template's text, or None without one."""
    template = getattr(tokenizer, "chat_template", None)
    if template is None:
        return None
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
