"""Linear probes of open-constitution, `probe.pt` beside `config.json`, as probes of this tool.

Such a probe is one linear readout of the last token's state at one of the hidden states that
transformers lists: 0 is the embeddings, i the output of block i - 1, and the last one is taken
after the final norm. It was fitted on the closing token of whole exchanges and is asked every few
tokens of a response, never of a prompt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict, Field
from torch import Tensor

from modelassay.artifacts import ImportedFrom
from modelassay.errors import InputError
from modelassay.files.provenance import installed_versions, utc_now
from modelassay.files.records import Line, Record, read_record
from modelassay.foreign.reading import left_out, plain_file, refuse_newer, shown
from modelassay.foreign.torch_file import read_torch_file
from modelassay.models import LoadedModel
from modelassay.models.identity import hash_file
from modelassay.probes.head import Head
from modelassay.probes.record import MAX_NUMBER, STATED, HeadRecord, Probe, ProbeRecord

TOOL = "open-constitution"
WEIGHTS, CONFIG = "probe.pt", "config.json"
MAX_CONFIG_BYTES = 1_000_000
READOUTS = ("head.", "linear.", "probe.", "fc.", "classifier.", "")
"""What the names of a readout's `weight` and `bias` begin with in the layouts that are known:
open-constitution's own, other names of the one layer, and a saved `torch.nn.Linear`."""
SCALES = ("mean", "std")
"""Of states before the readout, where they were standardised."""
NESTED = ("state_dict", "model_state_dict")
NO_COUNTERPART = {
    "probe_every_n_tokens": "every token is read here",
    "smoothing_window": "here the moving average's weight of the newest token is 0.25",
    "note": "a remark",
    "metrics": "scores on the rows that it was fitted on say little; `probe eval` scores it",
}
NO_WEIGHTS = "0" * 64  # until the weights are on disk


class _Config(Record):
    """`config.json`."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

    model_id: Line | None = None
    layer: int | None = Field(default=None, gt=-2000, lt=2000)
    layers: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=64)
    hidden_size: int | None = Field(default=None, gt=0, lt=200_000)
    threshold: float = Field(gt=0, le=1)
    pause_threshold: float = Field(gt=0, le=1)
    use_chat_template: bool = True


@dataclass(frozen=True)
class ForeignProbe:
    """A probe of another tool, checked and not yet held against its model."""

    files: Mapping[str, str]
    """sha256 of each, by name."""
    model_id: str | None
    layers: tuple[int, ...]
    """Hidden states, as transformers counts them; negative ones from the end."""
    weight: Tensor
    """float32 [layer, hidden]."""
    bias: float
    pause: float
    block: float
    chat_template: bool
    """Whether it was fitted inside the model's chat template."""
    otherwise: tuple[str, ...]
    left_out: tuple[str, ...]

    @property
    def hidden_size(self) -> int:
        """Of the model that it reads."""
        return self.weight.shape[1]


def read_probe(weights: Path, config: Path) -> ForeignProbe:
    """Reads and checks both files; no code in them is run.

    Args:
        weights: What `torch.save` wrote.
        config: The settings beside it.

    Raises:
        InputError: a file is missing, damaged, hostile, too large, of a layout that is not known,
            or does not fit the other.
    """
    config = plain_file(config)
    settings = read_record(config, _Config, f"config of a probe of {TOOL}", MAX_CONFIG_BYTES)
    extra = dict(settings.model_extra or {})
    refuse_newer(extra, config)
    layers = _layers(settings, config)
    weight, bias = _readout(plain_file(weights), len(layers))
    if settings.hidden_size not in (None, weight.shape[1]):
        raise InputError(
            f"{weights} has weights for {weight.shape[1]} numbers, and {config.name} says"
            f" hidden_size {settings.hidden_size}; they do not belong together."
        )
    return ForeignProbe(
        files={WEIGHTS: hash_file(weights), CONFIG: hash_file(config)},
        model_id=settings.model_id,
        layers=layers,
        weight=weight,
        bias=bias,
        # There the lower one gives a remark and the higher one stops, whichever is which here.
        pause=min(settings.threshold, settings.pause_threshold),
        block=settings.pause_threshold,
        chat_template=settings.use_chat_template,
        otherwise=tuple(_otherwise(settings)),
        left_out=(
            f"a head for prompts: {TOOL} judges responses only, and so does this probe",
            *left_out(extra, NO_COUNTERPART),
        ),
    )


