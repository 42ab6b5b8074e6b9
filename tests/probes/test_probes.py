"""Probes: labelled data, splits by prompt, fits that are scored on what they did not see, files."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from ast import literal_eval
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from modelassay.cli.main import run
from modelassay.data.concepts import load_concepts, load_prompts
from modelassay.data.labelled import (
    LabelledExchange,
    hold_out,
    prompt_groups,
    read_labelled,
    require_classes,
    rows_at,
)
from modelassay.data.training_data import advice_prompts, project_prompts, scores_a_model
from modelassay.errors import EXIT_BAD_INPUT, EXIT_UNAVAILABLE, AssayError, InputError
from modelassay.guard import Guard
from modelassay.models import organisms as registry
from modelassay.probes import (
    PROBES,
    evaluate_probe,
    find_probe,
    load_probe,
    probe_of,
    probe_record,
    push_probe,
    save_probe,
    store_probe,
    sweep_layers,
    train_head,
)
from modelassay.probes import features as features_module
from modelassay.probes import fitting as fitting_module
from modelassay.probes.features import pooled_features, read_spans
from modelassay.probes.fitting import FITTERS, fit_calibrated, folds_of, leave_one_source_out
from modelassay.probes.head import (
    LEAST_BLOCK,
    LEAST_PAUSE,
    reached_thresholds,
    span_risks,
)
from modelassay.probes.record import RECORD_FILE, WEIGHTS_FILE
from modelassay.statistics import binary_metrics, threshold_at, tpr_at
from outputs import one_line
from tiny import probe_for

WORDS = ["amber", "basil", "cedar", "delta", "ember", "flint", "grove", "hazel", "inlet", "jolly"]
WORDS += ["kayak", "lemon", "mango", "noble"]


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("MODELASSAY_PROBES", str(tmp_path / "store"))


def exchanges(n=60, seed=0):
    """Shouted prompts are "unsafe", so that a model of random weights can tell."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        text = " ".join(rng.choice(WORDS, size=5)) + f" {i}"
        unsafe = i % 2 == 0
        shown = text.upper() + "!!!" if unsafe else text
        rows.append(LabelledExchange(shown, shown[::-1], unsafe, None, f"source {i % 4}"))
    return rows


def write(path, rows):
    lines = [
        json.dumps(
            {"prompt": r.prompt, "response": r.response, "label": int(r.unsafe), "source": r.source}
        )
        for r in rows
    ]
    path.write_text("\n".join(lines) + "\n")
    return str(path)


# --- labelled data --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "unsafe", "name"),
    [
        (0, False, None), (1, True, None), (True, True, None), ("0", False, None),
        ("harmful", True, None), ("Benign", False, None), (1.0, True, None),
        ("safe_refusal", False, "safe_refusal"), ("unsafe_compliance", True, "unsafe_compliance"),
    ],
)  # fmt: skip
def test_labels(tmp_path, label, unsafe, name):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "a", "response": "b", "label": label}) + "\n")
    (row,) = read_labelled(path)
    assert (row.unsafe, row.label, row.source) == (unsafe, name, "rows.jsonl")


GOOD = '{"prompt": "a", "response": "b", "label": 1}'


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "Row 3 .* not valid JSON"),
        ("[1]", "Row 3 .* not a JSON object"),
        ('{"prompt": "a", "response": "b"}', "Row 3 .*label"),
        ('{"prompt": "a", "response": "b", "label": 2}', "Row 3 .*label"),
        ('{"prompt": "a", "response": "b", "label": [1]}', "Row 3 .*label"),
        ('{"prompt": "", "response": "b", "label": 1}', "Row 3 .*prompt"),
        ('{"prompt": 5, "response": "b", "label": 1}', "Row 3 .*prompt"),
        ('{"prompt": "a", "response": "", "label": 1}', "Row 3 .*response"),
        ('{"prompt": "a", "label": 1}', "Row 3 .*response"),
        ('{"prompt": "a \\ud800", "response": "b", "label": 1}', "Row 3 .*half of a character"),
        (json.dumps({"prompt": "a" * 300_000, "response": "b", "label": 1}), "Row 3 .*more than"),
        ("[" * 100_000, "Row 3 .* not valid JSON"),
    ],
)
def test_malformed_rows_are_named(tmp_path, line, words):
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{GOOD}\n\n{line}\n{GOOD}\n")
    with pytest.raises(InputError, match=words):
        read_labelled(path)


