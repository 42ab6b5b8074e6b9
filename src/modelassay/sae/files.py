"""An SAE, and how it lies on disk: sae-lens's own files, and a record of what it is.

`cfg.json` and `sae_weights.safetensors` open in sae-lens as they are; `dictionary.json` is ours and
says which model it belongs to and how good it is. SAEs of others come without it.

Which layer an SAE reads is said by the name of its hook point (`hook_names`).
"""

from __future__ import annotations

import json
import logging
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
from modelassay.models.components import Component, find_components
from modelassay.models.identity import hash_file
from modelassay.progress import OnProgress
from modelassay.sae.evaluating import evaluate_sae
from modelassay.sae.hook_names import mlp_path, module_path, parse_layer, parse_transcoder
from modelassay.sae.record import (
    CONFIG_FILE,
    MAX_WEIGHTS_BYTES,
    RECORD_FILE,
    SAES,
    STATED,
    WEIGHTS_FILE,
    SAERecord,
    check_sae,
    read_config,
)
from modelassay.sae.training import Settings

log = logging.getLogger(__name__)

ARCHITECTURES = ("jumprelu", "topk", "standard", "gated")
"""Those whose features are never below zero and read one token at a time."""
TRANSCODERS = ("transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder")
"""The same of an MLP: they read what it is given, and write what it adds to the stream."""


SCALINGS = ("none", "constant_norm_rescale", "layer_norm")
"""What sae-lens does to activations when an SAE reads them; it folds the others in beforehand."""


@dataclass(frozen=True)
class SAE:
    """A trained SAE, ours or somebody else's; or a transcoder, which stands for an MLP."""

    name: str
    layer: int
    """It takes the output of this layer apart, or as a transcoder that of its MLP."""
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

    @property
    def transcoder(self) -> bool:
        """Whether it reads what an MLP is given and writes what the MLP puts out."""
        return self.module.cfg.architecture() in TRANSCODERS

    @property
    def part(self) -> Component:
        """What it takes apart: a layer's output, or an MLP's."""
        return Component(self.layer, "mlp" if self.transcoder else "block")

    @property
    def place(self) -> str:
        """What it takes apart, in words."""
        return f"the MLP of layer {self.layer}" if self.transcoder else f"layer {self.layer}"

    def check_reads_layers(self) -> None:
        """Refuses a transcoder, for what compares outputs of layers.

        Raises:
            InputError: it is one.
        """
        if self.transcoder:
            raise InputError(transcoder_text(self.name))

    def check_belongs_to(self, model: LoadedModel, *, transcoders: bool = False) -> None:
        """Refuses a model whose activations it cannot read.

        A fine-tune of its model can be read, so only the architecture and the shape have to fit.

        Args:
            model: The model.
            transcoders: Whether it may be one.

        Raises:
            InputError: says how they differ.
        """
        info = model.info
        if not transcoders:
            self.check_reads_layers()
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
        self._check_module(model)
        trained_on = self.module.cfg.metadata.model_name
        if self.record is None and isinstance(trained_on, str) and _are_others(trained_on, info.id):
            log.warning(
                "The SAE %s was trained on %s; what it says of %s is right only if that is a"
                " fine-tune of it.",
                self.name,
                trained_on[:80],
                info.id,
            )

    def _check_module(self, model: LoadedModel) -> None:
        """Refuses an SAE of a module that is there and is no layer of the language model."""
        if self.transcoder:
            self._check_mlp(model)
            return
        for name in _hook_points(self.module.cfg.metadata):
            if (path := module_path(name)) is None:
                continue
            try:
                module = model.network.get_submodule(path)
            except AttributeError:  # a name from another wrapping of the same layers
                continue
            if not any(module is layer for layer in model.layers):
                raise InputError(
                    f"The SAE {self.name} reads {name[:80]}, which is no layer of the language"
                    f" model of {model.info.id}."
                )

    def _check_mlp(self, model: LoadedModel) -> None:
        """Refuses a transcoder whose MLP the model does not have, or has elsewhere."""
        components = find_components(model.network)
        if self.part not in components.given or self.part not in components.sites:
            why = components.unsure or f"layer {self.layer} has no MLP of its own"
            raise InputError(
                f"The transcoder {self.name} does not fit {model.info.id}, where {why}."
            )
        module = components.site(self.part).module
        for name in _hook_points(self.module.cfg.metadata, out=True):
            if (path := mlp_path(name)) is None:
                continue
            try:
                named = model.network.get_submodule(path)
            except AttributeError:  # a name from another wrapping of the same layers
                continue
            if not any(module is each for each in named.modules()):
                raise InputError(
                    f"The transcoder {self.name} writes {name[:80]}, which is not what the MLP of"
                    f" {model.info.id} adds to the stream."
                )


