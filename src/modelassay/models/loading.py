"""`load()`: one way to open a causal language model, whatever form it comes in.

Only safetensors and GGUF files are opened, remote code stays off unless asked for, and a
checkpoint whose files are not the model that its config describes is refused (see `accounting`).
"""

from __future__ import annotations

import logging
import multiprocessing
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from typing_extensions import Unpack

from modelassay.errors import InputError, UnavailableError
from modelassay.models.accounting import (
    StoredTensor,
    check_accounts,
    check_finite,
    read_headers,
)
from modelassay.models.adapters import apply_adapter
from modelassay.models.explain import cause_of, explain_loading
from modelassay.models.finding import find_sources
from modelassay.models.gguf import check_tensors, read_gguf
from modelassay.models.gguf_settings import complete_config
from modelassay.models.gguf_tokens import complete_tokenizer
from modelassay.models.identity import (
    ModelIdentity,
    hash_chat_template,
    hash_files,
    hash_tokenizer,
)
from modelassay.models.layers import check_architecture, text_config
from modelassay.models.quantization import (
    bitsandbytes_config,
    check_packed,
    keep_from_packing,
    settle_quantization,
)
from modelassay.models.refs import (
    ModelOptions,
    ModelRef,
    check_device_name,
    check_dtype_name,
    take_ref,
)
from modelassay.models.settings import processor_template, readable_generation
from modelassay.models.sources import Source, read_json
from modelassay.models.stack import find_stack
from modelassay.models.watching import input_device
from modelassay.progress import OnPhase, silent

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CHAT_TEMPLATE = "chat_template.jinja"
QUANTIZATIONS = ("8bit", "4bit")
PANGRAM = "The quick brown fox jumps over the lazy dog; 0123456789 times!"


@dataclass(frozen=True)
class LoadedModel:
    """A model in evaluation mode with all that is needed to read it."""

    network: Any
    """The transformers model (adapters are merged unless the base is quantised)."""
    tokenizer: Any
    layers: tuple[nn.Module, ...]
    """Its decoder layers, first to last."""
    info: ModelIdentity
    source: Source
    """Files of the base model."""
    adapter: Source | None = None
    named_turns: bool = False
    """Whether turns outside of a chat template are headed `User:` and `Assistant:`."""

    @property
    def device(self) -> torch.device:
        """Where input ids have to be."""
        return input_device(self.network)

    @property
    def context_length(self) -> int:
        """Most tokens that the model accepts."""
        config = text_config(self.network.config)
        for name in ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length"):
            if isinstance(value := getattr(config, name, None), int) and value > 0:
                return value
        return 2048  # ALiBi models state none

    @property
    def has_chat_template(self) -> bool:
        """Whether conversations can be rendered as this model was trained on them."""
        return bool(getattr(self.tokenizer, "chat_template", None))


