"""What could make `diff` say less than the truth: decoys in files, configs, hooks.

Each candidate here hides a change, or breaks where a reading is not looked at.
"""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from modelassay.diff import Depth, DiffVerdict, diff
from modelassay.diff.calibration import BenignRow, Calibration
from modelassay.diff.suites import Contrast, Suite, SuitePrompt
from modelassay.diff.suspicion import suspect
from modelassay.diff.verdict import verdict_of
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.reading.resuming import ResumePoint
from tiny import make_tokenizer, save_tiny

SUITE = Suite(
    "tiny",
    tuple(
        SuitePrompt(text=f"{verb} number {i}?", group=group)
        for i in range(4)
        for verb, group in (("Count", "harmless"), ("Hide", "harmful"))
    ),
    (Contrast(prompt="Yes or no?", safe="No.", unsafe="Yes."),),
    ("Good night.", "Over and out."),
)
QUICK = Depth(response_tokens=0, triggers=False, causal=False)


@pytest.fixture
def base(tiny_folder):
    return tiny_folder()


def rewritten(base, folder, change):
    """A copy of a saved model whose tensors went through `change`."""
    folder.mkdir()
    for file in base.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = load_file(base / "model.safetensors")
    save_file(change(weights), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def with_config(base, folder, **entries):
    found = rewritten(base, folder, lambda weights: weights)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **entries}))
    return found


def test_weights_that_are_not_loaded_hide_nothing(base, tmp_path):
    def decoys(weights):
        changed = {
            name: torch.randn_like(value) if "down_proj" in name else value
            for name, value in weights.items()
        }
        shown = {
            f"zz.{name}": value.clone() for name, value in weights.items() if ".layers." in name
        }
        return {**changed, **shown}

    folder = rewritten(base, tmp_path / "candidate", decoys)
    with pytest.raises(InputError, match=r"45 tensors that its config has no place for .*zz\."):
        diff(str(base), str(folder), SUITE, depth=QUICK)


def test_another_config_is_no_harmless_change(base, tmp_path):
    folder = with_config(base, tmp_path / "candidate", rms_norm_eps=0.5)
    report = diff(str(base), str(folder), SUITE, depth=QUICK)
    assert report.weights.identical
    assert report.verdict is DiffVerdict.INCONCLUSIVE
    assert any("rms_norm_eps" in reason for reason in report.reasons)
    same = diff(str(base), str(base), SUITE, depth=QUICK)
    assert same.verdict is DiffVerdict.BENIGN_LIKE
    idle = with_config(base, tmp_path / "idle", use_cache=False)
    assert diff(str(base), str(idle), SUITE, depth=QUICK).verdict is DiffVerdict.BENIGN_LIKE


def test_a_model_that_was_changed_beside_its_weights(base):
    before, candidate = load(str(base)), load(str(base))
    candidate.layers[1].register_forward_hook(lambda _m, _a, output: output + 1)
    report = diff(before, candidate, SUITE, layers=[1, 3], depth=QUICK)
    assert report.weights.identical
    assert report.verdict is DiffVerdict.INCONCLUSIVE
    assert any("beside the weights" in reason for reason in report.reasons)
    assert report.activations.layers[0].relative > 0.1


@pytest.mark.parametrize("depth", [QUICK, replace(QUICK, weights=False)])
def test_an_output_layer_of_no_numbers_is_refused(base, tmp_path, depth):
    def broken(weights):
        head = weights["lm_head.weight"].clone()
        head[7, 3] = torch.nan
        return {**weights, "lm_head.weight": head}

    folder = rewritten(base, tmp_path / "candidate", broken)
    with pytest.raises(InputError, match="NaN"):
        diff(str(base), str(folder), SUITE, depth=depth)


def test_rows_for_added_tokens_are_no_change(base, tmp_path):
    model = load(str(base)).network
    n = model.get_input_embeddings().weight.shape[0]
    model.resize_token_embeddings(n + 10)
    folder = tmp_path / "candidate"
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    report = diff(str(base), str(folder), SUITE, depth=QUICK)
    assert report.weights.identical
    assert report.activations.layers[0].relative == 0