def transcoder_text(name: str) -> str:
    """Why a transcoder is refused by what compares outputs of layers."""
    return (
        f"{name} is a transcoder, which stands for an MLP; only `features find` and"
        " `jailbreak explain` read those. Choose an SAE of a layer's output."
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
    if architecture not in (*ARCHITECTURES, *TRANSCODERS):
        known = ", ".join((*ARCHITECTURES, *TRANSCODERS))
        raise InputError(f"{what} is of the kind {architecture}; those of {known} are read.")
    if architecture in TRANSCODERS:
        layer = parse_transcoder(
            _hook_points(cfg.metadata), _hook_points(cfg.metadata, out=True), what
        )
        if cfg.d_out != cfg.d_in or cfg.normalize_activations != "none":
            raise InputError(
                f"{what} is a transcoder of {cfg.d_in} dimensions to {cfg.d_out}"
                f" (normalize_activations: {str(cfg.normalize_activations)[:40]!r}); those are read"
                " that keep the width and the scale."
            )
    else:
        layer = _layer_read(cfg.metadata, what)
    if cfg.normalize_activations == "expected_average_only_in":
        raise InputError(f"{what} was trained on scaled activations and does not say the scale.")
    if cfg.normalize_activations not in SCALINGS:
        raise InputError(
            f"{what} scales activations in a way that is not known here"
            f" (normalize_activations: {str(cfg.normalize_activations)[:40]!r})."
        )
    if cfg.metadata.hook_head_index is not None or cfg.reshape_activations != "none":
        raise InputError(f"{what} reads attention heads, not the output of a layer.")
    if not all(bool(value.isfinite().all()) for value in sae.state_dict().values()):
        raise InputError(f"{what} has weights that are not numbers.")
    if (cfg.metadata.model_from_pretrained_kwargs or {}).get("center_writing_weights"):
        raise InputError(
            f"{what} reads a model whose weights TransformerLens has centred, not the one that"
            " transformers loads."
        )
    sae.eval()
    return SAE(
        name=name,
        layer=layer,
        hidden_size=int(cfg.d_in),
        width=int(cfg.d_sae),
        module=sae,
        record=record,
        neuronpedia_id=_known_as(cfg.metadata.neuronpedia_id, layer, what),
        folder=folder,
    )


def _known_as(known: Any, layer: int, what: str) -> str | None:
    """The id under which Neuronpedia knows an SAE, unless that is of another layer.

    What layer i puts out, layer i + 1 takes in; ids go by either.
    """
    if not isinstance(known, str) or not known:
        return None
    named = re.match(r"[^/]*/(\d{1,4})-", known)
    if named and int(named[1]) not in (layer, layer + 1):
        log.warning(
            "%s reads layer %d, and the id that it has on Neuronpedia (%s) is of layer %s: its"
            " explanations are not used.",
            what,
            layer,
            known[:80],
            named[1],
        )
        return None
    return known


def _layer_read(metadata: Any, what: str) -> int:
    """The layer that all the hook points of an SAE's config name."""
    layers = {parse_layer(name, what) for name in _hook_points(metadata) or [None]}
    if len(layers) > 1:
        names = ", ".join(str(name)[:60] for name in _hook_points(metadata))
        raise InputError(f"{what} names more than one layer ({names}); its config is wrong.")
    return layers.pop()


def _hook_points(metadata: Any, *, out: bool = False) -> list[Any]:
    """Where an SAE's config says that it reads, once for each of the names that it may have.

    Args:
        metadata: Of sae-lens.
        out: Where a transcoder writes.
    """
    if out:
        return [name for name in (metadata.hook_name_out, metadata.hf_hook_name_out) if name]
    return [name for name in (metadata.hook_name, metadata.hf_hook_name) if name]


def _are_others(one: str, other: str) -> bool:
    """Whether neither name contains the other, as that of a fine-tune contains its base's."""
    one, other = plain_model_name(one), plain_model_name(other)
    return one not in other and other not in one


def plain_model_name(model: str) -> str:
    """A model's name without owner and without the mark of a base model."""
    return model.lower().rpartition("/")[2].removesuffix("-pt")


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

    settings = settings.of(model)
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
    config, name = read_config(folder), folder.resolve().name
    metadata = config.get("metadata")
    for stated in (config, metadata if isinstance(metadata, dict) else {}):
        if several := stated.get("hook_names"):  # which sae-lens knows nothing of
            parse_layer(several, f"The SAE {name}")
        if isinstance(of := stated.get("model_name"), list) and len(of) > 1:
            raise InputError(
                f"The SAE {name} is a cross-coder of several models ({', '.join(map(str, of))});"
                " choose an SAE of one."
            )
    return as_sae(read_sae(folder, device), name, folder=folder)


def load_weights_file(
    path: Path, layer: int, *, device: str = "cpu", neuronpedia_id: str | None = None
) -> SAE:
    """Reads an SAE of which there is only a file of weights, as Gemma Scope publishes them.

    Args:
        path: A safetensors file with `w_enc` [hidden, width], `b_enc`, `w_dec`, `b_dec` and, of a
            JumpReLU SAE, `threshold`; without it, it is read as one with a plain ReLU. The case of
            the names does not matter.
        layer: The layer whose output it reads, which the file does not say.
        device: Where its weights are put.
        neuronpedia_id: `model/source`, under which Neuronpedia knows its features.

    Raises:
        InputError: there is no such file, it is no safetensors file, or it holds something else.
    """
    import sae_lens
    from safetensors.torch import load_file

    try:
        if path.stat().st_size > MAX_WEIGHTS_BYTES:
            raise InputError(f"{path} is larger than an SAE can be.")
        found = {name.lower(): value.float() for name, value in load_file(path).items()}
    except OSError as error:
        raise InputError(f"There is no SAE file {path}.") from error
    except Exception as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is no safetensors file: {first_line(error)}.") from error
    named = {n: found.pop(n.lower(), None) for n in ("W_enc", "b_enc", "W_dec", "b_dec")}
    threshold = found.pop("threshold", None)
    encoder = named["W_enc"]
    if encoder is None or encoder.ndim != 2 or found:
        held = ", ".join(sorted(found)[:5]) or "no w_enc"
        raise InputError(
            f"{path} holds no SAE of one layer: w_enc, b_enc, w_dec, b_dec and threshold are read"
            f" ({held})."
        )
    hidden, width = encoder.shape
    wanted = {"W_enc": (hidden, width), "b_enc": (width,), "W_dec": (width, hidden)}
    state: dict[str, torch.Tensor] = {}
    for name, shape in {**wanted, "b_dec": (hidden,)}.items():
        value = named[name]
        if value is None or value.shape != shape:
            is_ = "missing" if value is None else f"of shape {tuple(value.shape)}"
            raise InputError(f"{path}: {name.lower()} is {is_}, and {shape} fits w_enc.")
        state[name] = value
    shared: dict[str, Any] = {
        "d_in": hidden,
        "d_sae": width,
        "apply_b_dec_to_input": False,
        "normalize_activations": "none",
    }
    if threshold is None:
        module: Any = sae_lens.StandardSAE(sae_lens.StandardSAEConfig(**shared))
    elif threshold.shape == (width,):
        state["threshold"] = threshold
        module = sae_lens.JumpReLUSAE(sae_lens.JumpReLUSAEConfig(**shared))
    else:
        raise InputError(f"{path}: threshold is of shape {tuple(threshold.shape)}, not ({width},).")
    module.load_state_dict(state)
    module.cfg.metadata.hook_name = f"blocks.{layer}.hook_resid_post"
    module.cfg.metadata.neuronpedia_id = neuronpedia_id
    return as_sae(module.to(device), path.stem)


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