def _layers(settings: _Config, config: Path) -> tuple[int, ...]:
    if (settings.layer is None) == (settings.layers is None):
        raise InputError(f"{config} must say which `layer` the probe reads.")
    return settings.layers or (int(settings.layer or 0),)


def _otherwise(settings: _Config) -> list[str]:
    lines = [
        "it was fitted on the closing token of exchanges, and is read at every token of a response",
        f"threshold {settings.threshold:g}: pause, from which text is held back and looked at"
        " again (there it gives a remark)",
        f"pause_threshold {settings.pause_threshold:g}: block, from which a response is refused"
        " (there it stops)",
        "thresholds are compared with the token's own risk and a moving average, whichever is"
        " higher; there with the mean of a few readings",
    ]
    if settings.threshold > settings.pause_threshold:
        lines.append(
            f"threshold lies above pause_threshold: pause is {settings.pause_threshold:g}, too"
        )
    if not settings.use_chat_template:
        lines.append(
            "use_chat_template false: it reads plain text under `User:` and `Assistant:`, so the"
            " commands that use it need --no-chat-template"
        )
    return lines


def _readout(path: Path, n_layers: int) -> tuple[Tensor, float]:
    """float32 [layer, hidden] and the bias, standardisation folded in."""
    held = read_torch_file(path)
    nested = [name for name in NESTED if isinstance(held.get(name), dict)]
    if nested:
        held = held[nested[0]]
    known = (
        (held.get(f"{begin}weight"), held.get(f"{begin}bias"), begin)
        for begin in READOUTS
        if f"{begin}weight" in held
    )
    weight, bias, begin = next(known, (None, None, ""))
    if not isinstance(weight, Tensor):
        names = ", ".join(shown(name)[1:-1] for name in list(held)[:6]) or "nothing"
        raise InputError(
            f"{path} holds {names}; a linear probe has `head.weight` and `head.bias` (or `weight`"
            " and `bias`)."
        )
    unknown = sorted(set(held) - {f"{begin}weight", f"{begin}bias", *SCALES})
    if unknown:
        raise InputError(
            f"{path} holds {shown(unknown[0])[1:-1]} beside `{begin}weight`: it is no linear probe"
            " of a layout that is known."
        )
    if weight.ndim == 2 and weight.shape[0] != 1:
        raise InputError(
            f"{path}: `{begin}weight` has {weight.shape[0]} rows; a linear probe that tells safe"
            " from unsafe has one."
        )
    flat = _numbers(weight, path, f"{begin}weight").flatten()
    if len(flat) == 0 or len(flat) % n_layers:
        raise InputError(f"{path} has {len(flat)} weights, which {n_layers} layers cannot share.")
    shift = torch.zeros(1, dtype=torch.float64)
    if bias is not None:
        shift = _numbers(bias, path, f"{begin}bias").flatten()
        if len(shift) != 1:
            raise InputError(f"{path}: `{begin}bias` must be one number, not {len(shift)}.")
    mean, std = (
        _numbers(held[name], path, name).flatten() if name in held else None for name in SCALES
    )
    for name, scale in zip(SCALES, (mean, std), strict=True):
        if scale is not None and len(scale) not in (1, len(flat)):
            raise InputError(f"{path}: `{name}` has {len(scale)} numbers, not {len(flat)}.")
    if std is not None:
        if not bool((std > 0).all()):
            raise InputError(f"{path}: `std` must be above 0.")
        flat = flat / std
    if mean is not None:
        shift = shift - (flat * mean).sum()
    if not bool((flat.abs() <= MAX_NUMBER).all()) or not abs(float(shift)) <= MAX_NUMBER:
        raise InputError(f"{path} holds numbers that no probe has.")
    return flat.reshape(n_layers, -1).float(), float(shift)