def test_bytes_that_are_no_text(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(GOOD.encode() + b"\n\xff\xfe\x00\x01\n")
    with pytest.raises(InputError, match="Row 2 .* UTF-8"):
        read_labelled(path)
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(GOOD.encode() * 1000)[:-20])
    with pytest.raises(InputError):
        read_labelled(path)
    (tmp_path / "none.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no rows"):
        read_labelled(tmp_path / "none.jsonl")


def test_responses_may_be_empty_at_the_prompt(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "a", "label": 1}\n{"prompt": "b", "response": "", "label": 0}\n')
    assert [row.response for row in read_labelled(path, at="prompt")] == ["", ""]


def test_a_missing_class_is_named():
    with pytest.raises(InputError, match=r"unsafe \(1\)"):
        require_classes([LabelledExchange("a", "b", False, None, "s")], (True, False), "A probe")


def test_near_duplicates_stay_together():
    prompts = [
        "How do I bake a chocolate cake for ten people?",
        "How do I bake a chocolate cake for ten people??",
        "how do I bake a chocolate cake  for ten people",
        "What is the tallest mountain in Africa?",
        "",
    ]
    groups = prompt_groups([*prompts, prompts[3]])
    assert groups[0] == groups[1] == groups[2] != groups[3]
    assert groups[3] == groups[5] != groups[4]
    rows = [row for i in range(40) for row in (f"{WORDS[i % 14]} number {i * 7919}",) * 3]
    groups = prompt_groups(rows)
    test = hold_out(groups, 0.25)
    assert not set(groups[test]) & set(groups[~test])
    assert 0.1 < test.mean() < 0.4
    unsafe = np.arange(len(rows)) % 2 == 0
    for train, left in folds_of(unsafe, groups):
        assert not set(groups[train]) & set(groups[left])


# --- metrics --------------------------------------------------------------------------------------


def test_metrics_of_a_case_worked_by_hand():
    positive = np.array([True] * 4 + [False] * 4)
    risk = np.array([0.9, 0.8, 0.7, 0.2, 0.6, 0.3, 0.1, 0.1])
    metrics = binary_metrics(risk, positive, np.arange(8))
    assert metrics.auroc == pytest.approx(14 / 16)
    assert metrics.interval[0] <= metrics.auroc <= metrics.interval[1]
    assert metrics.tpr_at_fpr == {"0.01": None, "0.001": None}  # four negatives cannot tell
    assert tpr_at(risk, positive, 0.0) == 0.75
    assert tpr_at(risk, positive, 0.5) == 1.0
    assert threshold_at(risk[4:], 0.0) > 0.6


def test_threshold_never_exceeds_its_rate():
    rng = np.random.default_rng(0)
    for _ in range(50):
        negatives = rng.choice(np.linspace(0, 1, 7), size=rng.integers(1, 300))
        for rate in (0.0, 0.01, 0.1):
            assert (negatives >= threshold_at(negatives, rate)).mean() <= rate


def test_at_the_prompt_labels_speak_of_the_prompt(caplog):
    """An exchange's label says what was answered; a refusal says nothing about what was asked."""

    def row(prompt, label):
        return LabelledExchange(prompt, "x", label == "unsafe_compliance", label, "s")

    rows = [
        row("bad", "safe_refusal"),
        row("bad", "unsafe_compliance"),
        row("bad", "safe_compliance"),
        row("good", "safe_compliance"),
        row("unknown", "safe_refusal"),
    ]
    kept = rows_at(rows, "prompt")
    assert [(each.prompt, each.unsafe) for each in kept] == [("bad", True)] * 3 + [("good", False)]
    assert "1 rows are left out" in caplog.text
    assert rows_at(rows, "answer") == rows


def test_a_byte_order_mark_is_no_error(tmp_path):
    file = tmp_path / "rows.jsonl"
    text = '{"prompt": "a", "response": "b", "label": 0}\n' * 2
    file.write_text(text, encoding="utf-8-sig")
    assert len(read_labelled(file)) == 2


