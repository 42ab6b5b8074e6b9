"""The layers that are read are those that run, in one stream from left to right."""

from __future__ import annotations

import pytest
import torch

from families import save_family, tiny_config, tiny_model
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.models.layers import rope_switch
from modelassay.models.stack import find_stack
from tiny import make_tokenizer


@pytest.mark.parametrize("model_type", ["gemma3n_text", "deepseek_v4", "qwen4_exp_text"])
def test_parallel_streams_are_refused_by_name(tmp_path, model_type):
    with pytest.raises(InputError, match=r"For\w+ keeps several residual streams"):
        load(str(save_family(tmp_path, model_type)), device="cpu")


def test_a_layer_that_does_not_run_on_text_leaves_the_stream_as_it_is(tmp_path):
    model = load(str(save_family(tmp_path, "mllama")), device="cpu")
    skipped = model.network.config.text_config.cross_attention_layers
    assert model.info.n_layers == len(model.layers) == 4
    assert all(model.layers[i] is model.layers[i - 1] for i in skipped if i < 4)


def test_llama_4_is_found_though_it_is_its_own_decoder(tmp_path):
    assert load(str(save_family(tmp_path, "llama4")), device="cpu").info.n_layers == 4


def test_tokens_that_see_what_follows_are_refused(tmp_path):
    with pytest.raises(InputError, match="PaliGemma.* a token sees what follows it"):
        load(str(save_family(tmp_path, "paligemma")), device="cpu")


def test_half_of_an_encoder_decoder_is_refused(tmp_path):
    with pytest.raises(InputError, match="BartForCausalLM is an encoder-decoder"):
        load(str(save_family(tmp_path, "bart")), device="cpu")


def test_a_model_that_wants_an_image_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"Kosmos2\w+ does not run on text alone: .*pixel_values"):
        load(str(save_family(tmp_path, "kosmos-2")), device="cpu")


def test_layers_run_in_another_order_or_twice_are_refused():
    network = tiny_model("llama")
    layers = network.model.layers
    layers[3] = layers[0]
    with pytest.raises(InputError, match="several times"):
        find_stack(network, make_tokenizer())


def test_a_stream_beside_the_layers_is_refused():
    network = tiny_model("llama")
    network.model.layers[1].register_forward_pre_hook(lambda _m, args: (args[0] + 1, *args[1:]))
    with pytest.raises(InputError, match="Layer 1 of LlamaForCausalLM does not read what layer 0"):
        find_stack(network, make_tokenizer())


def test_nothing_is_left_behind_and_broken_weights_are_not_accused():
    network = tiny_model("llama")
    with torch.no_grad():
        network.model.layers[2].mlp.down_proj.weight.fill_(float("nan"))
    assert len(find_stack(network, make_tokenizer())) == 4
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_longrope_switches_where_its_config_says():
    factors = [1.0] * 4
    config = tiny_config(
        "phi3",
        original_max_position_embeddings=64,
        rope_parameters={
            "rope_type": "longrope",
            "rope_theta": 1e4,
            "short_factor": factors,
            "long_factor": [4.0] * 4,
        },
    )
    assert rope_switch(config) == 64
    assert rope_switch(tiny_config("llama")) is None
