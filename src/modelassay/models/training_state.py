"""The state of a training that may be stopped and given again: safetensors and JSON, no pickle.

It is kept whole or not at all, and taken up only by a run of the same identity.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.files.atomic import explain_os_errors, new_folder

STATE_FILE, PROGRESS_FILE = "state.safetensors", "progress.json"
MOMENTS = "adam."


def save_state(
    folder: Path, identity: str, tensors: Mapping[str, Tensor], progress: Mapping[str, Any]
) -> None:
    """Keeps the state of a training in place of the one before.

    Args:
        folder: Where.
        identity: What the run depends on, as a hash.
        tensors: By name.
        progress: JSON-ready.

    Raises:
        UnavailableError: no room, or no permission.
    """
    from safetensors.torch import save_file

    with explain_os_errors("keeping the training's state"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder) as partial:
            kept = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
            save_file(kept, partial / STATE_FILE)
            text = json.dumps({"identity": identity, **progress})
            (partial / PROGRESS_FILE).write_text(text, encoding="utf-8")


def load_state(folder: Path, identity: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What was kept of a run of this identity, or None where nothing was.

    Raises:
        InputError: it is damaged, or of another run.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not (folder / PROGRESS_FILE).is_file():
        return None
    try:
        progress = json.loads((folder / PROGRESS_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / STATE_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise damaged_state(folder) from error
    if not isinstance(progress, dict) or progress.get("identity") != identity:
        raise InputError(
            f"{folder} holds the state of a run with another model, other data or other settings;"
            " delete the folder or give another."
        )
    return tensors, progress


def damaged_state(folder: Path) -> InputError:
    """The error about a state that cannot be taken up."""
    return InputError(f"The state in {folder} is damaged; delete the folder.")


def moments_of(optimizer: Any) -> dict[str, Tensor]:
    """What an optimizer of Adam's kind has gathered, as tensors by name."""
    state = optimizer.state_dict()["state"]
    return {
        f"{MOMENTS}{index}.{name}": torch.as_tensor(value)
        for index, moments in state.items()
        for name, value in moments.items()
    }


def restore_moments(optimizer: Any, tensors: Mapping[str, Tensor]) -> None:
    """Gives an optimizer what `moments_of` took, among tensors of other names."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(MOMENTS):
            index, field = name.removeprefix(MOMENTS).split(".")
            state.setdefault(int(index), {})[field] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
