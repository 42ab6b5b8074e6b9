"""PEFT adapters: applied to their base so that the model acts as it does under PEFT.

An adapter is merged, so that the model is as fast as its base and the forensics see the weights
that act. Merging adds to a weight, and a weight that two layers share (tied embeddings, replicated
layers) would change in both, while only one has the adapter: these get weights of their own first.
Whether the merged model still says the same is checked, whatever the adapter's kind.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modelassay.errors import InputError, UnavailableError
from modelassay.models.accounting import StoredTensor, read_headers, same_tensor
from modelassay.models.explain import cause_of, explain_loading
from modelassay.models.layers import text_config
from modelassay.models.sources import ADAPTER_CONFIG, ADAPTER_WEIGHTS, Source, read_json

PEFT_PREFIX = "base_model.model."
LORA_A = ".lora_A.weight"
CHECKED_TOKENS = 12
ROUNDING = {torch.float32: 1e-2}
"""Relative distance of logits that merging may cause, by dtype."""
ROUNDING_16BIT = 0.2


def apply_adapter(
    model: Any,
    adapter: Source,
    tokenizer: Any,
    base_vocabulary: Callable[[], Mapping[str, int]],
    *,
    merge: bool,
) -> Any:
    """The model with the adapter in it.

    Args:
        model: A loaded base model.
        adapter: Files of the adapter.
        tokenizer: The one that goes with both.
        base_vocabulary: Gives the tokens of the base's own tokenizer; called where it matters.
        merge: Add its weights to the base's (not possible where those are quantised).

    Raises:
        InputError: the adapter does not fit, changes no weights, or cannot be merged.
        UnavailableError: the base is partly on disk.
    """
    from peft import PeftConfig, PeftModel

    folder = str(adapter.folder)
    base = model.config._name_or_path or "this base"
    if "disk" in (getattr(model, "hf_device_map", None) or {}).values():
        raise UnavailableError(
            f"{base} is partly offloaded to the disk, where no adapter can be applied; merge the"
            " adapter into it first, or try --load-4bit."
        )
    with explain_loading(adapter.id):
        config = PeftConfig.from_pretrained(folder)
        _check_known(adapter, config)
        if config.is_prompt_learning:
            raise InputError(
                f"The adapter {adapter.id} learns prompts and changes no weights; modelassay reads"
                " adapters that change weights, such as LoRA."
            )
        _fit_vocabulary(model, adapter, tokenizer, base_vocabulary)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Found missing adapter keys")
                # A property that peft asks transformers for by its old name.
                warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`")
                wrapped = PeftModel.from_pretrained(model, folder, is_trainable=False)
            # The same once more, because only this call tells which weights found no place.
            result = wrapped.load_adapter(folder, "default")
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"The adapter {adapter.id} does not fit {base}: {cause_of(error)}"
            ) from error
        unused = _unused(adapter, result.unexpected_keys)
        if wrong := sorted(result.missing_keys) + unused:
            raise InputError(
                f"The adapter {adapter.id} does not fit {base}: {len(wrong)} weights are in one of"
                f" them only (first: {wrong[0]})."
            )
        return _merge(wrapped.eval(), adapter) if merge else wrapped


@torch.no_grad()
def add_adapter(model: Any, folder: Path, share: float) -> None:
    """Adds a share of what a plain LoRA adapter changes to a model's weights, in place.

    Args:
        model: A transformers model with plain weights.
        folder: The adapter's; both of its files have been checked by whoever made it.
        share: 1 adds the whole adapter; shares of two adapters make a linear merge of them.

    Raises:
        InputError: the adapter has tensors that the model has no place for.
    """
    from safetensors.torch import load_file

    config = read_json(folder / ADAPTER_CONFIG)
    scale = share * config["lora_alpha"] / config["r"]
    tensors = load_file(str(folder / ADAPTER_WEIGHTS))
    for name, a in tensors.items():
        if not name.endswith(LORA_A):
            continue
        module = name.removeprefix(PEFT_PREFIX).removesuffix(LORA_A)
        try:
            weight = model.get_parameter(f"{module}.weight")
        except AttributeError as error:
            raise InputError(f"The adapter in {folder} does not fit this model.") from error
        b = tensors[name.removesuffix(LORA_A) + LORA_A.replace("A", "B")]
        weight += (scale * (b.double() @ a.double())).to(weight)


def _unused(adapter: Source, keys: list[str]) -> list[str]:
    """Tensors of an adapter that PEFT found no place for, but for its own second copies.

    Of embeddings that were resized or are tied, PEFT saves what it trained under two names.
    """
    if not keys:
        return []
    stored = read_headers(adapter.weight_files())
    used = [tensor for name, tensor in stored.items() if name not in keys]

    def is_copy(key: str) -> bool:
        saved = ".modules_to_save." in key or ".token_adapter." in key
        return saved and any(same_tensor(stored[key], other) for other in used)

    return sorted(key for key in keys if key not in stored or not is_copy(key))


def _merge(wrapped: Any, adapter: Source) -> Any:
    """The base with the adapter's weights added to its own."""
    before = _logits(wrapped)
    _untie(wrapped)
    try:
        merged = wrapped.merge_and_unload()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AttributeError) as error:
        raise InputError(
            f"The adapter {adapter.id} ({_kind(wrapped)}) cannot be merged into its base"
            f" ({cause_of(error)}); modelassay reads adapters that can, such as LoRA."
        ) from error
    for config in {id(c): c for c in (merged.config, text_config(merged.config))}.values():
        if merged.get_input_embeddings().weight is not merged.get_output_embeddings().weight:
            config.tie_word_embeddings = False
    after = _logits(merged.eval())
    allowed = ROUNDING.get(merged.dtype, ROUNDING_16BIT)
    if not (distance := float((after - before).norm() / before.norm())) <= allowed:
        raise InputError(
            f"Merged into its base, the adapter {adapter.id} ({_kind(wrapped)}) acts otherwise than"
            f" beside it (logits are {distance:.0%} away); merge it yourself and pass the result."
        )
    return merged


