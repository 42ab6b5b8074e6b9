"""What a model's files are: a local folder that holds everything, wherever it came from.

Loading, hashing and the weight forensics read a `Source` and need not know what the user typed;
`modelassay.models.finding` makes one of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelassay.errors import InputError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PICKLED_ADAPTER = "adapter_model.bin"
SINGLE_FILE = "model.safetensors"
WEIGHTS = (".safetensors", ".gguf")
TOKENIZERS = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")
INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class AfterLoad:
    """What is done to a model in memory once its files are loaded."""

    summary: str
    """One line about it."""
    apply: Callable[[Any], None]
    """Changes a transformers model in place."""
    files: tuple[Path, ...] = ()
    """Files beside the weights that decide the result: they count for its hash."""
    how: str | None = None
    """What else decides the weights (rounding, shares, a seed): it counts for the hash as well."""
    refuses_packed: str | None = None
    """Why weights may not be quantised on loading, where they may not."""


@dataclass(frozen=True)
class Source:
    """Local files of a model, or of an adapter."""

    id: str
    folder: Path
    commit: str | None
    """Hub commit, or None."""
    gguf_file: str | None = None
    remote: Mapping[str, str] = field(default_factory=dict)
    """sha256 of weight files that were left on the Hub, by path."""
    after_load: AfterLoad | None = None
    """Further making of the model; only organisms have some."""

    def weight_files(self) -> list[Path]:
        """The files that hold this source's weights, sorted by name.

        A folder may hold several sets of weights; these are the ones that transformers opens, so
        that the hash and the forensics are of the weights that act.

        Raises:
            InputError: the config or the index is damaged.
        """
        if self.gguf_file:
            return [self.folder / self.gguf_file]
        if self.is_adapter():
            return [self.folder / ADAPTER_WEIGHTS]
        name = read_json(self.folder / "config.json").get("transformers_weights")
        if name is None:
            single = self.has(SINGLE_FILE) or not (self.folder / INDEX).is_file()
            name = SINGLE_FILE if single else INDEX
        elif not isinstance(name, str) or not name.endswith((".safetensors", INDEX[5:])):
            raise InputError(
                f"The config of {self.id} names weights that are not a safetensors file."
            )
        if not name.endswith(".json"):
            return [self.folder / name]
        weight_map = read_json(self.folder / name).get("weight_map")
        shards = list(weight_map.values()) if isinstance(weight_map, dict) else []
        if not shards or not all(isinstance(shard, str) for shard in shards):
            raise InputError(f"{self.folder / name} does not say which file holds which weight.")
        return sorted({self.folder / shard for shard in shards})

    def is_adapter(self) -> bool:
        """Whether the folder holds a PEFT adapter and no model of its own."""
        return not self.gguf_file and self.has_adapter() and not self._has_model()

    def has_adapter(self) -> bool:
        """Whether there is a PEFT adapter in the folder, alone or beside a model."""
        return (self.folder / ADAPTER_CONFIG).is_file()

    def has_tokenizer(self) -> bool:
        """Whether the folder holds a tokenizer."""
        return any(self.has(name) for name in TOKENIZERS)

    def _has_model(self) -> bool:
        return any(self.has(name) for name in (SINGLE_FILE, INDEX))

    def sha256_on_hub(self, file: Path) -> str | None:
        """sha256 of a weight file that was left on the Hub."""
        return self.remote.get(file.relative_to(self.folder).as_posix())

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, here or left on the Hub."""
        return name in self.remote or (self.folder / name).is_file()


def read_json(path: Path) -> dict[str, Any]:
    """Reads a JSON object.

    Raises:
        InputError: the file is missing, is not JSON, or is not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist.") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} must hold a JSON object.")
    return value
