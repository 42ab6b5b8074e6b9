"""A classifier: the small network over the embedded encoder, its file, loading it, asking it.

The file holds a LoRA adapter and a head. The head reads the opening token beside the mean over the
response, so that a long prompt cannot water a response down.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from modelassay.artifacts import Origin
from modelassay.classifier.encoding import (
    EncodedExchange,
    collate,
    encode_pairs,
    special_ids,
)
from modelassay.classifier.record import (
    FULL_WEIGHTS,
    WEIGHTS_FILE,
    ClassifierRecord,
    check_classifier,
    find_classifier,
)
from modelassay.data.labels import CLASSES, LABELS
from modelassay.errors import InputError, first_line
from modelassay.models.embedded import ENCODER_ID, ensure_encoder
from modelassay.models.explain import explain_loading
from modelassay.models.identity import hash_file
from modelassay.models.loading import pick_device

UNSAFE = -1
"""Column of P(unsafe): the last, whatever the scheme."""
BATCH = 16
TARGETS = ("query", "key", "value", "dense")
DROPOUT = 0.1
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."


class PairNetwork(nn.Module):
    """Encoder and head; gives logits [row, class]."""

    def __init__(self, encoder: Any, n_classes: int = len(LABELS)) -> None:
        """Takes an encoder of transformers."""
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * int(encoder.config.hidden_size), n_classes)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Logits of a padded batch, each input [row, token]."""
        hidden = self.encoder(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        ).last_hidden_state
        response = (token_type_ids * attention_mask).unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * response).sum(1) / response.sum(1).clamp(min=1)
        return self.head(self.dropout(torch.cat([hidden[:, 0], mean], dim=-1)))