def _kind(wrapped: Any) -> str:
    return str(wrapped.peft_config["default"].peft_type.value)


def _logits(model: Any) -> Tensor:
    """Logits of a few tokens, to tell two forms of one model apart."""
    embedding = model.get_input_embeddings().weight
    ids = torch.arange(1, 1 + CHECKED_TOKENS, device=embedding.device) % embedding.shape[0]
    with torch.inference_mode():
        return model(input_ids=ids[None], use_cache=False).logits.float()


def _untie(wrapped: Any) -> None:
    """Gives layers with an adapter weights of their own where they share them with others."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    owners = Counter(
        id(parameter)
        for module in wrapped.modules()
        for parameter in module._parameters.values()
        if parameter is not None
    )
    for module in wrapped.modules():
        if not isinstance(module, BaseTunerLayer):
            continue
        layer = module.get_base_layer()
        for name, parameter in layer._parameters.items():
            if parameter is not None and owners[id(parameter)] > 1:
                own = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                setattr(layer, name, own)


def _check_known(adapter: Source, config: Any) -> None:
    """Refuses settings of a later version of PEFT, which this one would pass over.

    Raises:
        UnavailableError: names the first.
    """
    import peft
    from packaging.version import InvalidVersion, parse

    stored = read_json(adapter.folder / ADAPTER_CONFIG)
    try:
        later = parse(str(stored.get("peft_version")).split("@")[0]) > parse(peft.__version__)
    except InvalidVersion:  # older ones do not say
        later = False
    unknown = sorted(key for key, value in stored.items() if value and not hasattr(config, key))
    if later and unknown:
        raise UnavailableError(
            f"The adapter {adapter.id} has the setting {unknown[0]}, which peft {peft.__version__}"
            f" does not know; update it to {stored['peft_version']}."
        )


def _fit_vocabulary(
    model: Any, adapter: Source, tokenizer: Any, base_vocabulary: Callable[[], Mapping[str, int]]
) -> None:
    """Gives the model as many token embeddings as the adapter was trained with.

    Raises:
        InputError: the adapter's tokenizer has tokens that neither it nor the base has weights for.
    """
    if not adapter.has_tokenizer():
        return  # no tokens of its own: PEFT tells whether it fits
    rows = model.get_input_embeddings().weight.shape[0]
    trained = _trained_rows(model, adapter)
    beyond = {i: t for t, i in tokenizer.get_vocab().items() if i >= (trained or rows)}
    # Some bases have tokens without embeddings themselves, which no text holds.
    of_base = base_vocabulary() if beyond else {}
    beyond = {i: token for i, token in beyond.items() if of_base.get(token) != i}
    known = {*_trained_tokens(adapter), tokenizer.pad_token_id}
    if new := sorted(token for i, token in beyond.items() if i not in known):
        raise InputError(
            f"The tokenizer of the adapter {adapter.id} has {len(new)} tokens more than there are"
            f" embeddings (first: {new[0]!r}): it was saved without those that it was trained"
            " with. Save it with save_embedding_layers=True, or merge it."
        )
    wanted = trained or max([rows, *(i + 1 for i in beyond)])
    if wanted == rows:
        return
    model.resize_token_embeddings(wanted, mean_resizing=False)
    if wanted > rows:
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[rows:] = layer.weight[:rows].mean(0)


def _trained_rows(model: Any, adapter: Source) -> int | None:
    """How many tokens the embeddings in an adapter's file are for; None if it holds none."""
    names = {id(module): name for name, module in model.named_modules()}
    own = [names.get(id(m)) for m in (model.get_input_embeddings(), model.get_output_embeddings())]
    rows = [
        _rows(tensor)
        for tensor in read_headers(adapter.weight_files()).values()
        if any(name and tensor.name.startswith(f"{PEFT_PREFIX}{name}.") for name in own)
    ]
    return max(filter(None, rows), default=None)


def _rows(tensor: StoredTensor) -> int | None:
    """How many tokens a tensor of an adapter for embeddings is for; None where it doesn't tell."""
    if len(tensor.shape) != 2 or tensor.name.endswith(("lora_A.weight", "lora_embedding_B")):
        return None
    return tensor.shape[1] if tensor.name.endswith("lora_embedding_A") else tensor.shape[0]


def _trained_tokens(adapter: Source) -> set[int]:
    """Tokens of which an adapter holds the embeddings one by one."""
    config = read_json(adapter.folder / ADAPTER_CONFIG)
    found: set[int] = set()
    for setting in ("trainable_token_indices", "token_indices"):
        value = config.get(setting) or ()
        lists = value.values() if isinstance(value, dict) else (value,)
        found |= {token for tokens in lists for token in tokens}
    return found
