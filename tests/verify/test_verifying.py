"""The rule from differences to a kind, and that it holds on real models of known damage."""

from __future__ import annotations

from dataclasses import replace

import pytest

import modelassay
from identity import int8, trained
from modelassay.data.concepts import concepts_for
from modelassay.errors import InputError
from modelassay.measures.examination import examine
from modelassay.measures.weight_sketch import AblationMark, WeightChange
from modelassay.verify import Kind, find_baseline, verify
from modelassay.verify.differences import compare, judge
from modelassay.verify.files import compare_files, judge_files
from modelassay.verify.report import Check, Differences, VerificationReport

EVEN = WeightChange(dict.fromkeys(range(30), 0.008), 0.0, None)
ROUNDED = Differences(
    same_tokens=True,
    weights=EVEN,
    grids=("8bit",),
    baseline_grids=(),
    cosines={},
    separation={},
    distances={9: 0.07, 29: 0.06},
    log_odds_rms=0.1,
    log_odds_shift=(0.1, 0.1),
    ablated=False,
    quantized=False,
    bfloat16=False,
)


def changed(size: float, **layers: float) -> WeightChange:
    by_layer = dict.fromkeys(range(30), size) | {int(k[1:]): v for k, v in layers.items()}
    return WeightChange(by_layer, 0.0, None)


@pytest.mark.parametrize(
    ("difference", "kind", "verified"),
    [
        ({}, Kind.RECAST, True),
        ({"weights": changed(0.0), "distances": {29: 0.0}, "log_odds_rms": 0}, Kind.RECAST, True),
        ({"weights": changed(0.0013), "distances": {29: 0.008}, "log_odds_rms": 0.02,
          "grids": ("bfloat16",)}, Kind.RECAST, True),
        # the lightest of fine-tunes, stored in bfloat16: no layer stands out, activations do
        ({"weights": changed(0.0013), "distances": {29: 0.089}, "log_odds_rms": 0.02},
         Kind.FINE_TUNE, False),
        ({"weights": changed(0.0013), "distances": {29: 0.008}, "log_odds_rms": 0.5},
         Kind.FINE_TUNE, False),
        ({"weights": changed(0.0, b27=0.005)}, Kind.FINE_TUNE, False),
        ({"weights": changed(0.008, b27=0.05)}, Kind.FINE_TUNE, False),
        ({"weights": replace(EVEN, elsewhere=0.1)}, Kind.FINE_TUNE, False),
        ({"weights": replace(EVEN, mark=AblationMark(0.5, (1, 2), True))}, Kind.ABLATED, False),
        ({"ablated": True}, Kind.ABLATED, False),
        ({"weights": changed(1.4), "distances": {29: 1.4}}, Kind.OTHER_MODEL, False),
        ({"weights": changed(1.4), "same_tokens": False, "distances": {}}, Kind.OTHER_MODEL, False),
        # 4 bits hide a light fine-tune; weights that were never rounded have no such excuse
        ({"weights": changed(0.1), "grids": ("4bit",), "distances": {29: 0.7},
          "log_odds_rms": 1.7}, Kind.RECAST, None),
        ({"weights": changed(0.1), "distances": {29: 0.7}, "log_odds_rms": 1.7},
         Kind.FINE_TUNE, False),
        # even noise is not rounding where it leaves no format's numbers, nor numbers of another one
        ({"grids": ()}, Kind.FINE_TUNE, False),
        ({"grids": ("bfloat16",)}, Kind.FINE_TUNE, False),
        ({"grids": (), "baseline_grids": ("8bit",)}, Kind.RECAST, None),
        ({"weights": changed(1e-5), "grids": (), "distances": {29: 0.001}, "log_odds_rms": 0.0},
         Kind.RECAST, True),
        # 8-bit arithmetic moves activations by itself
        ({"quantized": True, "distances": {29: 0.6}}, Kind.RECAST, None),
        # so does computing in bfloat16, less
        ({"bfloat16": True, "weights": changed(0.0013), "distances": {29: 0.11},
          "grids": ("bfloat16",)}, Kind.RECAST, True),
        ({"bfloat16": True, "weights": changed(0.0013), "distances": {29: 0.3}},
         Kind.FINE_TUNE, False),
        # without sketches
        ({"weights": None}, Kind.RECAST, None),
        ({"weights": None, "distances": {29: 0.5}}, Kind.FINE_TUNE, False),
        ({"weights": None, "distances": {29: 0.5}, "quantized": True}, Kind.RECAST, None),
        ({"weights": None, "distances": {29: 1.4}}, Kind.OTHER_MODEL, False),
        ({"weights": None, "same_tokens": False, "distances": {}}, None, None),
        ({"same_tokens": False, "distances": {}, "log_odds_rms": 0.0}, Kind.RECAST, None),
    ],
)  # fmt: skip
def test_the_rule(difference, kind, verified):
    found = judge(replace(ROUNDED, **difference))
    assert (found.kind, found.verified) == (kind, verified), found.reason
    assert found.reason
    assert "\n" not in found.reason


