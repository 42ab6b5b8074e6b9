"""Applies a PEFT adapter over its base, or says why it does not fit."""

from __future__ import annotations

import warnings
from typing import Any

import torch

from modelassay.errors import InputError, UnavailableError
from modelassay.models.explain import cause_of, explain_loading
from modelassay.models.sources import Source


def apply_adapter(model: Any, adapter: Source, *, merge: bool) -> Any:
    """The model with the adapter in it.

    Args:
        model: A loaded base model.
        adapter: Files of the adapter.
        merge: Add its weights to the base's (not possible where those are quantised).

    Raises:
        InputError: the adapter does not fit, or changes no weights.
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
        if PeftConfig.from_pretrained(folder).is_prompt_learning:
            raise InputError(
                f"The adapter {adapter.id} learns prompts and changes no weights; modelassay reads"
                " adapters that change weights, such as LoRA."
            )
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
        if wrong := sorted(result.missing_keys) + sorted(result.unexpected_keys):
            raise InputError(
                f"The adapter {adapter.id} does not fit {base}: {len(wrong)} weights are in one of"
                f" them only (first: {wrong[0]})."
            )
        # Merged, the model is as fast as its base and the forensics see the weights that act.
        return wrapped.merge_and_unload() if merge else wrapped