def test_intervals_count_prompts_not_rows():
    """A hundred copies of ten prompts tell no more than ten prompts do."""
    rng = np.random.default_rng(1)
    positive = np.repeat([True, False], 10)
    risk = rng.random(20) + 0.3 * positive
    few = binary_metrics(risk, positive, np.arange(20)).interval
    many = binary_metrics(
        np.repeat(risk, 100), np.repeat(positive, 100), np.repeat(np.arange(20), 100)
    )
    assert many.n == 2000
    assert many.n_prompts == 20
    assert many.interval == pytest.approx(few, abs=0.02)


# --- fitting --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", FITTERS)
def test_noise_scores_as_noise(kind):
    """With ten times as many features as rows, and every row four times."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    features = np.repeat(rng.normal(size=(100, 1000)), 4, axis=0).astype(np.float32)
    unsafe = np.repeat(rng.random(100) < 0.5, 4)
    fit = fit_calibrated(features, unsafe, groups, FITTERS[kind])
    metrics = binary_metrics(fit.risk, unsafe, groups)
    assert metrics.interval[0] < 0.5 < metrics.interval[1] or metrics.auroc < 0.5


@pytest.mark.parametrize("kind", FITTERS)
def test_a_planted_direction_is_found_and_calibrated(kind):
    rng = np.random.default_rng(0)
    unsafe = rng.random(600) < 0.3
    features = rng.normal(size=(600, 50)).astype(np.float32) * np.linspace(1, 30, 50)
    features[:, 7] += 12 * unsafe
    fit = fit_calibrated(features, unsafe, np.arange(600), FITTERS[kind])
    metrics = binary_metrics(fit.risk, unsafe, np.arange(600))
    assert metrics.auroc > 0.9
    assert metrics.calibration_error < 0.1
    served = 1 / (1 + np.exp(-(features @ fit.readout.weight + fit.readout.bias)))
    assert np.corrcoef(served, fit.risk)[0, 1] > 0.9
    assert abs(served.mean() - unsafe.mean()) < 0.1


def test_leaving_a_source_out_tells_style_from_substance():
    """One source's harm shows in its style alone: fits without it must do no better than chance."""
    rng = np.random.default_rng(0)
    n = 300
    features = rng.normal(size=(n, 20)).astype(np.float32)
    sources = np.array(["shouting"] * 100 + ["questions"] * 100 + ["twins"] * 100)
    unsafe = np.arange(n) % 2 == 0
    features[:200, 0] += 4 * unsafe[:200]  # a style that twins of the same form do not have
    scores = leave_one_source_out(features, unsafe, np.arange(n), sources, FITTERS["logistic"])
    own = sources == "twins"
    metrics = binary_metrics(scores["twins"][own], unsafe[own], np.arange(100))
    assert metrics.interval[0] < 0.55
    easy = sources == "questions"
    assert binary_metrics(scores["questions"][easy], unsafe[easy], np.arange(100)).auroc > 0.9


@pytest.fixture(scope="module")
def trained_heads(tiny):
    """Both heads of a kind, trained once."""

    @cache
    def train(kind):
        layers = (3,) if kind == "attention" else (1, 3)
        return {
            place: train_head(tiny(), exchanges(), place, kind=kind, layers=layers)
            for place in ("prompt", "answer")
        }

    return train


@pytest.mark.usefixtures("few_resamples")
@pytest.mark.parametrize("kind", ["logistic", "means", "attention"])
@pytest.mark.parametrize("at", ["prompt", "answer"])
def test_a_head_serves_what_it_was_trained_on(tiny, trained_heads, kind, at):
    """Risks in one batch and of a finished exchange come from one computation."""
    model = tiny()
    rows = exchanges()
    heads = trained_heads(kind)
    trained = heads[at]
    assert trained.record.metrics.auroc > 0.9
    assert trained.head.pause <= trained.head.block
    record = probe_record(model, "a", heads)
    folder = store_probe(record, {place: each.head for place, each in heads.items()})
    probe = load_probe(folder)
    result = evaluate_probe(probe, model, rows, at)
    assert result.metrics.auroc > 0.9
    frame = result.to_dataframe().set_index("source")
    assert dict(frame["n"]) == {name: row["n"] for name, row in result.by_source.items()}
    assert list(result.figure().data[0].x) == list(frame["auroc"])
    assert "TPR at 1.0% FPR" in result._repr_html_()
    guard = Guard(model, probe)
    head = probe.head(at)
    risks = span_risks(read_spans(model, rows[:6], at, head.layers), [head], np.zeros(6, dtype=int))
    for row, risk, most in zip(rows[:6], risks.final, risks.highest, strict=True):
        assert guard.score(row.prompt, row.response)[at] == pytest.approx(risk, abs=5e-3)
        assert most >= risk