def load(
    model: str | ModelRef,
    *,
    revision: str | None = None,
    adapter: str | None = None,
    gguf_file: str | None = None,
    base: str | None = None,
    device: str | Mapping[str, Any] = "auto",
    dtype: str = "auto",
    quantization: str | None = None,
    token: str | bool | None = None,
    trust_remote_code: bool = False,
    chat_template: bool = True,
    max_bytes: int | None = None,
) -> LoadedModel:
    """Loads a causal language model for reading.

    Args:
        model: `embedded`, `gemma`, `organism:NAME`, `gemma:NAME`, a Hub id, a local folder, a
            `.gguf` file, or a PEFT adapter (its base is then loaded and the adapter applied); or a
            `ModelRef`.
        revision: Hub branch, tag or commit.
        adapter: PEFT adapter (Hub id or folder) to apply over `model`.
        gguf_file: Name of the GGUF file inside the folder or repository.
        base: Base of `model`, where that is an adapter whose config does not tell it.
        device: `auto` (all GPUs through accelerate, else CPU), `cpu`, `cuda`, `cuda:N`, or an
            accelerate device map.
        dtype: `auto`, `float32`, `float16` or `bfloat16`. `auto` is the checkpoint's own on a GPU;
            on a CPU float32, or bfloat16 when float32 would fill more than half of the memory.
        quantization: None, `8bit` or `4bit` (bitsandbytes, on GPU and CPU).
        token: Hub token; None uses the stored one, False none at all.
        trust_remote_code: Run the repository's own Python code. Never needed for a model that
            transformers knows.
        chat_template: False leaves the model's chat template out: it reads plain text.
        max_bytes: Refuse to fetch more than this from the Hub for one repository.

    Raises:
        InputError: the model cannot be read or an option is unknown.
        UnavailableError: something it needs is not there now.
    """
    check_dtype_name(dtype)
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise InputError(f"Unknown quantization {quantization!r}; choose 8bit or 4bit.")
    device_map = _device_map(device)
    # It warns of kernels it could fetch, and of a cast that is meant for every layer and batch.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    parts = {"revision": revision, "adapter": adapter, "gguf_file": gguf_file, "base": base}
    ref, _ = take_ref(model, parts)
    source, adapter_source = find_sources(
        ref, token=token, trust_remote_code=trust_remote_code, max_bytes=max_bytes
    )
    after = (adapter_source or source).after_load
    if after is not None and after.refuses_packed and quantization:
        raise InputError(after.refuses_packed)
    network, tokenizer, packed_by = _load_base(
        source, adapter_source, device_map, dtype, quantization, trust_remote_code
    )
    if adapter_source is not None:
        packed = getattr(network, "is_quantized", False) and packed_by != "gguf"
        network = apply_adapter(
            network,
            adapter_source,
            tokenizer,
            lambda: load_tokenizer(source, trust_remote_code=trust_remote_code).get_vocab(),
            merge=not packed,
        )
    if not chat_template:
        tokenizer.chat_template = None
    network.eval().requires_grad_(False)
    if after is not None:
        after.apply(network)
    check_finite(network, ref.id)

    config = text_config(network.config)
    layers = find_stack(network, tokenizer)
    files = source.weight_files() + (adapter_source.weight_files() if adapter_source else [])
    files += after.files if after else ()
    info = ModelIdentity.of_loaded(
        id=ref.id,
        revision=source.commit,
        adapter=adapter_source.id if adapter_source else None,
        organism=after.summary if after else None,
        architecture=(network.config.architectures or [type(network).__name__])[0],
        n_layers=len(layers),
        hidden_size=config.hidden_size,
        dtype=str(network.dtype).removeprefix("torch."),
        quantization=quantization or packed_by,
        weights_sha256=hash_files(files, after.how if after else None),
        tokenizer_sha256=hash_tokenizer(tokenizer),
        chat_template_sha256=hash_chat_template(tokenizer),
    )
    return LoadedModel(network, tokenizer, layers, info, source, adapter_source)


def open_model(
    model: str | ModelRef | LoadedModel,
    *,
    on_progress: OnPhase = silent,
    **options: Unpack[ModelOptions],
) -> LoadedModel:
    """A model, loaded if it is not yet.

    Args:
        model: An id, a reference, or a loaded model, which is given back as it is.
        on_progress: Told `loading` where there is something to load.
        **options: As in `load`.

    Raises:
        InputError: as `load`, or a loaded model is given together with a revision or an adapter.
        UnavailableError: as `load`.
    """
    ref, rest = take_ref(model, options)
    if isinstance(ref, LoadedModel):
        return ref
    on_progress("loading", 0, 1)
    loaded = load(ref, **rest)
    on_progress("loading", 1, 1)
    return loaded


def _device_map(device: str | Mapping[str, Any]) -> Any:
    if not isinstance(device, str):
        if not device:
            raise InputError('The device map is empty; {"": "cpu"} puts a whole model on the CPU.')
        return dict(device)
    if device == "auto" and has_gpu():
        return "auto"
    return {"": str(pick_device(device))}


def has_gpu() -> bool:
    """Whether there is a GPU that this process may use.

    In the main process of a ZeroGPU Space torch says so, but there only seems to be one: calls that
    a GPU is lent to are forks.
    """
    seems = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
    if seems and multiprocessing.parent_process() is None:
        return False
    return torch.cuda.is_available()


