"""Names of places in a model: which are the output of a layer, and what the others are."""

from __future__ import annotations

import pytest

from modelassay.errors import InputError
from modelassay.sae.hook_names import module_path, parse_layer

OUTPUTS_OF_LAYERS = {
    "blocks.12.hook_resid_post": 12,
    "blocks.12.hook_resid_pre": 11,
    "blocks.12.hook_out": 12,
    "blocks.12.hook_in": 11,
    "model.layers.12": 12,
    "model.layers.7.output": 7,
    "model.layers.7.input": 6,
    "model.model.layers.7": 7,
    "base_model.model.model.layers.7": 7,
    "layers.7": 7,
    "transformer.h.5": 5,
    "transformer.blocks.5": 5,
    "model.transformer.blocks.5": 5,
    "gpt_neox.layers.3": 3,
    "backbone.layers.3": 3,
    "model.decoder.layers.3": 3,
    "language_model.layers.7": 7,
    "model.language_model.layers.7": 7,
    "language_model.model.layers.7.output": 7,
    "model.text_model.layers.7": 7,
    "thinker.model.layers.7": 7,
    "llm.model.layers.7": 7,
}
ELSEWHERE = {
    "blocks.0.hook_resid_pre": "the embeddings",
    "model.layers.0.input": "the embeddings",
    "hook_embed": "the embeddings",
    "hook_pos_embed": "the embeddings",
    "model.embed_tokens": "the embeddings",
    "transformer.wte": "the embeddings",
    "blocks.3.hook_resid_mid": "inside a layer",
    "blocks.3.attn.hook_z": "attention",
    "blocks.3.hook_attn_out": "attention",
    "blocks.3.attn.hook_result": "attention",
    "model.layers.3.self_attn.o_proj": "attention",
    "transformer.h.3.attn": "attention",
    "gpt_neox.layers.3.attention.dense": "attention",
    "blocks.3.hook_mlp_out": "an MLP",
    "blocks.3.hook_mlp_in": "an MLP",
    "blocks.3.mlp.hook_in": "an MLP",
    "blocks.3.mlp.hook_post": "an MLP",
    "model.layers.3.mlp": "an MLP",
    "model.layers.3.mlp.experts.5": "an MLP",
    "model.layers.3.pre_feedforward_layernorm.output": "an MLP",
    "blocks.3.ln2.hook_normalized": "a normalisation",
    "blocks.3.ln1.hook_scale": "a normalisation",
    "model.layers.3.input_layernorm": "a normalisation",
    "ln_final.hook_normalized": "a normalisation",
    "model.norm": "a normalisation",
    "transformer.ln_f": "a normalisation",
    "lm_head": "over the vocabulary",
    "unembed": "over the vocabulary",
    "visual.blocks.7": "a vision tower",
    "visual.blocks.7.hook_resid_post": "a vision tower",
    "vision_model.encoder.layers.3": "a vision tower",
    "vision_tower.vision_model.encoder.layers.3.output": "a vision tower",
    "model.vision_tower.encoder.layers.3": "a vision tower",
    "model.vision_model.transformer.layers.3": "a vision tower",
    "model.visual.blocks.7.attn": "a vision tower",
    "vit.blocks.7": "a vision tower",
    "vision_encoder.blocks.7.hook_out": "a vision tower",
    "clip.text_model.layers.3": "a vision tower",
    "audio_tower.layers.3": "an audio part",
    "model.audio_tower.conformer.3": "an audio part",
    "talker.model.layers.3": "an audio part",
    "encoder.block.3": "an encoder",
    "encoder.layer.3": "an encoder",
    "model.encoder.layers.3": "an encoder",
    "text_model.encoder.layers.3": "an encoder",
    "encoder_blocks.3.hook_resid_post": "an encoder",
    "decoder.block.3": "decoder of an encoder-decoder",
    "decoder_blocks.3.hook_resid_post": "decoder of an encoder-decoder",
    "mtp.layers.0": "drafts tokens",
    "model.multi_modal_projector.layers.0": "joins two models",
    "blocks.3.hook_resid_post,blocks.4.hook_resid_post": "several places",
    "somewhere": "unknown",
    "my_tower.layers.3": "unknown",
    "blocks.3.hook_resid_post.hook_sae_acts_post": "unknown",
    "xblocks.3.hook_resid_post": "unknown",
    "blocks.-1.hook_resid_post": "unknown",
}


@pytest.mark.parametrize(("name", "layer"), OUTPUTS_OF_LAYERS.items())
def test_outputs_of_layers_of_the_language_model_are_known(name, layer):
    assert parse_layer(name, "It") == layer


@pytest.mark.parametrize(("name", "is_"), ELSEWHERE.items())
def test_other_places_are_refused_as_what_they_are(name, is_):
    with pytest.raises(InputError, match=f"The SAE d reads .*{is_}") as error:
        parse_layer(name, "The SAE d")
    assert name in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", [None, "", []])
def test_an_sae_that_says_no_place_is_refused(name):
    with pytest.raises(InputError, match="does not say where"):
        parse_layer(name, "The SAE d")


def test_a_list_of_places_is_a_cross_coder_unless_it_has_one():
    assert parse_layer(["model.layers.4"], "It") == 4
    with pytest.raises(InputError, match="several places"):
        parse_layer(["model.layers.4", "model.layers.5"], "It")


def test_a_name_of_transformers_leads_to_its_module():
    assert module_path("model.layers.7.output") == "model.layers.7"
    assert module_path("blocks.7.hook_resid_post") is None
    assert module_path(None) is None
