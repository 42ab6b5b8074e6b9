"""The rule holds on real models of known damage."""

from __future__ import annotations

import pytest

import modelassay
from identity import int8, trained
from modelassay.data.concepts import concepts_for
from modelassay.measures.examination import examine
from modelassay.verify import Kind, find_baseline, verify
from modelassay.verify.differences import compare, judge


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
