"""An SAE, and how it lies on disk: sae-lens's own files, and a record of what it is.

`cfg.json` and `sae_weights.safetensors` open in sae-lens as they are; `dictionary.json` is ours and
says which model it belongs to and how good it is. SAEs of others come without it.

Layer i is the output of layer i, the residual stream. TransformerLens calls it
`blocks.i.hook_resid_post`, and what goes into layer i `blocks.i.hook_resid_pre`, which is the same
as the output of layer i - 1; transformers calls it `model.layers.i`.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from modelassay.artifacts import Origin
from modelassay.errors import InputError, first_line
from modelassay.files.atomic import write_text_atomically
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.models import LoadedModel
from modelassay.models.identity import hash_file
from modelassay.progress import OnProgress
from modelassay.sae.evaluating import evaluate_sae
from modelassay.sae.record import (
    CONFIG_FILE,
    RECORD_FILE,
    SAES,
    STATED,
    WEIGHTS_FILE,
    SAERecord,
    check_sae,
    read_config,
)
from modelassay.sae.training import Settings

_TRANSFORMER_LENS = re.compile(r"blocks\.(\d{1,4})\.hook_resid_(post|pre)")
_TRANSFORMERS = re.compile(r"(?:[A-Za-z_]\w*\.)*(?:layers|h|blocks)\.(\d{1,4})(?:\.output)?")
# What a name contains that is not an output of a layer, and what an error calls it.
_ELSEWHERE = {
    "hook_resid_mid": "the residual stream inside a layer, between attention and MLP",
    "attn": "attention",
    "hook_z": "attention",
    "mlp": "an MLP",
    "feedforward": "an MLP",
}
ARCHITECTURES = ("jumprelu", "topk", "standard", "gated")
"""Those whose features are never below zero and read one token at a time."""


def parse_layer(hook_name: str | None, what: str) -> int:
    """The layer whose output is read at a hook point.

    Args:
        hook_name: As an SAE's config has it.
        what: The SAE, for errors.

    Raises:
        InputError: it reads something else than the output of a layer.
    """
    name = hook_name or ""
    if match := _TRANSFORMER_LENS.fullmatch(name):
        layer = int(match[1]) - (match[2] == "pre")
        if layer >= 0:
            return layer
        reads = "the embeddings, which no layer has written yet"
    elif match := _TRANSFORMERS.fullmatch(name):
        return int(match[1])
    elif not name:
        raise InputError(f"{what} does not say where in a model it reads (no hook_name).")
    else:
        found = (text for part, text in _ELSEWHERE.items() if part in name)
        reads = next(found, "a point that is unknown here")
    raise InputError(
        f"{what} reads {reads} ({name[:80]}); modelassay compares what layers put out, the residual"
        " stream: choose an SAE of resid_post or resid_pre."
    )


@dataclass(frozen=True)
class SAE:
    """A trained SAE, ours or somebody else's."""

    name: str
    layer: int
    """It takes the output of this layer apart."""
    hidden_size: int
    width: int
    """Features."""
    module: Any
    """A sae-lens SAE in float32."""
    record: SAERecord | None = None
    """None for SAEs that modelassay did not train."""
    neuronpedia_id: str | None = None
    """`model/source`, under which Neuronpedia knows its features."""
    folder: Path | None = None
    """Where its files are; None for a release of sae-lens."""
    origin: Origin | None = None
    """Of one with a record: where it was found."""

    def check_belongs_to(self, model: LoadedModel) -> None:
        """Refuses a model whose activations it cannot read.

        A fine-tune of its model can be read, so only the architecture and the shape have to fit.

        Raises:
            InputError: says how they differ.
        """
        info = model.info
        if self.record is not None:
            if (reason := self.record.model.differences(info)) is not None:
                raise InputError(
                    f"The SAE {self.name} belongs to {self.record.model.id} and does not fit"
                    f" {info.id}: {reason}."
                )
        elif self.hidden_size != info.hidden_size:
            raise InputError(
                f"The SAE {self.name} belongs to a model of width {self.hidden_size};"
                f" {info.id} has {info.hidden_size}."
            )
        if self.layer >= info.n_layers:
            raise InputError(
                f"The SAE {self.name} reads layer {self.layer}; the last one of {info.id} is"
                f" {info.n_layers - 1}."
            )