def pick_device(device: str) -> torch.device:
    """The device of that name; `auto` takes a GPU if there is one.

    Raises:
        InputError: no such name.
        UnavailableError: CUDA was asked for and there is none.
    """
    if device == "auto":
        return torch.device("cuda" if has_gpu() else "cpu")
    if device != "cpu":
        check_device_name(device)
        if not has_gpu():
            raise UnavailableError("CUDA was asked for but there is none here; use --device cpu.")
        if device != "cuda" and int(device[5:]) >= torch.cuda.device_count():
            raise UnavailableError(f"There is no {device}; {torch.cuda.device_count()} GPUs found.")
    return torch.device(device)


def _load_base(
    source: Source,
    adapter: Source | None,
    device_map: Any,
    dtype: str,
    quantization: str | None,
    trust_remote_code: bool,
) -> tuple[Any, Any, str | None]:
    """The model, its tokenizer, and what its files are packed by."""
    where = _where(source, trust_remote_code)
    with explain_loading(source.id):
        config = _read_config(where, source)
        check_architecture(config)
        model_class = _auto_class(config)
        stored: dict[str, StoredTensor] = {}
        packed_by: str | None = "gguf"
        if not source.gguf_file:
            stored = read_headers(source.weight_files())
            packed_by = settle_quantization(source, config, stored, quantization)
            _compute_plainly(config)
        tokenizer = _load_tokenizer(where, source, adapter)
        # Weights of another shape are taken as missing, because the report then names them.
        options: dict[str, Any] = {"config": config, "ignore_mismatched_sizes": True}
        options["dtype"] = _dtype(dtype, source, device_map)
        if source.gguf_file and quantization:
            raise InputError("A GGUF file is already quantised; leave --load-8bit/4bit out.")
        if not source.gguf_file:
            options["use_safetensors"] = True
            options["generation_config"] = readable_generation(source)
        if quantization:
            options["quantization_config"] = bitsandbytes_config(quantization)
        model, report = model_class.from_pretrained(
            **where, **options, device_map=device_map, output_loading_info=True
        )
        check_accounts(source, stored, model, report)
        if packed_by:
            check_packed(model, source)
    if source.gguf_file:
        check_tensors(read_gguf(source.folder / source.gguf_file), model)
    if getattr(model, "is_loaded_in_4bit", False):  # asked for, or stored so
        keep_from_packing(model)
    return model, tokenizer, packed_by


def load_tokenizer(
    source: Source, adapter: Source | None = None, *, trust_remote_code: bool = False
) -> Any:
    """The tokenizer alone, without the weights.

    Args:
        source: Files of the model.
        adapter: Those of an adapter over it, whose tokenizer and chat template come first.
        trust_remote_code: As in `load`.

    Raises:
        InputError: it cannot be read.
    """
    where = _where(source, trust_remote_code)
    with explain_loading(source.id):
        return _load_tokenizer(where, source, adapter)


def load_config(source: Source, *, trust_remote_code: bool = False) -> Any:
    """The configuration alone, with the defaults that transformers fills in.

    Raises:
        InputError: it cannot be read.
    """
    where = _where(source, trust_remote_code)
    with explain_loading(source.id):
        return _read_config(where, source)


def _where(source: Source, trust_remote_code: bool) -> dict[str, Any]:
    """Arguments that tell transformers where a model is."""
    where: dict[str, Any] = {
        "pretrained_model_name_or_path": str(source.folder),
        "local_files_only": True,
        "trust_remote_code": trust_remote_code,
    }
    if source.gguf_file:
        where["gguf_file"] = source.gguf_file
        return where
    _check_settings(source)
    if not trust_remote_code:
        _check_no_remote_code(source)
    return where


def _compute_plainly(config: Any) -> None:
    """Takes out of a config how its author's programs computed: the results are the same."""
    if config._attn_implementation not in (None, "eager", "sdpa"):  # may need a package or a GPU
        config._attn_implementation = None
    for part in (config, text_config(config)):
        part.return_dict = True


