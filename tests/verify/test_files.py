"""What surrounds the weights counts."""

from __future__ import annotations

from modelassay.verify import Kind, find_baseline
from modelassay.verify.files import compare_files, judge_files


def test_what_surrounds_the_weights_counts():
    baseline, _ = find_baseline("embedded")
    files = baseline.index.files
    for change, words in (
        ({"tokenizer": "0" * 64}, "the tokenizer differs"),
        ({"chat_template": "0" * 64}, "the chat template differs"),
        ({"chat_template": None}, "the chat template is missing here"),
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