def as_sae(
    sae: Any, name: str, *, record: SAERecord | None = None, folder: Path | None = None
) -> SAE:
    """A sae-lens SAE as an `SAE`.

    Raises:
        InputError: it is of a kind that cannot be read here, or reads no output of a layer.
    """
    cfg, what = sae.cfg, f"The SAE {name}"
    architecture = cfg.architecture()
    if architecture not in ARCHITECTURES or hasattr(cfg, "d_out"):
        raise InputError(
            f"{what} is of the kind {architecture}; those of {', '.join(ARCHITECTURES)} are read."
        )
    layer = parse_layer(cfg.metadata.hook_name, what)
    if cfg.normalize_activations == "expected_average_only_in":
        raise InputError(f"{what} was trained on scaled activations and does not say the scale.")
    if cfg.reshape_activations != "none":
        raise InputError(f"{what} reads attention heads, not the output of a layer.")
    if not all(bool(value.isfinite().all()) for value in sae.state_dict().values()):
        raise InputError(f"{what} has weights that are not numbers.")
    if (cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise InputError(
            f"{what} reads a model whose weights TransformerLens has centred, not the one that"
            " transformers loads."
        )
    known = cfg.metadata.neuronpedia_id
    sae.eval()
    return SAE(
        name=name,
        layer=layer,
        hidden_size=int(cfg.d_in),
        width=int(cfg.d_sae),
        module=sae,
        record=record,
        neuronpedia_id=known if isinstance(known, str) and known else None,
        folder=folder,
    )


def save_sae(
    sae: Any,
    model: LoadedModel,
    settings: Settings,
    held_out: Sequence[str],
    folder: Path,
    *,
    name: str,
    data: Sequence[str],
    dtype: Literal["float32", "bfloat16"] = "bfloat16",
    on_progress: OnProgress | None = None,
) -> SAE:
    """Writes a trained SAE as a new folder, whole or not at all.

    It is scored as it lies there, in the dtype that is kept.

    Args:
        sae: As `train_sae` gives it.
        model: The model it was trained on.
        settings: How it was trained.
        held_out: Texts to score it on.
        folder: Where to; an SAE that is there is replaced.
        name: What it is called.
        data: What it was trained on.
        dtype: Of the weights on disk.
        on_progress: Told (contexts scored, contexts in all).

    Raises:
        InputError: the folder holds something else.
    """
    from safetensors.torch import load_file, save_file

    with SAES.new(out=folder, force=True) as partial:
        sae.save_inference_model(partial)
        weights = partial / WEIGHTS_FILE
        tensors = {name: value.clone() for name, value in load_file(weights).items()}
        save_file({n: v.to(getattr(torch, dtype)) for n, v in tensors.items()}, weights)
        config = json.loads((partial / CONFIG_FILE).read_text(encoding="utf-8"))
        config["device"] = "cpu"
        config["metadata"] = {
            **{k: v for k, v in config.get("metadata", {}).items() if _is_plain(v)},
            "model_name": model.info.id,
            "hook_name": f"blocks.{settings.layer}.hook_resid_post",
        }
        (partial / CONFIG_FILE).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
        served = read_sae(partial, str(model.device))
        metrics = evaluate_sae(
            model,
            served,
            settings.layer,
            held_out,
            context=settings.context,
            on_progress=on_progress,
        )
        info = model.info
        record = SAERecord(
            name=name,
            created=utc_now(),
            model=info.keep(*STATED),
            layer=settings.layer,
            kind=settings.kind,
            width=settings.width,
            k=settings.k,
            dtype=dtype,
            tokens=settings.tokens,
            passes=settings.passes,
            data=tuple(data),
            metrics=metrics,
            versions=installed_versions("torch", "transformers", "sae-lens"),
            weights_sha256=hash_file(weights),
        )
        text = record.model_dump_json(by_alias=True, indent=1)
        write_text_atomically(partial / RECORD_FILE, text + "\n")
    return as_sae(served, name, record=record, folder=folder)


def load_sae(folder: Path, device: str = "cpu") -> SAE:
    """Reads and checks an SAE that `save_sae` wrote.

    Raises:
        InputError: a file is missing, damaged, too large, or does not fit the others.
    """
    record = check_sae(folder)
    found = as_sae(read_sae(folder, device), record.name, record=record, folder=folder)
    if found.layer != record.layer:
        raise InputError(f"{folder / CONFIG_FILE} does not fit {RECORD_FILE}; fetch both again.")
    return found


def load_plain(folder: Path, device: str = "cpu") -> SAE:
    """Reads a folder in sae-lens's format that has no record of ours.

    Raises:
        InputError: a file is missing, damaged or too large, or the SAE cannot be used.
    """
    read_config(folder)
    return as_sae(read_sae(folder, device), folder.resolve().name, folder=folder)


def read_sae(folder: Path, device: str = "cpu") -> Any:
    """The sae-lens SAE in a folder, in float32.

    Raises:
        InputError: sae-lens cannot read it.
    """
    import sae_lens

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on models of TransformerLens
            sae = sae_lens.SAE.load_from_disk(folder, device=device, dtype="float32")
    except Exception as error:  # whatever sae-lens makes of files of a stranger
        raise InputError(f"{folder} holds no SAE: {first_line(error)}.") from error
    sae.eval()
    return sae


def _is_plain(value: Any) -> bool:
    finite = not isinstance(value, float) or math.isfinite(value)
    return isinstance(value, str | int | float | bool) and finite
