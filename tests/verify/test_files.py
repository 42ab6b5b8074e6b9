"""What surrounds the weights counts."""

from __future__ import annotations

import peft
import transformers

from modelassay.models import ModelRef, load
from modelassay.models.finding import find_sources
from modelassay.verify import Kind, find_baseline
from modelassay.verify.files import compare_files, hash_model, hash_sources, judge_files


def test_what_surrounds_the_weights_counts():
    baseline, _ = find_baseline("embedded")
    files = baseline.index.files
    for change, words in (
        ({"tokenizer": "0" * 64}, "the tokenizer differs"),
        ({"chat_template": "0" * 64, "template_lines": "0" * 64}, "the chat template differs"),
        ({"chat_template": None, "template_lines": None}, "the chat template is missing here"),
        ({"generation_config": None}, "the generation config is missing here"),
        ({"config": files.config | {"auto_map": "{}"}}, "other settings: auto_map"),
        ({"generation_config": "0" * 64}, "the generation config differs"),
        ({"config": files.config | {"rms_norm_eps": "0.5"}}, "other settings: rms_norm_eps"),
    ):
        mine = files.model_copy(update=change)
        found = judge_files(compare_files(mine, files), mine, files)
        assert found.kind is Kind.REWRAPPED
        assert words in found.reason
    # Other versions of transformers know other settings.
    mine = files.model_copy(update={"config": files.config | {"new_setting": "1"}})
    assert judge_files(compare_files(mine, files), mine, files).kind is Kind.IDENTICAL


def test_an_adapters_own_tokenizer_is_the_one_that_counts(tiny_folder, tmp_path):
    base = tiny_folder()
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"])).save_pretrained(tmp_path)
    before = hash_sources(*find_sources(ModelRef(str(tmp_path))))
    tokenizer = transformers.AutoTokenizer.from_pretrained(base)
    tokenizer.add_tokens(["<think>"])
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(tmp_path)
    after = hash_sources(*find_sources(ModelRef(str(tmp_path))))
    assert after == hash_model(load(str(tmp_path), device="cpu"))
    assert after.weights == before.weights
    assert after.tokenizer != before.tokenizer
    assert after.chat_template != before.chat_template