def _read_config(where: dict[str, Any], source: Source) -> Any:
    import transformers

    if not source.gguf_file:
        return transformers.AutoConfig.from_pretrained(**where)
    file = read_gguf(source.folder / source.gguf_file)  # its refusals say more
    return complete_config(file, transformers.AutoConfig.from_pretrained(**where))


def _load_tokenizer(where: dict[str, Any], source: Source, adapter: Source | None) -> Any:
    import transformers

    own = adapter is not None and adapter.has_tokenizer()
    if adapter is not None and own:
        # An adapter has no config as a rule, and some kinds of tokenizers ask for it.
        where = {
            **where,
            "pretrained_model_name_or_path": str(adapter.folder),
            "config": _read_config(where, source),
            "gguf_file": None,
        }
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
        pieces: Any = getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)
        if getattr(pieces, "dropout", None):  # of training: the same text would differ each time
            pieces.dropout = None
        tokenizer(PANGRAM)  # some fail only then
    except ImportError:
        raise
    except Exception as error:  # the tokenizers library raises plain Exception
        cause = cause_of(error)
        if cause.startswith("Couldn't instantiate the backend tokenizer"):
            cause = "there is no tokenizer.json nor another tokenizer file"
        name = adapter.id if adapter is not None and own else source.id
        raise InputError(f"Cannot load the tokenizer of {name}: {cause}") from error
    if adapter is not None:
        own_template = adapter.folder / CHAT_TEMPLATE
        if not own and own_template.is_file():
            tokenizer.chat_template = own_template.read_text(encoding="utf-8")
    if source.gguf_file and not own:
        complete_tokenizer(read_gguf(source.folder / source.gguf_file), tokenizer)
    elif not getattr(tokenizer, "chat_template", None):
        tokenizer.chat_template = processor_template(source)
    return tokenizer


def _auto_class(config: Any) -> Any:
    import transformers
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    )

    if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        return transformers.AutoModelForImageTextToText
    if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING or getattr(config, "auto_map", None):
        return transformers.AutoModelForCausalLM
    raise InputError(
        f"Model type {config.model_type!r} is not a causal language model; modelassay cannot read"
        " it."
    )


def _check_settings(source: Source) -> None:
    """Refuses settings that transformers takes without a look at what they are."""
    config = read_json(source.folder / "config.json")
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        for setting in ("dtype", "torch_dtype"):
            name = part.get(setting)
            if isinstance(name, str) and not isinstance(getattr(torch, name, None), torch.dtype):
                raise InputError(
                    f"The config.json of {source.id} has the {setting} {name!r}, which torch does"
                    " not know; write one such as bfloat16."
                )
        entry = part.get("quantization_config")
        if not isinstance(entry, dict | type(None)):
            raise InputError(
                f"The quantization_config in the config.json of {source.id} must be an object, not"
                f" {str(entry)[:40]!r}; correct it, or remove it if the weights are plain."
            )


def _check_no_remote_code(source: Source) -> None:
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = read_json(source.folder / "config.json")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        if config.get("auto_map"):
            raise InputError(
                f"{source.id} needs its own Python code to load; read that code first, then pass"
                " --trust-remote-code."
            )
        raise InputError(f"{source.id} has the unknown model type {kind!r}; update transformers?")


def _dtype(name: str, source: Source, device_map: Any) -> Any:
    if name != "auto":
        return DTYPES[name]
    if device_map != {"": "cpu"}:
        return "auto"
    import psutil

    # Files hold 2 bytes a weight as a rule (GGUF about half a byte, fp32 four): float32 at worst
    # doubles a bf16 checkpoint. Weights that are fp32 on disk are counted twice, on the safe side.
    size = sum(file.stat().st_size for file in source.weight_files())
    as_float32 = size * (8 if source.gguf_file else 2)
    return torch.float32 if as_float32 < psutil.virtual_memory().total / 2 else torch.bfloat16
