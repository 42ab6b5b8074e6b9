"""The small network over the embedded encoder, and its file: a LoRA adapter and a head.

The head reads the opening token beside the mean over the response, so that a long prompt cannot
water a response down.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from modelassay.data.labelled import LABELS
from modelassay.errors import InputError, first_line
from modelassay.models.explain import explain_loading

TARGETS = ("query", "key", "value", "dense")
DROPOUT = 0.1
LORA_A, LORA_B = ".lora_A.weight", ".lora_B.weight"
PREFIX = "base_model.model."


class PairNetwork(nn.Module):
    """Encoder and head; gives logits [row, 3]."""

    def __init__(self, encoder: Any) -> None:
        """Takes an encoder of transformers."""
        super().__init__()
        self.encoder = encoder
        self.dropout = nn.Dropout(DROPOUT)
        self.head = nn.Linear(2 * int(encoder.config.hidden_size), len(LABELS))

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