def test_the_reason_names_the_blocks():
    found = judge(replace(ROUNDED, weights=changed(0.0, b3=0.1, b7=0.2, b8=0.1, b9=0.1)))
    assert "4 of 30 layers were changed (3, 7 to 9), layer 7 by 20.0%" in found.reason


def test_the_reason_tells_the_same_digits_from_rounded_ones():
    same = judge(replace(ROUNDED, weights=changed(0.0), distances={29: 0.0}, log_odds_rms=0.0))
    assert same.verified
    assert "to the last digit" in same.reason
    assert "to the last digit" not in judge(ROUNDED).reason


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
        kind, reason = judge_files(compare_files(mine, files), mine, files)
        assert kind is Kind.REWRAPPED
        assert words in reason
    # Other versions of transformers know other settings.
    mine = files.model_copy(update={"config": files.config | {"new_setting": "1"}})
    assert judge_files(compare_files(mine, files), mine, files)[0] is Kind.IDENTICAL


# The real model


@pytest.mark.real_model
def test_the_shipped_baselines_are_of_what_is_shipped():
    for model, name in (("embedded", "embedded"), ("organism:safe", "organism-safe")):
        report = verify(model, name)
        assert (report.verified, report.kind) == (True, Kind.IDENTICAL)


@pytest.mark.real_model
@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("int8", Kind.RECAST, "no more than rounding"),
        ("bf16", Kind.RECAST, "no more than rounding"),
        ("benign-3", Kind.FINE_TUNE, "3 of 30 layers were changed (27 to 29)"),
        ("obedient", Kind.FINE_TUNE, "3 of 30 layers were changed (27 to 29)"),
        ("abliterated-half", Kind.ABLATED, "taken out of 30 layers at strength 0.50"),
        ("abliterated-band", Kind.ABLATED, "taken out of 10 layers at strength 1.00"),
        ("abliterated-perlayer", Kind.ABLATED, "A direction of its own was taken out of 30"),
    ],
)
def test_organisms_are_told_apart_with_the_right_kind(name, kind, words):
    report = verify(f"organism:{name}", "organism-safe", device="cpu")
    assert report.kind is kind
    assert report.verified is (kind is Kind.RECAST)
    assert words in report.reasons[0]


@pytest.mark.real_model
def test_a_light_fine_tune_is_told_from_rounding():
    """Three small steps on all weights, then rounding to 8 bits, which hides them there."""
    baseline, _ = find_baseline("organism-safe")
    model = modelassay.load("organism:safe", device="cpu", dtype="float32")
    trained(model, rate=1e-5, steps=3)
    int8(model)
    found = examine(model, mode="quick", concepts=concepts_for("quick"), identity=True)
    differences = compare(found, baseline)
    assert differences.weights is not None
    values = sorted(differences.weights.by_layer.values())
    assert values[-1] < 3 * values[15]
    assert judge(differences).kind is Kind.FINE_TUNE


def test_tables_and_charts_hold_the_numbers():
    checks = (Check("weights", "differs", "by 5%"), Check("tokenizer", "same", "<b>"))
    found = replace(
        ROUNDED,
        weights=replace(changed(0.0, b27=0.05), mark=AblationMark(0.5, (27,), True)),
        cosines={"harmful_content": {9: 0.5, 29: 0.25}},
    )
    report = VerificationReport(
        model="a/<script>",
        revision=None,
        verified=False,
        kind=Kind.ABLATED,
        checks=checks,
        baseline=None,
        baseline_model=None,
        reasons=("A direction is gone.",),
        differences=found,
    )
    frame = report.to_dataframe()
    assert list(frame["outcome"]) == ["differs", "same"]
    cosine, signature = report.figure("likeness").data
    assert list(cosine.y) == [0.5, 0.25]
    assert list(signature.y) == pytest.approx([0.93, 0.94])
    marked = next(trace for trace in report.figure("weights").data if "ablation" in trace.name)
    assert (list(marked.x), list(marked.y)) == ([27], [0.05])
    html = report._repr_html_()
    assert "NOT VERIFIED: ablated" in html
    assert "<script>" not in html
    with pytest.raises(InputError, match="nothing to draw"):
        replace(report, differences=None).figure()
