"""The same weights in another form are the same; what differs is named as what it is."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import modelassay
from ggufs import make_model, write_gguf
from modelassay.data.concepts import concepts_for
from modelassay.measures.examination import examine
from modelassay.verify import Baseline, Kind, VerificationReport, verify
from modelassay.verify.creating import baseline_of
from tiny import make_tokenizer, save_tiny

AROUND = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def changed_copy(folder: Path, to: Path, edit: Callable[[Any], Any], **options: Any) -> Path:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.no_grad():
        model = edit(model) or model
    model.save_pretrained(to, **options)
    for name in AROUND:
        shutil.copy(folder / name, to)
    return to


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def measured(folder: Path) -> Baseline:
    model = modelassay.load(str(folder), device="cpu")
    found = examine(model, mode="quick", concepts=concepts_for("quick"), identity=True)
    return baseline_of(model, found, "own", "owner/own")


def resized(rows: int, *, zero: bool = False) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        model.resize_token_embeddings(rows, mean_resizing=False)
        if zero:
            model.get_input_embeddings().weight[300:] = 0
            model.get_output_embeddings().weight[300:] = 0

    return edit


def untied(model: Any) -> Any:
    model.config.tie_word_embeddings = False
    copy = transformers.LlamaForCausalLM(model.config)
    copy.load_state_dict(model.state_dict())
    return copy


def test_shards(baseline, tiny_folder, tmp_path):
    folder = changed_copy(tiny_folder(), tmp_path / "c", lambda m: None, max_shard_size="100KB")
    report = verify(str(folder), baseline)
    assert (report.verified, report.kind) == (True, Kind.RECAST)
    assert "to the last digit" in report.reasons[0]
    assert "weight files, not 1" in report.reasons[0]


@pytest.mark.parametrize("edit", [resized(384, zero=True), resized(258)])
def test_rows_without_tokens_are_no_change(edit, baseline, tiny_folder, tmp_path):
    folder = changed_copy(tiny_folder(), tmp_path / "c", edit)
    report = verify(str(folder), baseline)
    assert (report.verified, report.kind) == (True, Kind.REWRAPPED)
    assert "embed_tokens.weight and lm_head.weight the same but for rows" in report.reasons[0]
    assert json.loads(json.dumps(report.to_dict()))["differences"]["weights"]["resized"]


def test_a_baseline_that_states_no_rows_is_told_from_its_thumbprints(saved, tiny_folder, tmp_path):
    smaller = changed_copy(tiny_folder(), tmp_path / "smaller", resized(258))
    assert verify(str(smaller), str(saved)).verified is True
    index = saved / "baseline.json"
    sketch = json.loads(index.read_text())["sketch"]
    old = {key: value for key, value in sketch.items() if key in ("names", "writers", "grids")}
    edit_json(index, sketch=old)
    larger = changed_copy(tiny_folder(), tmp_path / "larger", resized(384))
    assert verify(str(larger), str(saved)).verified is True
    report = verify(str(smaller), str(saved))
    assert (report.verified, report.kind) == (None, Kind.REWRAPPED)
    assert "with 258 rows, not 300, cannot be compared" in report.reasons[0]


def test_rows_that_have_tokens_and_changed_are_a_change(baseline, tiny_folder, tmp_path):
    def edit(model: Any) -> None:
        resized(384)(model)
        model.get_input_embeddings().weight[:100] *= 1.5

    report = verify(str(changed_copy(tiny_folder(), tmp_path / "c", edit)), baseline)
    assert (report.verified, report.kind) == (False, Kind.FINE_TUNE)
    assert report.reasons[0].startswith("embed_tokens.weight changed by")


def test_tied_embeddings_stored_apart(tmp_path):
    tied = save_tiny(tmp_path / "tied", tie_word_embeddings=True)
    apart = changed_copy(tied, tmp_path / "apart", untied)
    report = verify(str(apart), measured(tied))
    assert (report.verified, report.kind) == (True, Kind.RECAST)
    assert "tie_word_embeddings is" in report.reasons[0]


def test_a_language_tower_by_itself(tiny_folder, tmp_path):
    whole = tiny_folder("gemma3")
    model = transformers.Gemma3ForConditionalGeneration.from_pretrained(whole)
    tower = transformers.Gemma3ForCausalLM(model.config.text_config)
    weights = model.model.language_model.state_dict()
    tower.load_state_dict({f"model.{name}": w for name, w in weights.items()}, strict=False)
    tower.tie_weights()
    tower.save_pretrained(tmp_path / "tower")
    for name in AROUND:
        shutil.copy(whole / name, tmp_path / "tower")
    report = verify(str(tmp_path / "tower"), measured(whole))
    assert (report.verified, report.kind) == (True, Kind.RECAST)
    assert 'model_type is "gemma3_text", not "gemma3"' in report.reasons[0]


def test_gguf_files_without_loss(baseline, tiny_folder, tmp_path):
    def gguf(family: str, folder: Path, **options: Any) -> str:
        model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return str(write_gguf(model, tmp_path / f"{family}.gguf", family, **options))

    report = verify(gguf("llama", tiny_folder()), baseline)
    assert (report.verified, report.kind) == (True, Kind.RECAST)
    assert "(a GGUF file)" in report.reasons[0]
    other = gguf("llama", tiny_folder(), keys={"rope.freq_base": 500000.0})
    report = verify(other, baseline)
    assert (report.verified, report.kind) == (False, Kind.REWRAPPED)
    assert "rope_parameters.rope_theta (500000.0, not 10000.0)" in report.reasons[0]
    model = make_model("mistral")  # whose files say llama
    model.save_pretrained(tmp_path / "mistral")
    make_tokenizer().save_pretrained(tmp_path / "mistral")
    own = measured(tmp_path / "mistral")
    assert verify(gguf("mistral", tmp_path / "mistral"), own).verified is True


def padded_in_16_bits(rows: int) -> Callable[[Any], Any]:
    def edit(model: Any) -> Any:
        model.resize_token_embeddings(rows)
        return model.bfloat16()

    return edit


def test_another_vocabulary_and_rounding_at_once(baseline, tiny_folder, tmp_path):
    folder = changed_copy(tiny_folder(), tmp_path / "c", padded_in_16_bits(280))
    report = verify(str(folder), baseline)
    assert (report.verified, report.kind) == (True, Kind.RECAST)
    assert "Embeddings have 280 rows, not 300; weights changed evenly" in report.reasons[0]


def small(layer: int | None) -> Callable[[Any], None]:
    def edit(model: Any) -> None:
        for each in model.model.layers if layer is None else [model.model.layers[layer]]:
            each.input_layernorm.weight *= 1.01

    return edit


def final_norm(model: Any) -> None:
    model.model.norm.weight[3] += 0.5


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (small(3), "layer 3 by 0.3%, the others by 0.00%: the weights were changed. In them only"),
        (small(None), "Of all weights only input_layernorm.weight of layers 0 to 4 changed"),
        (final_norm, "norm.weight changed by"),
    ],
)
def test_a_small_tensor_that_changed_alone_is_named(edit, said, baseline, tiny_folder, tmp_path):
    report = verify(str(changed_copy(tiny_folder(), tmp_path / "c", edit)), baseline)
    assert (report.verified, report.kind) == (False, Kind.FINE_TUNE)
    assert said in report.reasons[0]


def test_a_routers_correction_is_named_as_what_it_is(tmp_path):
    torch.manual_seed(0)
    config = transformers.DeepseekV3Config(
        vocab_size=300, hidden_size=32, intermediate_size=64, moe_intermediate_size=16,
        num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=4, n_routed_experts=8,
        num_experts_per_tok=2, n_group=2, topk_group=1, q_lora_rank=8, kv_lora_rank=8,
        qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, first_k_dense_replace=1,
        max_position_embeddings=256, bos_token_id=256, eos_token_id=257, pad_token_id=257,
    )  # fmt: skip
    model = transformers.DeepseekV3ForCausalLM(config)
    model.save_pretrained(tmp_path / "a")
    make_tokenizer().save_pretrained(tmp_path / "a")

    def edit(model: Any) -> None:
        for layer in model.model.layers[1:]:
            layer.mlp.gate.e_score_correction_bias += torch.arange(8) * 0.05

    report = verify(
        str(changed_copy(tmp_path / "a", tmp_path / "b", edit)), measured(tmp_path / "a")
    )
    assert (report.verified, report.kind) == (False, Kind.FINE_TUNE)
    assert "mlp.gate.e_score_correction_bias of layers 1 to 3" in report.reasons[0]
    assert "the weights are the baseline's to the last digit" in report.reasons[0]


def rewrapped(
    folder: Path, to: Path, edit: Callable[[Path], None], b: Baseline
) -> VerificationReport:
    shutil.copytree(folder, to)
    edit(to)
    return verify(str(to), b)


def _lines(end: str, last: str) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        file = folder / "chat_template.jinja"
        file.write_bytes((file.read_text().replace("\n", end) + last).encode())

    return edit


@pytest.mark.parametrize(
    "edit",
    [
        _lines("\r\n", ""),
        _lines("\n", "\n"),
        lambda folder: edit_json(folder / "config.json", use_cache=False, initializer_range=0.5),
        lambda folder: edit_json(folder / "config.json", transformers_version="4.0"),
        lambda folder: edit_json(folder / "tokenizer_config.json", model_max_length=8192),
    ],
)
def test_what_changes_no_response_is_no_difference(edit, baseline, tiny_folder, tmp_path):
    report = rewrapped(tiny_folder(), tmp_path / "c", edit, baseline)
    assert (report.verified, report.kind) == (True, Kind.IDENTICAL)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda f: edit_json(f / "config.json", rms_norm_eps=0.001), "rms_norm_eps (0.001, not 1e"),
        (
            lambda f: edit_json(f / "generation_config.json", temperature=0.3, do_sample=True),
            "the generation config differs (do_sample, temperature)",
        ),
        (
            lambda f: edit_json(f / "tokenizer_config.json", eos_token="<|im_start|>"),
            "the tokenizer differs (eos_token)",
        ),
    ],
)
def test_what_changes_responses_is_named(edit, said, baseline, tiny_folder, tmp_path):
    report = rewrapped(tiny_folder(), tmp_path / "c", edit, baseline)
    assert (report.verified, report.kind) == (False, Kind.REWRAPPED)
    assert said in report.reasons[0]
