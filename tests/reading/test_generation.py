"""Greedy responses: free of a checkpoint's settings, ended where the model ends them, and kept."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import GenerationConfig

from modelassay.models import load
from modelassay.reading.generation import FIRST_LOOK, end_tokens, generate_greedy
from modelassay.reading.prompts import encode_prompts
from talking import load_talking
from tiny import CHAT_TEMPLATE, save_tiny

ASKED = ["Hi", "How are you?"]
# What other settings would turn upside down, for every field that `generate` knows.
ODD = {
    "assistant_confidence_threshold": 0.1,
    "assistant_early_exit": 1,
    "assistant_ensemble_weight": 0.5,
    "assistant_lookbehind": 3,
    "bad_words_ids": [[i] for i in range(60, 250)],
    "begin_suppress_tokens": list(range(50, 250)),
    "cache_config": {"nbits": 2},
    "cache_implementation": "static",
    "constraints": [],
    "compile_config": {"dynamic": True},
    "continuous_batching_config": {"block_size": 3},
    "decoder_start_token_id": 3,
    "disable_compile": False,
    "diversity_penalty": 1.0,
    "do_sample": True,
    "dola_layers": "high",
    "early_stopping": True,
    "encoder_no_repeat_ngram_size": 1,
    "encoder_repetition_penalty": 9.0,
    "epsilon_cutoff": 0.5,
    "eta_cutoff": 0.5,
    "exponential_decay_length_penalty": [1, 9.0],
    "force_words_ids": [[65]],
    "forced_bos_token_id": 66,
    "forced_decoder_ids": [[1, 67]],
    "forced_eos_token_id": 68,
    "guidance_scale": 7.0,
    "is_assistant": True,
    "length_penalty": 5.0,
    "low_memory": True,
    "max_cache_len": 2,
    "max_length": 3,
    "max_matching_ngram_size": 2,
    "max_time": 1e-9,
    "min_length": 200,
    "min_new_tokens": 200,
    "min_p": 0.9,
    "no_repeat_ngram_size": 1,
    "num_assistant_tokens": 3,
    "num_assistant_tokens_schedule": "heuristic",
    "num_beam_groups": 2,
    "num_beams": 4,
    "num_return_sequences": 4,
    "output_attentions": True,
    "output_hidden_states": True,
    "output_logits": True,
    "output_scores": True,
    "pad_token_id": 100_000,
    "penalty_alpha": 0.6,
    "prefill_chunk_size": 2,
    "prompt_lookup_num_tokens": 3,
    "remove_invalid_values": True,
    "renormalize_logits": True,
    "repetition_penalty": 50.0,
    "return_dict_in_generate": True,
    "sequence_bias": [[[65], 1e9]],
    "speculation_type": "prompt_lookup",
    "stop_strings": ["a", "e", "<|stop|>"],
    "suppress_tokens": list(range(60, 250)),
    "target_lookbehind": 2,
    "temperature": 0.01,
    "token_healing": True,
    "top_h": 0.1,
    "top_k": 1,
    "top_p": 0.01,
    "typical_p": 0.1,
    "use_cache": False,
    "use_mtp": True,
    "watermarking_config": {"bias": 9.0},
    "an_entry_of_its_own": 1,
}


def plainly(model, ids, n):
    """Greedy tokens, one pass a token, up to one that ends the response."""
    made = []
    for _ in range(n):
        logits = model.network(input_ids=torch.tensor([[*ids, *made]])).logits[0, -1]
        made.append(int(logits.argmax()))
        if made[-1] in end_tokens(model):
            break
    return made


def loud(folder, **settings):
    """A saved tiny model whose tokens depend on what it has read, with other settings."""
    save_tiny(folder, initializer_range=0.5)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


@pytest.mark.parametrize("names", [*([name] for name in ODD), list(ODD)], ids=lambda n: n[0])
def test_no_setting_of_a_checkpoint_changes_a_greedy_response(tmp_path, names):
    model = load(str(loud(tmp_path / "m", **{name: ODD[name] for name in names})), device="cpu")
    before = model.network.generation_config.to_dict()
    prompts = encode_prompts(model, ASKED)
    for prompt, response in zip(
        prompts, generate_greedy(model, prompts, max_new_tokens=6), strict=True
    ):
        tokens = plainly(model, prompt.ids, 6)
        assert response.text == model.tokenizer.decode(tokens, skip_special_tokens=True)
        assert response.first_token == tokens[0]
        assert response.answer == response.text
        assert not response.thought
    assert model.network.generation_config.to_dict() == before


@pytest.mark.parametrize(
    "settings",
    [
        {"eos_token_id": 100_000},
        {"eos_token_id": None},
        {"eos_token_id": "two"},
        {"eos_token_id": [257, None, -1, True, 2.5]},
        {"pad_token_id": "none", "max_new_tokens": "many"},
        {"num_beams": "four", "temperature": None},
        {"early_stopping": "perhaps", "max_new_tokens": -3},
    ],
)
def test_settings_that_make_no_sense_do_no_harm(tmp_path, settings):
    model = load(str(loud(tmp_path / "m", **settings)), device="cpu")
    assert end_tokens(model) == [256, 257]
    prompts = encode_prompts(model, ASKED)
    for prompt, response in zip(
        prompts, generate_greedy(model, prompts, max_new_tokens=3), strict=True
    ):
        tokens = plainly(model, prompt.ids, 3)
        assert response.text == model.tokenizer.decode(tokens, skip_special_tokens=True)


def test_every_setting_that_transformers_knows_is_tried():
    own = {"bos_token_id", "eos_token_id", "max_new_tokens", "transformers_version"}
    known = {name for name in GenerationConfig().to_dict() if not name.startswith("_")}
    assert known - own <= set(ODD)


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_a_response_that_goes_on_is_that_of_one_run(tmp_path, family):
    model = load(str(save_tiny(tmp_path / "m", family, initializer_range=0.5)), device="cpu")
    prompts = encode_prompts(model, [*ASKED, "Why?", "Who was there, and when?", "Hi"])
    plain = generate_greedy(model, prompts, max_new_tokens=45)
    told = []

    def never(i, answer):
        told.append((i, answer))
        return False

    assert generate_greedy(model, prompts, max_new_tokens=45, enough=never) == plain
    assert {i for i, _ in told} <= {0, 1, 2, 3}  # the second "Hi" is the first
    long = {r.n_tokens for r in plain if not r.finished}
    assert long <= {45}
    assert long
    short = generate_greedy(model, prompts, max_new_tokens=45, enough=lambda i, _: i == 1)
    assert [short[0], *short[2:]] == [plain[0], *plain[2:]]
    assert short[1].n_tokens == min(plain[1].n_tokens, FIRST_LOOK)
    assert plain[1].text.startswith(short[1].text)


def test_a_response_stops_within_a_batch_where_there_is_enough(tmp_path):
    words = tuple(f" w{i}" for i in range(60))
    model = load_talking(tmp_path / "m", words)
    prompts = encode_prompts(model, ASKED)
    first, second = generate_greedy(
        model, prompts, max_new_tokens=100, enough=lambda i, text: i == 0 and " w33" in text
    )
    assert (first.n_tokens, first.finished) == (40, False)
    assert first.text == "".join(words[:40])
    assert (second.n_tokens, second.finished) == (61, True)
    assert second.text == second.answer == "".join(words)


def test_a_thought_has_tokens_of_its_own(tmp_path):
    words = [f" w{i}" for i in range(40)]
    model = load_talking(tmp_path / "m", ["<think>", *words, "</think>", "No", ",", " never"])
    prompts = encode_prompts(model, ASKED[:1])
    told = []
    (cut,) = generate_greedy(model, prompts, max_new_tokens=10)
    (read,) = generate_greedy(model, prompts, max_new_tokens=10, thought_tokens=90)
    (some,) = generate_greedy(
        model, prompts, thought_tokens=90, enough=lambda _, text: bool(told.append(text))
    )
    assert (cut.answer, cut.n_tokens) == (None, 10)
    assert read == some
    assert (read.answer, read.finished, read.n_tokens) == ("No, never", True, 46)
    assert told == []  # no thought is asked about
    (short,) = generate_greedy(model, prompts, max_new_tokens=10, thought_tokens=20)
    assert (short.answer, short.n_tokens) == (None, 30)


def test_answers_are_kept_and_made_once(monkeypatch, tiny, tmp_path):
    from types import SimpleNamespace

    from modelassay.reading import generation

    asked = []

    def generate(_model, prompts, *, max_new_tokens):
        asked.append(len(prompts))
        return [SimpleNamespace(answer=f" answer {max_new_tokens}") for _ in prompts]

    monkeypatch.setattr(generation, "generate_greedy", generate)
    prompts = [f"question {i}" for i in range(40)]
    path = tmp_path / "kept" / "answers.json"

    def kept(questions):
        return generation.kept_responses(tiny, questions, path, max_new_tokens=5)

    assert kept(prompts) == ["answer 5"] * 40
    assert kept([*prompts, "one more"]) == ["answer 5"] * 41
    assert asked == [32, 8, 1]
    path.write_text("{")
    assert kept(prompts[:1]) == ["answer 5"]


HARMONY = (
    "{% for m in messages %}<|start|>{{ m['role'] }}"
    "{% if m['role'] == 'assistant' %} to=user{% endif %}<|message|>{{ m['content'] }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
HEADERS = (
    "{% for m in messages %}<|head|>{{ m['role'] }}<|body|>{{ m['content'] }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|body|>{% endif %}"
)
TEXTS = (
    "{% for m in messages %}<|head|>{{ m['role'] }}<|text|>{{ m['content'] }}<|over|>{% endfor %}"
    "{% if add_generation_prompt %}<|head|>assistant<|thought|>{% endif %}"
)
ONE_TURN = "{% if messages | length > 2 %}{{ raise_exception('one') }}{% endif %}" + HEADERS


@pytest.mark.parametrize(
    ("template", "special", "ends"),
    [
        (CHAT_TEMPLATE, (), {"<|im_end|>", "<|im_start|>"}),
        (HEADERS, ("<|head|>", "<|body|>", "<|over|>"), {"<|over|>", "<|head|>", "<|body|>"}),
        (HEADERS, (), {"<|over|>", "<|head|>", "<|body|>"}),  # tokens, though not called special
        (ONE_TURN, ("<|head|>", "<|body|>", "<|over|>"), {"<|over|>"}),
        # The model begins several messages in one response, and only its end token ends that.
        (HARMONY, ("<|start|>", "<|message|>", "<|end|>"), set()),
        (TEXTS, ("<|head|>", "<|text|>", "<|thought|>", "<|over|>"), set()),
        ("{% for m in messages %}{{ m['content'] }}</s>\n{% endfor %}", ("</s>",), {"</s>"}),
        ("{% for m in messages %}{{ m['content'] }}\n{% endfor %}", (), set()),
    ],
)
def test_a_response_ends_where_the_template_ends_it(tmp_path, template, special, ends):
    marks = ("<|head|>", "<|body|>", "<|over|>")
    model = load_talking(tmp_path / "m", marks, template=template, special=special)
    found = model.tokenizer.convert_ids_to_tokens(end_tokens(model))
    assert set(found) == {"<|im_end|>", *ends}


def test_a_response_ends_where_the_users_turn_would_begin(tmp_path):
    says = ("Sure", ".", "<|over|>", "<|head|>", "user", "Why?")
    special = ("<|head|>", "<|body|>", "<|over|>")
    model = load_talking(tmp_path / "m", says, template=HEADERS, special=special, after="<|body|>")
    (response,) = generate_greedy(model, encode_prompts(model, ["Hi"]))
    assert response.text == response.answer == "Sure."


def test_an_end_token_that_a_config_class_makes_up_is_a_word(tmp_path):
    folder = loud(tmp_path / "m")
    (folder / "generation_config.json").unlink()
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"eos_token_id": 2}))
    assert end_tokens(load(str(folder), device="cpu")) == [256, 257]
    path.write_text(json.dumps(config | {"eos_token_id": [2, 256]}))
    assert end_tokens(load(str(folder), device="cpu")) == [256, 257]
