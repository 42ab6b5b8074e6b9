"""Settings of two copies of a model: which of them differ, and whether that changes a number."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from modelassay.files.provenance import text_hash
from modelassay.models.layers import text_config

MAX_SETTING = 300
"""Characters; longer ones are hashed."""
VOLATILE = (
    "_name_or_path",
    "architectures",  # a GGUF file names none; model_type stays
    "transformers_version",
    "dtype",
    "torch_dtype",
)
"""Settings that differ between copies of one model; numbers are recorded by themselves."""
IDLE = (
    *("use_cache", "initializer_range", "pretraining_tp", "gradient_checkpointing"),
    *("attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"),
    *("output_router_logits", "router_aux_loss_coef", "router_jitter_noise", "summary_use_proj"),
    *("output_attentions", "output_hidden_states", "return_dict", "use_return_dict"),
    *("problem_type", "id2label", "label2id", "finetuning_task", "chunk_size_feed_forward"),
)
"""Settings that change nothing of a response."""
SHOWN_BY_WEIGHTS = ("tie_word_embeddings", "vocab_size", "quantization_config")
"""Settings that say how weights are stored: where these are compared, they tell."""
ALWAYS_COMPARED = ("auto_map", "quantization_config")
"""Settings that act by being there, whatever a version of transformers fills in for others."""
KEPT_BY_GGUF = (
    *("rope_parameters", "rope_theta", "rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon"),
    *("norm_eps", "norm_epsilon", "attn_logit_softcapping", "final_logit_softcapping"),
    *("query_pre_attn_scalar", "sliding_window", "layer_types", "head_dim", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "num_experts", "num_experts_per_tok"),
    *("norm_topk_prob", "moe_intermediate_size", "use_parallel_residual", "attention_bias"),
)
"""Settings that a GGUF file states as well."""
NOT_KEPT = ("original_max_position_embeddings", "attention_factor", "truncate")
"""Of a rotary embedding: what a GGUF file says in another way."""
LANGUAGE_TYPE = "text_config.model_type"
"""A setting that we add to those of a model of several towers: the type of the language model."""
SAME_MATH = {"mistral": "llama"}
"""Types that compute the same, for which GGUF files have one name."""
NAMED = 6


def settings_of(config: Any) -> dict[str, str]:
    """Each setting as JSON text, long ones hashed; those of a language tower beside its model's."""
    values = config.to_dict()
    if (text := text_config(config)) is not config:
        values = {**text.to_dict(), **values, LANGUAGE_TYPE: text.model_type}
    return as_texts(values, VOLATILE)


def as_texts(values: Mapping[str, Any], without: Iterable[str] = ()) -> dict[str, str]:
    """Values as JSON text, long ones hashed."""
    texts = {
        key: json.dumps(value, sort_keys=True, default=str)
        for key, value in values.items()
        if key not in without
    }
    return {
        key: text if len(text) <= MAX_SETTING else "sha256:" + text_hash(text)
        for key, text in sorted(texts.items())
    }


def language_type(settings: Mapping[str, str]) -> str:
    """The type of the language model that settings describe, whatever tower it is built into."""
    stated = settings.get(LANGUAGE_TYPE) or settings.get("model_type", "null")
    try:
        name = json.loads(stated)
    except ValueError:
        return stated
    if LANGUAGE_TYPE not in settings:
        name = _usual_tower(name)
    return SAME_MATH.get(name, str(name))


def _usual_tower(name: str) -> str:
    """The type of a model's language tower, if its settings do not say another one."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    try:
        return text_config(CONFIG_MAPPING[name]()).model_type
    except Exception:  # unknown, or one that cannot be made without arguments
        return name


def differing(
    mine: Mapping[str, str], theirs: Mapping[str, str], *, converted: bool, same_files: bool
) -> tuple[list[str], list[str], list[str]]:
    """Settings that both state and that differ, with their values.

    Args:
        mine: Of the candidate.
        theirs: Of the baseline.
        converted: One of the two is a GGUF file, which states a part of them.
        same_files: The weights are the same files; if not, the weights themselves are compared.

    Returns:
        Those that act, those of which it is not known, and those that change nothing.
    """
    keys = mine.keys() & theirs.keys() | (mine.keys() | theirs.keys()) & {*ALWAYS_COMPARED}
    keys -= {"model_type", LANGUAGE_TYPE}  # see `language_type`
    keys -= set() if same_files else {"quantization_config"}
    acting: list[str] = []
    unknown: list[str] = []
    idle: list[str] = []
    for key in sorted(keys):
        here, there = _value(mine.get(key)), _value(theirs.get(key))
        if not (named := _differences(key, here, there, converted)):
            continue
        if key in IDLE or (key in SHOWN_BY_WEIGHTS and not same_files):
            idle += named
        elif converted and (key not in KEPT_BY_GGUF or not (_told(here) and _told(there))):
            unknown += named
        else:
            acting += named
    if any(not name.startswith("text_config") for name in acting):
        acting = [name for name in acting if not name.startswith("text_config")]
    elif idle:  # its own settings are compared one by one
        acting = [name for name in acting if name != "text_config"]
    return acting, unknown, idle


def named(found: list[str]) -> str:
    """The first of them in a line."""
    return ", ".join(found[:NAMED]) + ("…" if len(found) > NAMED else "")


def _told(value: Any) -> bool:
    """Whether a value is known: hashes of long ones tell nothing of numbers in fewer digits."""
    return value is not None and not str(value).startswith("sha256:")


def _value(text: str | None) -> Any:
    try:
        return None if text is None else json.loads(text)
    except ValueError:
        return text


def _differences(key: str, here: Any, there: Any, converted: bool) -> list[str]:
    """What to say of a setting; nothing if both are the same."""
    if isinstance(here, dict) and isinstance(there, dict):
        inner = (
            here.keys() & there.keys() - {*NOT_KEPT} if converted else here.keys() | there.keys()
        )
        parts = [_differences(f"{key}.{k}", here.get(k), there.get(k), converted) for k in inner]
        return sorted(name for part in parts for name in part)
    if _same(here, there):
        return []
    shown = [json.dumps(_short(value)) for value in (here, there)]
    if here is None or there is None or any(len(text) > 40 for text in shown):
        return [key]
    return [f"{key} ({shown[0]}, not {shown[1]})"]


def _short(value: Any) -> Any:
    """A number without the digits that 32 bits do not keep."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _same(here: Any, there: Any) -> bool:
    if all(isinstance(x, int | float) and not isinstance(x, bool) for x in (here, there)):
        return math.isclose(here, there, rel_tol=1e-6)  # GGUF keeps them in 32 bits
    return here == there