def load_encoder(folder: Path) -> tuple[nn.Module, Any]:
    """The encoder in a folder, in fp32, and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    with explain_loading(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        encoder = AutoModel.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            add_pooling_layer=False,
            # On a CPU, dropout inside the attention doubles the time of a step.
            attention_probs_dropout_prob=0.0,
            hidden_dropout_prob=0.0,
        )
    return encoder, tokenizer


def add_lora(network: PairNetwork, rank: int, alpha: int) -> None:
    """Puts a trainable adapter on the linear layers of all but the lowest third of the blocks.

    The rest of the encoder is frozen, and no gradient goes below the adapter.
    """
    from peft import LoraConfig, get_peft_model

    n_layers = int(network.encoder.config.num_hidden_layers)  # type: ignore[union-attr]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=0.0,
        target_modules=list(TARGETS),
        layers_to_transform=list(range(n_layers // 3, n_layers)),
    )
    network.encoder = get_peft_model(network.encoder, config)  # type: ignore[arg-type]


def adapter_tensors(network: PairNetwork) -> dict[str, torch.Tensor]:
    """Adapter and head of a network with an adapter, in bfloat16."""
    from peft import get_peft_model_state_dict

    tensors = dict(get_peft_model_state_dict(network.encoder))  # type: ignore[arg-type]
    tensors |= {f"head.{name}": tensor for name, tensor in network.head.state_dict().items()}
    return {
        name.removeprefix(PREFIX): tensor.detach().to("cpu", torch.bfloat16).contiguous()
        for name, tensor in tensors.items()
    }


def read_adapter(
    network: PairNetwork, tensors: Mapping[str, torch.Tensor], scale: float, where: str
) -> None:
    """Adds an adapter to a plain network's weights and sets its head.

    Args:
        network: Fresh, over the encoder that the adapter was trained on.
        tensors: From `adapter_tensors`.
        scale: alpha / rank.
        where: Names the file in errors.

    Raises:
        InputError: the tensors do not fit the encoder.
    """
    modules = dict(network.encoder.named_modules())
    left = dict(tensors)
    try:
        with torch.no_grad():
            for name in [key for key in tensors if key.endswith(LORA_A)]:
                module = modules[name.removesuffix(LORA_A)]
                a, b = left.pop(name), left.pop(name.removesuffix(LORA_A) + LORA_B)
                weight = module.weight
                if not isinstance(weight, torch.Tensor) or weight.shape != (len(b), a.shape[1]):
                    raise KeyError(name)
                weight += scale * (b.float() @ a.float())
            network.head.weight.copy_(left.pop("head.weight").float())
            network.head.bias.copy_(left.pop("head.bias").float())
    except (KeyError, RuntimeError, IndexError, AttributeError) as error:
        raise InputError(f"{where} does not fit its encoder ({first_line(error, 80)}).") from error
    if left:
        raise InputError(f"{where} has tensors that its encoder does not know: {min(left)[:80]}.")
    if not all(bool(torch.isfinite(p).all()) for p in network.parameters()):
        raise InputError(f"{where} has weights that are not finite.")


@dataclass(frozen=True)
class ExchangeClassifier:
    """Judges (prompt, response) pairs; safe to use from several threads."""

    id: str
    """As it was asked for, such as `embedded`."""
    folder: Path
    """Its files."""
    origin: Origin
    network: Any
    """A module that gives logits, in evaluation mode."""
    tokenizer: Any
    record: ClassifierRecord
    device: torch.device
    types: bool
    """Whether the encoder reads `token_type_ids`."""
    order: tuple[int, ...]
    """Columns of the network's output, in the order of `labels`."""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def threshold(self) -> float:
        """P(unsafe_compliance) from which a response counts as unsafe."""
        return self.record.threshold

    @property
    def uncertain(self) -> float | None:
        """P(unsafe) from which it is uncertain, if it has a band of doubt."""
        return self.record.uncertain

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that it tells apart: three, or safe and unsafe; the last is unsafe."""
        return CLASSES[self.record.scheme]

    @property
    def max_length(self) -> int:
        """Most tokens of an exchange that are read."""
        return self.record.max_length

    def predict(
        self, exchanges: Sequence[tuple[str, str]], batch: int = BATCH, *, whole: bool = False
    ) -> np.ndarray:
        """Probabilities of the classes.

        Args:
            exchanges: (prompt, response) pairs; the prompt may be empty, the response a part.
            batch: Rows a pass.
            whole: Judge a response that is too long by its beginning, too: the mean of both. A chat
                that asks while a response grows has judged the beginning before.

        Returns:
            float32 [exchange, class], columns as in `labels`; a score does not depend on the batch
            beyond rounding.
        """
        with self._lock:  # fast tokenizers cannot be used from two threads at once
            form = self.record.text_format
            newest = encode_pairs(self.tokenizer, exchanges, self.max_length, text_format=form)
            long = [i for i, row in enumerate(newest) if row.cut] if whole else []
            first = encode_pairs(
                self.tokenizer,
                [exchanges[i] for i in long],
                self.max_length,
                newest=False,
                text_format=form,
            )
        probabilities = self._probabilities([*newest, *first], batch)
        found = probabilities[: len(newest)]
        found[long] = (found[long] + probabilities[len(newest) :]) / 2
        return found

    def reads_all(self, prompt: str, response: str) -> bool:
        """Whether no part of a response is cut off to fit into what is read with a prompt."""
        with self._lock:
            form = self.record.text_format
            (row,) = encode_pairs(
                self.tokenizer, [(prompt, response)], self.max_length, text_format=form
            )
        return not row.cut

    def _probabilities(self, rows: Sequence[EncodedExchange], batch: int) -> np.ndarray:
        if not rows:
            return np.zeros((0, len(self.order)), dtype=np.float32)
        logits = network_logits(
            self.network, rows, pad_id(self.tokenizer), self.types, self.device, batch
        )
        return torch.softmax(logits[:, list(self.order)], dim=-1).numpy()

    def unsafe(self, exchanges: Sequence[tuple[str, str]], batch: int = BATCH) -> np.ndarray:
        """P(unsafe) alone, float32 [exchange]; compare it with `threshold`."""
        return self.predict(exchanges, batch)[:, UNSAFE]


def pad_id(tokenizer: Any) -> int:
    """Id of the padding token; any will do under the mask."""
    return int(tokenizer.pad_token_id or 0)


def network_logits(
    network: Any, rows: Sequence[Any], pad: int, types: bool, device: torch.device, batch: int
) -> torch.Tensor:
    """Logits float32 [row, class] of encoded exchanges, in batches of similar length."""
    logits = torch.zeros((len(rows), 0))
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].ids))
    with torch.inference_mode():
        for start in range(0, len(rows), max(1, batch)):
            chosen = order[start : start + max(1, batch)]
            inputs = collate([rows[i] for i in chosen], pad, types=types)
            output = network(**{name: tensor.to(device) for name, tensor in inputs.items()})
            values = getattr(output, "logits", output).float().cpu()
            if not start:
                logits = torch.zeros((len(rows), values.shape[1]))
            logits[chosen] = values
    return logits


def load_classifier(
    name: str = ENCODER_ID,
    *,
    device: str = "auto",
    revision: str | None = None,
    token: str | None = None,
) -> ExchangeClassifier:
    """Loads a classifier.

    Args:
        name: As `find_classifier` takes it.
        device: auto, cpu, cuda or cuda:N.
        revision: Branch, tag or commit on the Hub.
        token: Hub token, None for the stored one.

    Raises:
        InputError: there is none, or it is damaged or not one that may be opened.
        UnavailableError: the Hub or PyPI cannot be reached.
    """
    where = pick_device(device)
    found = find_classifier(name, revision=revision, token=token)
    found.warn()
    folder, record = found.folder, check_classifier(found.folder)
    opened = _open_adapter if record.kind == "adapter" else _open_full
    network, tokenizer = opened(folder, record)
    special_ids(tokenizer)
    network.to(where).eval().requires_grad_(False)
    return ExchangeClassifier(
        id=name,
        folder=folder,
        origin=found.origin,
        network=network,
        tokenizer=tokenizer,
        record=record,
        device=where,
        types=record.kind == "adapter" or reads_types(network),
        order=tuple(record.labels.index(label) for label in CLASSES[record.scheme]),
    )


def reads_types(network: Any) -> bool:
    """Whether a sequence classifier tells two segments apart by `token_type_ids`."""
    return getattr(network.config, "type_vocab_size", 0) >= 2


def _open_adapter(folder: Path, record: ClassifierRecord) -> tuple[PairNetwork, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    file = folder / WEIGHTS_FILE
    if record.base.id != ENCODER_ID or record.lora is None:
        raise InputError(f"{folder} is an adapter over {record.base.id}, which is not shipped.")
    encoder_folder = ensure_encoder()
    if hash_file(encoder_folder / FULL_WEIGHTS) != record.base.sha256:
        raise InputError(f"{folder} was trained over another encoder; train it again.")
    try:
        tensors = load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file} is not a valid safetensors file.") from error
    encoder, tokenizer = load_encoder(encoder_folder)
    network = PairNetwork(encoder, len(record.labels))
    _check_length(folder, record, encoder.config)
    read_adapter(network, tensors, record.lora.alpha / record.lora.rank, str(file))
    return network, tokenizer


def _open_full(folder: Path, record: ClassifierRecord) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    with explain_loading(str(folder)):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        network, seen = AutoModelForSequenceClassification.from_pretrained(
            folder,
            dtype=torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    if missing := sorted(seen["missing_keys"]):  # transformers would make them up
        raise InputError(f"{folder / FULL_WEIGHTS} lacks {missing[0][:80]}; fetch it again.")
    if network.config.num_labels != len(record.labels):
        raise InputError(
            f"{folder} has {network.config.num_labels} classes in place of {len(record.labels)}."
        )
    _check_length(folder, record, network.config)
    return network, tokenizer


def _check_length(folder: Path, record: ClassifierRecord, config: Any) -> None:
    if record.max_length > int(getattr(config, "max_position_embeddings", record.max_length)):
        raise InputError(f"{folder} asks for a max_length that its encoder cannot read.")
