"""A scan from end to end, on tiny models and on the real one."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace

import jsonschema
import pytest
import torch

from modelassay.data.concepts import Concept, ContrastPair
from modelassay.measures import examination
from modelassay.measures.examination import read_range
from modelassay.models import load
from modelassay.report import to_html, to_json
from modelassay.scan.scanning import scan
from modelassay.scan.verdict import Verdict
from schemas import SCAN_SCHEMA


def check(report):
    data = json.loads(to_json(report))
    jsonschema.validate(data, SCAN_SCHEMA)
    return data


@pytest.fixture(scope="module")
def few():
    """Concepts small enough for tiny models, in place of all that ship with prompts to answer."""
    nouns = ["bread", "paper", "glass", "stone", "wool", "clay", "silk", "cork"]
    pairs = tuple(
        ContrastPair(positive=f"Is {noun} loud?", negative=f"Can {noun} sink?") for noun in nouns
    )
    names = ("harmful_content", "injection_resistance", "refusal_capability", "my_own")
    return {name: Concept(name=name, pairs=pairs) for name in names[:1]} | {
        name: Concept(
            name=name,
            pairs=tuple(
                ContrastPair(positive=f"{name} {p.positive}", negative=f"{name} {p.negative}")
                for p in pairs
            ),
        )
        for name in names[1:]
    }


@pytest.mark.parametrize("mode", ["quick", "standard", "full"])
def test_a_random_model_does_not_pass(tiny, few, mode):
    phases = []
    report = scan(
        tiny(),
        mode=mode,
        concepts=few,
        response_tokens=24,
        on_progress=lambda *step: phases.append(step),
    )
    data = check(report)
    assert report.verdict in (Verdict.CRITICAL, Verdict.INCONCLUSIVE)
    assert "my_own" in data["concepts"]
    assert ("refusal" in data and "unscored" in data["refusal"]) == (mode == "quick")
    assert ("control_topic" in data["concepts"]) == (mode == "full")
    if mode == "full":
        assert data["concepts"]["control_topic"]["level"] == "CONTROL"
    done = {phase: (n, total) for phase, n, total in phases}
    assert all(n == total for n, total in done.values())
    assert {"weights", "reading", "statistics"} <= set(done)


def test_without_chat_template_behaviour_is_not_guessed(tiny, few):
    report = scan(tiny(chat=False), concepts=few)
    assert check(report)["refusal"] == {"unscored": report.refusal_unscored}
    assert "base model" in report.reasons[0]
    assert report.verdict is not Verdict.PASS
    raw = scan(tiny(), concepts=few, chat_template=False)
    assert "raw prompts" in raw.reasons[0]


def test_scores_do_not_depend_on_batch_size(tiny, few, monkeypatch):
    # An eighth of the prompts: alone in their batches, all of them would take long.
    some = tuple(group[::8] for group in examination.refusal_prompts())
    monkeypatch.setattr(examination, "refusal_prompts", lambda: some)
    reports = [
        scan(tiny(), concepts=few, batch_tokens=n, ask_all=True, response_tokens=24)
        for n in (80, 5000)
    ]
    for name in few:
        a, b = (report.concepts[name].separation for report in reports)
        assert a.separation == pytest.approx(b.separation, rel=1e-4, abs=1e-4)
        assert a.interval == pytest.approx(b.interval, rel=1e-3, abs=1e-3)
    a, b = (report.refusal for report in reports)
    assert a.log_odds_gap == pytest.approx(b.log_odds_gap, abs=1e-3)
    assert a.selectivity == b.selectivity


def test_compare_names_both_models(tiny, tiny_folder, few):
    other = str(tiny_folder(seed=1))
    report = scan(tiny(), mode="quick", concepts=few, compare=other)
    data = check(report)["compare"]
    assert data["model"]["id"] == other
    drift = data["concepts"]["my_own"]["drift"]
    ours, theirs = (r.concepts["my_own"].separation.separation for r in (report, report.compare))
    assert drift == pytest.approx(ours - theirs, abs=1e-4)


def test_an_erased_direction_is_critical_and_named(tiny_folder, few, tmp_path):
    model = load(str(tiny_folder(seed=2)), device="cpu")
    r = torch.randn(32, generator=torch.Generator().manual_seed(0))
    r /= r.norm()
    with torch.no_grad():
        for layer in model.layers:
            for weight in (layer.self_attn.o_proj.weight, layer.mlp.down_proj.weight):
                weight -= torch.outer(r, r @ weight)
    model.network.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    report = scan(str(tmp_path), mode="quick", concepts=few)
    assert report.verdict is Verdict.CRITICAL
    assert "erased from the weights of layers 0-4 (the same direction" in report.reasons[0]
    assert check(report)["ablation"]["blocks"] == [0, 1, 2, 3, 4]


def test_the_read_range_is_the_middle_of_the_model():
    assert read_range(30) == tuple(range(12, 24))
    assert read_range(5) == (2, 3)
    assert read_range(2) == (0,)
    assert read_range(1) == (0,)


def test_html_is_self_contained_and_escapes(tiny, few):
    report = scan(tiny(), mode="quick", concepts=few)
    hostile = replace(
        report, model=report.model.model_copy(update={"id": "<script>alert(1)</script>"})
    )
    html = to_html(hostile)
    assert "<script>alert(1)</script>" not in html
    assert "&lt;script&gt;alert(1)" in html
    ours = re.sub(r"<script.*?</script>", "", html, flags=re.S)  # plotly.js names maps it can show
    assert "http" not in ours
    assert not re.search(r"<script[^>]*src=|<link|@import", html)
    assert report.verdict.value in html
    assert "harmful_content: held-out projections" in html


def test_tables_and_charts_hold_the_numbers(tiny, few):
    report = scan(tiny(), concepts=few, response_tokens=24)
    frame = report.to_dataframe()
    assert list(frame["concept"]) == list(report.concepts)
    found = report.concepts["my_own"].separation
    row = frame.set_index("concept").loc["my_own"]
    assert (row["separation"], row["low"], row["high"]) == (found.separation, *found.interval)
    curve = next(trace for trace in report.figure().data if trace.name == "my_own")
    assert dict(zip(curve.x, curve.y, strict=True)) == found.by_layer
    assert report.refusal.harmful_rate in report.figure("evidence").data[0].y
    swaps = report.figure("my_own swaps").data[0]  # counted, as there are thousands
    assert sum(swaps.y) == len(found.null)
    assert min(swaps.x) >= min(found.null)
    html = report._repr_html_()
    assert report.verdict.value in html
    assert "my_own" in html
    assert "Plotly" not in html


def test_the_package_imports_fast_and_names_resolve():
    code = (
        "import sys, modelassay; assert 'torch' not in sys.modules;"
        "import modelassay.scan.scanning;"
        "assert callable(modelassay.scan) and callable(modelassay.load);"
        "assert all(hasattr(modelassay, name) for name in modelassay.__all__)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def random_model(embedded, seed):
    """A small network with random weights behind the real tokenizer."""
    import transformers

    from modelassay.models import find_layers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=49152, hidden_size=48, intermediate_size=96, num_hidden_layers=5,
        num_attention_heads=4, num_key_value_heads=2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    return replace(embedded, network=model, layers=find_layers(model))


@pytest.mark.real_model
def test_on_random_weights_the_shipped_concepts_find_nothing(embedded):
    from modelassay.data.concepts import shipped_concepts
    from modelassay.measures.separation import measure_separation
    from modelassay.reading.activations import read_activations
    from modelassay.reading.prompts import encode_prompts

    p_values = []
    for seed in range(8):
        model = random_model(embedded, seed)
        for concept in shipped_concepts().values():
            if concept.control:
                continue
            sides = [
                read_activations(
                    model, encode_prompts(model, [getattr(p, side) for p in concept.pairs]), [2, 3]
                ).values
                for side in ("positive", "negative")
            ]
            keys = [pair.positive for pair in concept.pairs]
            p_values.append(measure_separation(*sides, [2, 3], keys, n_swaps=300).p_value)
    # 32 values; the concepts' words are fixed, so seeds are not quite independent.
    assert sum(p < 0.05 for p in p_values) <= 5
    assert sum(p_values) / len(p_values) > 0.35


@pytest.mark.real_model
def test_amss_prompts_give_amss_number(embedded, tmp_path):
    """ams-scanner prints 4.45σ for these prompts once its padding is right and chats are chats."""
    from ams.concepts import export_concepts_to_json

    path = tmp_path / "ams.json"
    export_concepts_to_json(str(path))
    report = scan(embedded, mode="quick", concepts=path)
    harm = report.concepts["harmful_content"].separation
    assert harm.in_sample_separation == pytest.approx(4.45, abs=0.02)
    assert harm.separation < 4.0
    assert report.verdict is Verdict.INCONCLUSIVE
