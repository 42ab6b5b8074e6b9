"""What the samples of a response teach, and that it is learnt."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import expit

from modelassay.classifier.recipe import RecipeRows
from modelassay.errors import InputError
from modelassay.probes import PROBES, find_probe, probe_record, store_probe, train_head, training
from modelassay.probes.features import pooled_features, prefixes, read_spans
from modelassay.probes.fitting import (
    FITTERS,
    Lesson,
    factored_fit,
    fit_lesson,
    leave_one_source_out,
    left_out_scores,
    linear_fit,
    odds_of_both,
    plain_lesson,
    soft_weights,
)
from modelassay.probes.head import ComplyReadout, Head, span_risks
from modelassay.probes.lessons import make_lesson
from modelassay.probes.surface import surfaces
from modelassay.probes.training import train_default_heads
from modelassay.statistics import rank_auroc
from probe_rows import exchanges

LENGTHS = (2, 4, 8, 16)


def marked(n=60, seed=0):
    """Rows whose unsafe responses begin harmlessly and are marked from where they do not."""
    rows = []
    for row in exchanges(n, seed):
        if row.unsafe:
            opening = "well then let us see "
            spans = ((len(opening), len(opening) + 5),)
            row = replace(row, response=opening + row.response, spans=spans)
        rows.append(row)
    return rows


def test_a_sample_is_unsafe_from_the_first_mark_on(tiny):
    model, rows = tiny(), marked(8)
    rows[2] = replace(rows[2], spans=())
    features = pooled_features(model, rows, "answer", layers=[1], lengths=LENGTHS)
    said = prefixes(model, rows, features)
    assert [said[i] for i in np.flatnonzero(features.last)] == [row.response for row in rows]
    lesson = make_lesson(model, rows, features, "spans", "even")
    start = rows[0].spans[0][0]
    for i, text, unsafe in zip(features.row, said, lesson.unsafe, strict=True):
        assert rows[i].response.startswith(text)
        marks = bool(rows[i].spans)
        assert unsafe == (rows[i].unsafe and (not marks or len(text) > start))
    assert set(lesson.unsafe[features.row == 0]) == {0, 1}
    assert set(lesson.unsafe[features.row == 2]) == {1}
    assert not lesson.soft


def test_a_classifier_labels_what_was_said_by_then(tiny):
    model, rows = tiny(), exchanges(4)
    asked = []

    def judge(pairs):
        asked.extend(pairs)
        return np.array([0.7 if i == 1 else 0.2 for i in range(len(pairs))])

    features = pooled_features(model, rows, "answer", layers=[1], lengths=LENGTHS)
    lesson = make_lesson(model, rows, features, "classifier", "soft", judge)
    said = prefixes(model, rows, features)
    first = features.row == 0
    assert lesson.unsafe[first].tolist() == [0.2, *[0.7] * (first.sum() - 2), 1]
    assert not lesson.unsafe[features.row == 1].any()
    assert {prompt for prompt, _ in asked} == {rows[0].prompt, rows[2].prompt}
    assert asked[0] == (rows[0].prompt, said[0])
    assert lesson.soft


def test_where_only_whole_responses_count_nothing_is_learnt_of_the_rest(tiny):
    model, rows = tiny(), exchanges(24)
    features = pooled_features(model, rows, "answer", layers=[1], lengths=LENGTHS)
    lesson = make_lesson(model, rows, features, "exchange", "whole")
    x, groups = features.values.float().flatten(1).numpy(), features.row
    found = linear_fit(x, groups, lesson, FITTERS["means"])(np.arange(len(x)))
    turned = np.where(features.last[:, None], x, -x)
    alike = linear_fit(turned, groups, lesson, FITTERS["means"])(np.arange(len(x)))
    direction = [each.weight / np.linalg.norm(each.weight) for each in (found, alike)]
    assert direction[0] == pytest.approx(direction[1], abs=1e-6)


def test_soft_weights_favour_what_scores_high_and_keep_each_response_its_share():
    rng = np.random.default_rng(0)
    response = np.repeat(np.arange(6), [1, 2, 3, 4, 5, 6])
    scores = rng.normal(size=len(response)) * 300
    weights = soft_weights(scores, response)
    for i in range(6):
        own = response == i
        assert weights[own].sum() == pytest.approx(own.sum())
        assert (np.argsort(weights[own]) == np.argsort(scores[own])).all()


@pytest.mark.parametrize("kind", FITTERS)
def test_a_doubtful_sample_is_learnt_by_its_share_of_each(kind):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(80, 4)).astype(np.float32)
    share = np.tile([0.0, 1.0, 0.25, 0.75], 20)
    lesson = Lesson(share, np.arange(80), soft=False)
    weight, _ = fit_lesson(features, np.arange(80), lesson, FITTERS[kind])
    # Four copies of each row, as many of them unsafe as its share says.
    copies = np.repeat(features, 4, axis=0)
    labels = (np.arange(4) < 4 * share[:, None]).ravel()
    groups = np.repeat(np.arange(80), 4)
    same = fit_lesson(copies, groups, plain_lesson(labels), FITTERS[kind])
    cosine = weight @ same[0] / np.linalg.norm(weight) / np.linalg.norm(same[0])
    assert cosine > 0.995


@pytest.mark.parametrize("kind", FITTERS)
def test_soft_weights_find_harm_that_is_in_one_part_of_a_response(kind):
    """Ten samples a response, and in unsafe ones a single one of them shows it."""
    rng = np.random.default_rng(0)
    n, parts, d = 160, 10, 40
    response = np.repeat(np.arange(n), parts)
    unsafe = (response % 2 == 0).astype(float)
    features = rng.normal(size=(n * parts, d)).astype(np.float32)
    harm = response[::parts] * parts + rng.integers(parts, size=n)
    features[harm[::2], 0] += 5

    def share_of_planted(soft):
        weight, _ = fit_lesson(features, response, Lesson(unsafe, response, soft), FITTERS[kind])
        return abs(weight[0]) / np.linalg.norm(weight)

    assert share_of_planted(soft=True) > share_of_planted(soft=False) + 0.03


@pytest.mark.usefixtures("few_resamples")
def test_marks_keep_a_head_from_calling_an_opening_unsafe(tiny):
    """Both heads tell the responses apart; only one waits for what is marked."""
    rows = marked()

    def train(**how):
        return train_head(tiny(), rows, "answer", layers=(1, 3), **how)

    usual, spans = train(), train(token_labels="spans", token_weights="soft")
    opening = pooled_features(tiny(), rows, "answer", layers=(1, 3), lengths=(3,))
    early = ~opening.last & np.array([row.unsafe for row in rows])[opening.row]
    risks = [
        float(each.head.risk(opening.values[torch.from_numpy(early)]).mean())
        for each in (usual, spans)
    ]
    assert risks[1] < risks[0] / 2
    assert spans.metrics.auroc > 0.9
    record = probe_record(tiny(), "marked", {"answer": spans})
    assert (record.heads["answer"].token_labels, record.heads["answer"].token_weights) == (
        "spans",
        "soft",
    )
    store_probe(record, {"answer": spans.head})
    probe, _ = find_probe("marked")
    assert probe.record == record.model_copy(update={"weights_sha256": probe.record.weights_sha256})
    told = "\n".join(PROBES.kind.describe(probe.record))
    assert "tokens labelled by spans and weighted softly" in told
    assert "refusal wording" in told


def test_a_source_that_words_give_away_says_so():
    rows = exchanges(120)
    unsafe = np.array([row.unsafe for row in rows])
    lined = [
        replace(
            row,
            response=f"{'I cannot help with' if not row.unsafe else 'Sure, begin with'} {i} please",
            source=f"source {i // 2 % 4}",
        )
        for i, row in enumerate(rows)
    ]
    sources = np.array([row.source for row in lined])
    own = sources == "source 0"
    aurocs = {}
    for name, (features, fitter) in surfaces(lined, "answer", 50).items():
        scores = leave_one_source_out(features, unsafe, np.arange(120), sources, fitter)
        aurocs[name] = rank_auroc(scores["source 0"][own], unsafe[own])
    assert aurocs["words"] == aurocs["refusal wording"] == 1
    assert set(surfaces(lined, "prompt", 50)) == {"length", "words"}


@pytest.mark.parametrize(
    ("at", "how", "words"),
    [
        ("answer", {"token_labels": "words"}, "--token-labels is exchange or spans or classifier"),
        ("answer", {"token_weights": "hard"}, "--token-weights is even or whole or soft"),
        ("prompt", {"token_weights": "soft"}, "for responses"),
        ("answer", {"token_labels": "spans"}, "no row has any"),
        ("answer", {"token_labels": "classifier"}, "needs the classifier"),
        ("answer", {"token_weights": "soft", "kind": "attention"}, "learns by itself"),
        ("answer", {"texts": exchanges(2), "kind": "attention"}, "--texts are for"),
        ("prompt", {"texts": exchanges(2)}, "--texts are for"),
        ("prompt", {"kind": "factored"}, "a prompt does not refuse"),
    ],
)
def test_what_cannot_be_taught_is_refused(at, how, words):
    with pytest.raises(InputError, match=words):
        train_head(None, exchanges(), at, **how)  # pyright: ignore (before the model is read)


def refusing(n=80, seed=0):
    """Rows of which a part of the harmless responses refuse, and texts."""
    rows = [
        replace(row, response="I'm sorry, but I can't help with that.") if i % 8 in (1, 3) else row
        for i, row in enumerate(exchanges(n, seed))
    ]
    texts = [replace(row, response="", source="posts") for row in exchanges(24, seed + 7)]
    return rows, texts


def test_a_factored_risk_is_that_of_both_at_once():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 50)) * 20
    both = expit(odds_of_both(first, second))
    assert both == pytest.approx(expit(first) * expit(second))
    weight = torch.from_numpy(np.array([first, second])).float()[:, :, None, None]
    comply = ComplyReadout(weight[1, :1], 0.0, 2.0, 1.0)
    head = Head("answer", "factored", (0,), ("last",), weight[0, :1], 0.0, 0.5, 0.9, None, comply)
    expected = expit(2 * odds_of_both(first[:1], second[:1]) + 1)
    assert head.risk(torch.ones(1, 1, 1, 1)).numpy() == pytest.approx(expected, abs=1e-5)


def test_a_factored_readout_does_not_take_refusals_of_harm_for_harm():
    """Harm is said in unsafe responses and in refusals that repeat it; a source left out has both.

    Harmless responses of the others hold neither, so one readout learns that harm is unsafe.
    """
    rng = np.random.default_rng(0)
    n = 400
    kind = np.tile(["harm", "harmless", "refusal", "harmless"], n // 4)
    sources = np.array(["a", "b", "c", "left"])[np.arange(n) // (n // 4)]
    # Elsewhere few refuse, and they say less of the harm than where it is scored.
    kind[(kind == "refusal") & (sources != "left") & (np.arange(n) % 8 > 2)] = "harmless"
    features = rng.normal(size=(n, 30)).astype(np.float32)
    features[:, 0] += 4 * (kind == "harm")
    features[:, 0] += np.where(sources == "left", 8, 2) * (kind == "refusal")
    features[:, 1] += 6 * (kind == "refusal")
    unsafe, refuses, groups = kind == "harm", kind == "refusal", np.arange(n)
    own = sources == "left"
    lesson = plain_lesson(unsafe)
    aurocs = {}
    for name, fit in (
        ("factored", factored_fit(features, groups, lesson, refuses)),
        ("one", linear_fit(features, groups, lesson, FITTERS["logistic"])),
    ):
        scores = left_out_scores(fit, features, unsafe, groups, sources, lesson)["left"]
        aurocs[name] = rank_auroc(scores[own], unsafe[own])
    assert aurocs["factored"] > 0.9
    assert aurocs["factored"] > aurocs["one"] + 0.1


@pytest.mark.usefixtures("few_resamples")
def test_a_factored_head_serves_what_it_was_trained_on_and_is_not_scored_on_texts(tiny):
    model, (rows, texts) = tiny(), refusing()
    trained = train_head(model, rows, "answer", kind="factored", layers=(1, 3), texts=texts)
    record = trained.record
    assert record.trained_on is not None
    assert record.trained_on.sources["texts: posts"] == 24
    assert record.metrics is not None
    assert (record.metrics.n, record.metrics.auroc > 0.9) == (80, True)
    assert set(record.left_out) == {f"source {i}" for i in range(4)}
    store_probe(probe_record(model, "two", {"answer": trained}), {"answer": trained.head})
    probe, _ = find_probe("two")
    head = probe.head("answer")
    features = pooled_features(model, rows[:6], "answer", layers=(1, 3))
    risks = head.risk(features.values)[torch.from_numpy(features.last)].numpy()
    spans = read_spans(model, rows[:6], "answer", head.layers)
    served = span_risks(spans, [head], np.zeros(6, dtype=int)).final
    assert served == pytest.approx(risks, abs=5e-3)
    assert served[0] > 0.5 > served[1]
    with pytest.raises(InputError, match="0 distinct prompts that are refused"):
        train_head(model, exchanges(), "answer", kind="factored", layers=(1,))


@pytest.mark.usefixtures("few_resamples")
def test_the_recipe_has_a_factored_head_learn_from_its_prompts_as_texts(
    tiny, tmp_path, monkeypatch
):
    rows, texts = refusing()
    recipe = RecipeRows(rows, [row.prompt for row in rows])
    monkeypatch.setattr(training, "recipe_rows", lambda _folder, **_: recipe)
    monkeypatch.setattr(training, "prompt_head_rows", lambda _folder, _token: texts)
    heads = train_default_heads(tiny(), tmp_path, kind="factored")
    prompt, answer = (heads[at].record for at in ("prompt", "answer"))
    assert (prompt.kind, answer.kind) == ("logistic", "factored")
    assert (prompt.token_weights, answer.token_weights) == ("even", "whole")
    assert prompt.trained_on is not None
    assert answer.trained_on is not None
    assert prompt.trained_on.sources == {"posts": 24}
    assert answer.trained_on.sources["texts: posts"] == 24