def test_thresholds_hold_for_every_token_of_a_stream(tiny):
    """A probe trained on few easy rows must not block the harmless ones when they are streamed."""
    model, rows = tiny(), exchanges()
    trained = train_head(model, rows, "answer", layers=(1, 3))
    safe = [row for row in rows if not row.unsafe]
    spans = read_spans(model, safe, "answer", trained.head.layers)
    risks = span_risks(spans, [trained.head], np.zeros(len(safe), dtype=int))
    assert trained.head.block >= LEAST_BLOCK
    assert trained.head.pause >= LEAST_PAUSE
    assert (risks.highest >= trained.head.block).mean() <= 0.1
    assert trained.record.block_interval[1] > 0


def test_threshold_rates_come_from_rows_that_chose_nothing():
    """Noise: thresholds taken from other rows are exceeded about as often as they allow."""
    rng = np.random.default_rng(0)
    highest = 0.5 + rng.random(20_000) / 2
    unsafe = np.zeros(20_000, dtype=bool)
    fold = np.arange(20_000) % 5
    paused, blocked = reached_thresholds(highest, unsafe, fold)
    assert 0.001 < blocked.mean() < 0.006
    assert 0.04 < paused.mean() < 0.06
    few = np.full(10, 0.6)
    few[0] = 0.95  # a row cannot raise the threshold that it is held against
    assert reached_thresholds(few, unsafe[:10], np.arange(10) % 5)[1][0]