def _numbers(value: Any, path: Path, name: str) -> Tensor:
    """float64, if it is a tensor of finite numbers."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise InputError(f"{path}: `{name}` must be a tensor of numbers with fractions.")
    if not bool(torch.isfinite(value).all()):
        raise InputError(f"{path}: `{name}` holds numbers that are not finite (NaN or infinity).")
    return value.double()


def bind_probe(found: ForeignProbe, model: LoadedModel, name: str) -> Probe:
    """The probe as one of this tool, which belongs to a model.

    Args:
        found: What was read.
        model: The model that it was fitted on, as its user says: the files name no weights.
        name: Of the new one.

    Raises:
        InputError: hidden size or layers do not fit the model.
    """
    info = model.info
    if found.hidden_size != info.hidden_size:
        raise InputError(
            f"The probe reads {found.hidden_size} numbers, and {info.id} has hidden size"
            f" {info.hidden_size}; give the model that it was fitted on with --model."
        )
    blocks = tuple(_block(layer, info.n_layers, info.id) for layer in found.layers)
    if len(set(blocks)) != len(blocks):
        raise InputError(f"The probe names a layer twice ({', '.join(map(str, found.layers))}).")
    weight = found.weight[:, None].contiguous()
    poolings = ("last",)
    head = Head(
        "answer", "logistic", blocks, poolings, weight, found.bias, found.pause, found.block
    )
    counted = ", ".join(
        f"layer {layer}: block {block}"
        for layer, block in zip(found.layers, blocks, strict=True)
    )  # fmt: skip
    unknown = [
        f"which weights of {(found.model_id or 'its model')[:100]} it was fitted on: its files name"
        " none, so it is tied to those that were loaded on import",
        "which prompts it was fitted on, so no row can be left out of a score",
        "how often its thresholds hold back or refuse harmless responses",
        "how well it tells unsafe responses from safe ones",
    ]
    # One that reads the template states nothing of it: its files do not tell which it was.
    plain: dict[str, Any] = {} if found.chat_template else {"chat_template_sha256": None}
    record = ProbeRecord(
        name=name,
        created=utc_now(),
        model=info.keep(*STATED, "revision", "organism", **plain),
        heads={
            "answer": HeadRecord(
                kind="logistic",
                layers=blocks,
                poolings=poolings,
                bias=found.bias,
                pause=found.pause,
                block=found.block,
            )
        },
        versions=installed_versions("modelassay", "torch", "transformers"),
        weights_sha256=NO_WEIGHTS,
        text_format=None if found.chat_template else "user_assistant",
        imported=ImportedFrom(
            tool=TOOL,
            files=dict(found.files),
            unknown=tuple(unknown),
            otherwise=(f"{counted}, counted from 0 without the embeddings", *found.otherwise),
            left_out=found.left_out,
        ),
    )
    return Probe(record, {"answer": head})


def _block(layer: int, n_layers: int, model_id: str) -> int:
    """The block whose output a hidden state is."""
    state = layer + n_layers + 1 if layer < 0 else layer
    if not 0 <= state <= n_layers:
        raise InputError(
            f"The probe reads layer {layer}, and {model_id} has {n_layers} blocks; give the model"
            " that it was fitted on with --model."
        )
    if state == 0:
        raise InputError(
            "The probe reads the embeddings (layer 0), which no probe here reads; train it again"
            " at another layer."
        )
    if state == n_layers:
        raise InputError(
            f"The probe reads the state after the final norm (layer {layer}), which no probe here"
            " reads; train it again at layer -2 or below."
        )
    return state - 1