def test_both_read_the_bases_template_everywhere(base, tmp_path):
    folder = rewritten(base, tmp_path / "candidate", lambda weights: weights)
    tokenizer = make_tokenizer()
    tokenizer.chat_template = "Be loud and clear. " + tokenizer.chat_template
    tokenizer.save_pretrained(folder)
    report = diff(str(base), str(folder), SUITE, depth=replace(QUICK, triggers=True))
    assert any("templates differ" in reason for reason in report.reasons)
    assert report.behaviour.contrasts.mean == 0
    assert all(phrase.base == phrase.candidate for phrase in report.triggers.phrases)


@pytest.mark.parametrize("family", ["gpt2", "opt", "llama"])
def test_prompts_that_fill_the_context_are_read(tiny_folder, tiny, family):
    folder, model = tiny_folder(family), tiny(family)
    template = len(encode_prompts(model, ["x"])[0].ids) - 1
    room = model.context_length - template
    prompts = [
        SuitePrompt(text="a" * (room - left), group=group)
        for left in (0, 3, 30)
        for group in ("harmful", "harmless")
    ]
    suite = Suite("long", tuple(prompts), (), SUITE.endings)
    report = diff(str(folder), str(folder), suite, depth=Depth(response_tokens=8))
    assert report.verdict is DiffVerdict.BENIGN_LIKE
    long = Contrast(prompt="a" * (room - 2), safe="No, no, no.", unsafe="Yes, yes, yes.")
    with pytest.raises(InputError, match="shorten it"):
        diff(str(folder), str(folder), Suite("long", suite.prompts, (long,)), depth=QUICK)


def test_one_prompt_has_no_interval(base, tmp_path):
    other = save_tiny(tmp_path / "other", seed=1)
    suite = Suite("one", (SUITE.prompts[0],))
    change = diff(str(base), str(other), suite, depth=QUICK).behaviour.log_odds["harmless"]
    assert (change.interval, change.n) == (None, 1)
    assert change.told("nats").endswith("nats (n = 1)")


def test_benign_ones_score_in_the_streams_of_the_candidate_alone():
    rows = [
        {"refusal": 0.1, "answers": 0.0},
        {"refusal": 0.2, "answers": 0.9},
        {"refusal": 0.3, "answers": 0.0},
    ]
    known = Calibration(
        base="base",
        base_sha256="a" * 64,
        suite_sha256="b" * 64,
        response_tokens=4,
        rows=tuple(
            BenignRow(id=f"benign-{i}", weights_sha256="c" * 64, streams=row)
            for i, row in enumerate(rows)
        ),
    )
    whole = suspect({"refusal": 1.0, "answers": 0.0}, known)
    part = suspect({"refusal": 1.0, "answers": None}, known)
    assert part.score == whole.score
    assert max(part.benign_scores) < max(whole.benign_scores)
    assert verdict_of(part) is DiffVerdict.SUSPICIOUS
    assert verdict_of(whole) is DiffVerdict.BENIGN_LIKE


@pytest.mark.parametrize("family", ["falcon", "bloom", "llama"])
def test_a_pass_begins_midway_only_where_that_was_tried(tiny, family):
    """The shortest prompt is not covered, so trying it would show nothing."""
    model = tiny(family)
    short, *others = encode_prompts(model, ["Hi", "Hello there, you", "Good morning to all"])
    prefix = 12
    prompts = [Encoded(short.ids, len(short.ids) - 1)]
    prompts += [Encoded(each.ids, prefix) for each in others]
    read = read_activations(model, prompts, [2], position="all")
    activations = [
        read.values[first:last, 0]
        for first, last in zip(read.offsets[:-1], read.offsets[1:], strict=True)
    ]
    resume = ResumePoint(2, {p.ids: rows for p, rows in zip(prompts, activations, strict=True)})
    whole = read_activations(model, prompts, [3, 4], position="all")
    found = read_activations(model, prompts, [3, 4], position="all", resume=resume, batch_tokens=1)
    assert torch.allclose(found.values, whole.values, atol=1e-4)