def test_no_row_has_a_part_in_its_own_score():
    """What labels of a fold are turned over, its rows' risks stay as they were."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 5)).astype(np.float32)
    unsafe = np.arange(80) % 2 == 0
    folds = [(np.flatnonzero(np.arange(80) % 4 != k), np.arange(k, 80, 4)) for k in range(4)]
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(fitting_module, "folds_of", lambda _unsafe, _groups: folds)
    with monkeypatch.context():
        first = fit_calibrated(features, unsafe, np.arange(80), FITTERS["means"])
        turned = unsafe.copy()
        turned[folds[0][1][0]] = not turned[folds[0][1][0]]
        again = fit_calibrated(features, turned, np.arange(80), FITTERS["means"])
    monkeypatch.undo()
    readout = again.folds[0]
    assert readout.weight / readout.weight[0] == pytest.approx(
        first.folds[0].weight / first.folds[0].weight[0]
    )
    assert not np.allclose(again.folds[1].weight, first.folds[1].weight)
    for k, each in enumerate(first.folds):
        rows = first.fold == k
        risk = 1 / (1 + np.exp(-(features[rows] @ each.weight + each.bias)))
        assert risk == pytest.approx(first.risk[rows], abs=1e-6)


def test_features_are_kept_and_read_again(tiny, monkeypatch):
    model, rows = tiny(), exchanges(12)
    first = pooled_features(model, rows, "answer")
    monkeypatch.setattr(features_module, "read_activations", None)  # a second pass would fail
    again = pooled_features(model, rows, "answer")
    assert torch.equal(first.values, again.values)
    assert np.array_equal(first.row, again.row)
    part = pooled_features(model, rows, "answer", layers=[3, 1])
    assert torch.equal(part.values, first.values[:, [3, 1]])
    kept = next((features_module.cache_dir() / "features").glob("*.safetensors"))
    kept.write_bytes(kept.read_bytes()[:-100])  # a disk that was full
    with pytest.raises(TypeError):
        pooled_features(model, rows, "answer")


def test_features_that_cannot_be_kept_are_read_again(tiny, tmp_path):
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "features").write_text("in the way")
    assert len(pooled_features(tiny(), exchanges(4), "prompt").row) == 4


def test_features_do_not_depend_on_the_batch(tiny):
    model, rows = tiny(), exchanges(12)
    whole = pooled_features(model, rows, "answer", use_cache=False)
    for i in (0, 5, 11):
        alone = pooled_features(model, [rows[i]], "answer", use_cache=False)
        assert torch.allclose(alone.values.float(), whole.values[whole.row == i].float(), atol=2e-3)


@pytest.mark.usefixtures("few_resamples")
def test_sweep_scores_every_block(tiny):
    sweep = sweep_layers(tiny(), exchanges(), "prompt")
    scores = sweep.layers
    assert [each.layer for each in scores] == list(range(5))
    assert all(0 <= each.metrics.auroc <= 1 for each in scores)
    values = [each.metrics.auroc for each in scores]
    assert list(sweep.to_dataframe()["auroc"]) == list(sweep.figure().data[0].y) == values
    assert sweep.best.metrics.auroc == max(values)
    assert sweep.to_dict()["schema"] == "modelassay.probe-sweep/1"


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny, tmp_path):
    probe = probe_for(tiny())
    folder = tmp_path / "a-probe"
    folder.mkdir()
    save_probe(probe.record, probe.heads, folder)
    return folder


def test_round_trip(saved, tiny):
    probe = load_probe(saved)
    original = probe_for(tiny())
    for at in ("prompt", "answer"):
        assert torch.equal(probe.heads[at].weight, original.heads[at].weight)
    probe.check_belongs_to(tiny())
    assert {file.name for file in saved.iterdir()} == {RECORD_FILE, WEIGHTS_FILE}


def test_another_model_is_refused_with_the_reason(saved, tiny):
    probe = load_probe(saved)
    with pytest.raises(InputError, match="weights differ"):
        probe.check_belongs_to(tiny(seed=1))
    with pytest.raises(InputError, match="layers of hidden size"):
        probe.check_belongs_to(
            replace(tiny(), info=tiny().info.model_copy(update={"hidden_size": 64}))
        )
    with pytest.raises(InputError, match="weights differ"):
        evaluate_probe(probe, tiny(seed=1), exchanges(), "prompt")


def edit(folder, change):
    values = json.loads((folder / RECORD_FILE).read_text())
    change(values)
    (folder / RECORD_FILE).write_text(json.dumps(values))


def put_weights(folder, arrays):
    from safetensors.torch import save_file

    from modelassay.models.identity import hash_file

    save_file(arrays, folder / WEIGHTS_FILE)
    edit(folder, lambda v: v.update(weights_sha256=hash_file(folder / WEIGHTS_FILE)))


def two_heads(of_prompt):
    return {"prompt.weight": of_prompt, "answer.weight": torch.zeros(2, 2, 32)}


HOSTILE = {
    "thresholds out of order": lambda f: edit(f, lambda v: v["heads"]["answer"].update(pause=0.95)),
    "threshold above one": lambda f: edit(f, lambda v: v["heads"]["answer"].update(block=1.5)),
    "layer out of range": lambda f: edit(f, lambda v: v["heads"]["answer"].update(layers=[1, 9])),
    "pooling twice": lambda f: edit(
        f, lambda v: v["heads"]["answer"].update(poolings=["mean", "mean"])
    ),
    "layer twice": lambda f: edit(f, lambda v: v["heads"]["answer"].update(layers=[1, 1])),
    "not a number": lambda f: edit(f, lambda v: v["heads"]["prompt"].update(bias=float("nan"))),
    "huge bias": lambda f: edit(f, lambda v: v["heads"]["prompt"].update(bias=1e300)),
    "no heads": lambda f: edit(f, lambda v: v.update(heads={})),
    "another schema": lambda f: edit(f, lambda v: v.update(schema="modelassay.probe/9")),
    "a name with a path": lambda f: edit(f, lambda v: v.update(name="../../x")),
    "a name with an escape": lambda f: edit(f, lambda v: v["model"].update(id="a\x1b[2Jb")),
    "no JSON": lambda f: (f / RECORD_FILE).write_text("{"),
    "a huge record": lambda f: (f / RECORD_FILE).write_text(" " * 600_000),
    "no weights": lambda f: (f / WEIGHTS_FILE).unlink(),
    "other weights": lambda f: (f / WEIGHTS_FILE).write_bytes(b"x" * 100),
    "wrong shape": lambda f: put_weights(f, two_heads(torch.zeros(2, 2, 31))),
    "wrong dtype": lambda f: put_weights(f, two_heads(torch.zeros(2, 2, 32).half())),
    "weights that are not numbers": lambda f: put_weights(
        f, two_heads(torch.full((2, 2, 32), torch.nan))
    ),
    "a head without weights": lambda f: put_weights(f, {"prompt.weight": torch.zeros(2, 2, 32)}),
}  # fmt: skip


@pytest.mark.parametrize("how", HOSTILE)
def test_hostile_probes_are_refused_in_one_line(saved, how):
    HOSTILE[how](saved)
    with pytest.raises(InputError) as caught:
        load_probe(saved)
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_a_pickle_with_the_right_name_is_not_run(saved, tmp_path):
    proof = tmp_path / "proof"
    code = b"cos\nsystem\n(S'touch " + str(proof).encode() + b"'\ntR."
    (saved / WEIGHTS_FILE).write_bytes(code)
    from modelassay.models.identity import hash_file

    edit(saved, lambda v: v.update(weights_sha256=hash_file(saved / WEIGHTS_FILE)))
    with pytest.raises(InputError, match="safetensors"):
        load_probe(saved)
    assert not proof.exists()


def test_the_store_replaces_only_probes(tiny, tmp_path):
    probe = probe_for(tiny())
    store_probe(probe.record, probe.heads)
    assert probe_of(tiny())[1].source == "local"
    assert probe_of(tiny(seed=1)) is None
    with pytest.raises(InputError, match="--force"):
        store_probe(probe.record, probe.heads)
    store_probe(probe.record, probe.heads, force=True)
    other = tmp_path / "mine"
    other.mkdir()
    (other / "thesis.txt").write_text("years of work")
    (tmp_path / "store" / "a-probe").rename(tmp_path / "store" / "renamed")
    assert probe_of(tiny()) is None
    with pytest.raises(InputError, match="No probe"):
        find_probe(str(tiny().info.id).replace("/", "-"))
    with pytest.raises(InputError, match="not a probe"):
        store_probe(probe.record, probe.heads, out=other, force=True)
    assert (other / "thesis.txt").exists()


def test_push_and_pull(hub, tiny, tmp_path):
    hub.add_writer("hf_mine", "alice")
    hub.add_writer("hf_stranger", "mallory")
    probe = probe_for(tiny())
    pushed = push_probe(probe, "alice/probes", token="hf_mine")
    found, origin = find_probe(f"alice/probes@{pushed.commit}")
    assert torch.equal(found.heads["answer"].weight, probe.heads["answer"].weight)
    assert str(origin) == f"alice/probes:a-probe@{pushed.commit} by alice"
    proposed = push_probe(probe, "alice/probes", create_pr=True, token="hf_stranger")
    assert proposed.pull_request
    program = "import datasets; print(datasets.load_dataset('alice/probes')['train'].to_list())"
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HUB_OFFLINE": "0",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert {row["at"] for row in literal_eval(done.stdout)} == {"prompt", "answer"}
    card = hub.repos["datasets", "alice/probes"].commits[pushed.commit]["README.md"].decode()
    assert "modelassay-probe" in card
    with pytest.raises(AssayError, match="no probe"):
        find_probe("alice/probes:none")


# --- command line ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("few_resamples")
def test_train_eval_info_list_sweep(tiny_folder, tmp_path, capfd):
    model, data = str(tiny_folder()), write(tmp_path / "rows.jsonl", exchanges())
    args = ["probe", "train", model, "--data", data, "--name", "mine", "--layers", "1,3", "-q"]
    assert run(args) == 0
    out = capfd.readouterr().out
    assert "AUROC" in out
    assert out.strip().endswith("mine")
    assert run([*args]) == EXIT_BAD_INPUT
    assert "--force" in one_line(capfd.readouterr().err)
    for at in ("prompt", "answer"):
        assert (
            run(
                [
                    "probe",
                    "eval",
                    "mine",
                    "--model",
                    model,
                    "--data",
                    data,
                    "--at",
                    at,
                    "--json",
                    "-q",
                ]
            )
            == 0
        )
        values = json.loads(capfd.readouterr().out)
        assert values["auroc"] > 0.9
        assert values["n"] == 60
        assert set(values) >= {
            "interval",
            "tpr_at_fpr",
            "calibration_error",
            "by_source",
            "block_rate",
        }
    assert run(["probe", "eval", model, "--data", data, "-q"]) == 0
    assert "AUROC" in capfd.readouterr().out
    assert run(["probe", "info", "mine", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["heads"]["prompt"]["layers"] == [1, 3]
    assert run(["probe", "info", "mine"]) == 0
    lines = capfd.readouterr().out.splitlines()
    first = next(i for i, line in enumerate(lines) if "ranks worst" in line)
    listed = [line for line in lines[first + 1 :] if line.startswith("  without ")][:3]
    scores = [float(line.split("AUROC ")[1].split()[0]) for line in listed]
    assert len(scores) > 1
    assert scores == sorted(scores)
    assert run(["probe", "list"]) == 0
    assert "mine (local)" in capfd.readouterr().out
    page = tmp_path / "sweep.html"
    assert run(["probe", "sweep", model, "--data", data, "--html", str(page), "-q"]) == 0
    assert "layer" in capfd.readouterr().out
    assert "plotly" in page.read_text()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["train", "{model}"], "--data"),
        (["train", "{model}", "--data", "{bad}"], "Row 2"),
        (["train", "{model}", "--data", "{safe}"], "unsafe"),
        (["train", "{model}", "--data", "{few}"], "distinct prompts"),
        (["train", "{model}", "--data", "{good}", "--layers", "1,99"], "0…4"),
        (["train", "{model}", "--data", "{good}", "--layers", "x"], "--layers"),
        (["train", "{model}", "--data", "{good}", "--kind", "magic"], "kind"),
        (["train", "{model}", "--data", "{good}", "--at", "end"], "--at"),
        (["train", "{model}", "--data", "{good}", "--kind", "attention", "--layers", "1,3"], "one"),
        (["train", "{model}", "--data", "/nowhere.jsonl"], "nowhere"),
        (["train", "{model}", "--folder", "/nowhere"], "nowhere"),
        (["eval", "{model}", "--data", "{good}"], "no probe"),
        (["eval", "nothing/such:probe", "--data", "{good}"], "nothing/such"),
        (["eval", "{model}"], "--data"),
        (["info", "unknown"], "No probe"),
        (["info", "/etc"], "holds no probe"),
        (["pull", "not a reference"], "Hub data set"),
        (["sweep", "{model}"], "--data"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing(tiny_folder, tmp_path, capfd, args, words):
    rows = exchanges()
    places = {
        "model": str(tiny_folder()),
        "good": write(tmp_path / "good.jsonl", rows),
        "safe": write(tmp_path / "safe.jsonl", [replace(row, unsafe=False) for row in rows]),
        "few": write(tmp_path / "few.jsonl", rows[:6]),
    }
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f"{GOOD}\n" + '{"prompt": "a"}\n')
    places["bad"] = str(bad)
    code = run(["probe", *(arg.format(**places) for arg in args)])
    assert code in (EXIT_BAD_INPUT, EXIT_UNAVAILABLE)
    assert words in capfd.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "store").exists()


# What is shipped


def test_advice_teaches_the_prompt_head_only_and_scores_nothing():
    rows = list(advice_prompts())
    texts = [text for text, _, _ in rows]
    assert len(set(texts)) == len(texts)
    assert not set(texts) & {text for text, _, _ in project_prompts()}
    assert [text for text in texts if scores_a_model(text)] == []
    alone = load_prompts(registry.shipped_folder() / "advice.yaml").texts
    pairs = load_concepts(registry.shipped_folder() / "advice_pairs.yaml")["advice"].pairs
    assert len(rows) == len(alone) + 2 * len(pairs)
    assert {text for text, unsafe, _ in rows if unsafe} == {pair.positive for pair in pairs}


@pytest.mark.parametrize("name", ["embedded", "organism-safe"])
def test_the_shipped_prompt_head_keeps_its_marks(name):
    head = load_probe(PROBES.shipped_folder() / name).record.heads["prompt"]
    assert head.metrics.auroc >= 0.97
    assert head.block_interval[1] <= 0.01
    borderline = (
        "own borderline requests",
        "own look-alikes",
        "own advice",
        "CoCoNot, harmless look-alikes",
        "forbidden questions, advice",
    )
    for source in borderline:
        assert head.left_out[source].auroc >= 0.9, source


def test_shipped_probes_have_the_same_heads():
    probes = [load_probe(PROBES.shipped_folder() / name) for name in ("embedded", "organism-safe")]
    assert probes[0].record.heads == probes[1].record.heads
    assert probes[0].record.weights_sha256 == probes[1].record.weights_sha256
