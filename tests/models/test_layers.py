"""Networks whose layers cannot be found are refused by name."""

from __future__ import annotations

import pytest
import torch
import transformers

from checkpoints import refusal
from modelassay.errors import InputError
from modelassay.models.layers import resolve_layers


@pytest.mark.parametrize(
    ("config", "architecture", "name"),
    [
        (transformers.MambaConfig(), "MambaForCausalLM", "MambaForCausalLM is a state-space"),
        (transformers.MambaConfig(), None, "model type 'mamba' is a state-space"),
        (transformers.BertConfig(), "BertForMaskedLM", "BertForMaskedLM does not generate text"),
        (transformers.BertConfig(), "BertLMHeadModel", "BertLMHeadModel does not generate text"),
        (transformers.BertConfig(), None, "model type 'bert' does not generate text"),
        (
            transformers.LlamaConfig(),
            "LlamaForSequenceClassification",
            "LlamaForSequenceClassification does not generate text",
        ),
        (
            transformers.T5Config(),
            "T5ForConditionalGeneration",
            "T5ForConditionalGeneration is an encoder-decoder model",
        ),
        (transformers.T5Config(), None, "model type 't5' is an encoder-decoder model"),
        (transformers.ViTConfig(), None, "'vit' is not a causal language model"),
    ],
)
def test_architectures_are_refused_by_name_before_weights_are_opened(
    copy, config, architecture, name
):
    folder = copy()
    config.architectures = [architecture] if architecture else None
    config.save_pretrained(folder)
    (folder / "model.safetensors").write_bytes(b"opening this would be another error")
    assert name in refusal(InputError, folder)


class Lonely(torch.nn.Module):
    def get_decoder(self) -> torch.nn.Module:
        return self


def test_a_model_without_a_list_of_blocks_is_refused():
    from modelassay.models import find_layers

    with pytest.raises(InputError, match="Cannot find the decoder layers of Lonely"):
        find_layers(Lonely())


def test_layers_are_counted_from_either_end():
    assert resolve_layers([0, 4, -2], 5) == (0, 4, 3)
    assert resolve_layers([-5, -1], 5) == (0, 4)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], "at least one layer"),
        ([1, 5], r"no layer 5: layers must lie in 0…4, or in -5…-1 when counted from the end"),
        ([-6], "no layer -6"),
        ([4, -1], "named twice in 4, -1"),
    ],
)
def test_layers_that_are_not_there_are_refused_with_the_range(layers, message):
    with pytest.raises(InputError, match=message):
        resolve_layers(layers, 5)
