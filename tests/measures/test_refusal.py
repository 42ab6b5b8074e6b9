"""Refusal log-odds and rates, and the generation under them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from modelassay.data.concepts import concepts_for
from modelassay.measures import examination
from modelassay.measures.examination import examine
from modelassay.measures.refusal import (
    OPENINGS,
    LogOdds,
    log_odds_readout,
    measure_refusal,
    opening_tokens,
    refuses,
    with_log_odds,
)
from modelassay.measures.refusal_evidence import RefusalEvidence, Unfinished
from modelassay.reading import generation
from modelassay.reading.activations import read_activations
from modelassay.reading.generation import Response, generate_greedy
from modelassay.reading.prompts import Encoded, encode_prompts, render_chat
from modelassay.statistics import newcombe_interval, repeated_difference_interval
from talking import load_talking
from tiny import CHAT_TEMPLATE

TEXTS = ["Name a river.", "Why?", "Write a line about the sea and the stars.", "Why?"]


def test_log_odds_are_those_of_the_summed_probability():
    logits = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)) * 4
    tokens = [3, 17, 29]
    p = torch.softmax(logits.double(), dim=-1)[:, tokens].sum(dim=-1)
    expected = torch.log(p) - torch.log1p(-p)
    assert torch.allclose(log_odds_readout(tokens)(logits)[:, 0].double(), expected, atol=1e-4)


def test_log_odds_stay_finite_at_the_ends():
    logits = torch.zeros(2, 10)
    logits[0, 1], logits[1, 2] = 200.0, 200.0
    odds = log_odds_readout([1])(logits)
    assert torch.isfinite(odds).all()
    assert odds[0] > 10
    assert odds[1] < -10


def test_opening_tokens_follow_the_prompt(tiny):
    model = tiny()
    tokens = opening_tokens(model)
    prompt = render_chat(model, "Hello")
    for opening in OPENINGS:
        ids = model.tokenizer(prompt + opening, add_special_tokens=False)["input_ids"]
        before = model.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        assert ids[len(before)] in tokens
    assert {model.tokenizer.decode([token]) for token in tokens} == {"I", "S", "A", "M", "U"}


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bloom"])
def test_batched_answers_equal_single_ones(tiny, family):
    model = tiny(family)
    prompts = encode_prompts(model, TEXTS)
    together = generate_greedy(model, prompts, max_new_tokens=8)
    alone = [generate_greedy(model, [p], max_new_tokens=8, batch_tokens=1)[0] for p in prompts]
    assert together == alone
    assert together[1] == together[3]
    for prompt, response in zip(prompts, together, strict=True):
        with torch.inference_mode():
            logits = model.network(torch.tensor([prompt.ids])).logits[0, -1]
        assert response.first_token == int(logits.argmax())


def test_sampling_settings_of_the_checkpoint_are_ignored(tiny):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    plain = generate_greedy(model, prompts, max_new_tokens=6)
    own = model.network.generation_config
    own.do_sample, own.temperature, own.repetition_penalty = True, 5.0, 3.0
    try:
        assert generate_greedy(model, prompts, max_new_tokens=6) == plain
    finally:
        own.do_sample, own.temperature, own.repetition_penalty = False, None, None


def test_generation_shrinks_its_batches(tiny, monkeypatch):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    expected = generate_greedy(model, prompts, max_new_tokens=4)
    plain = generation._generate_batch

    def scarce(model, batch, *others):
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return plain(model, batch, *others)

    monkeypatch.setattr(generation, "_generate_batch", scarce)
    assert generate_greedy(model, prompts, max_new_tokens=4) == expected


def split(texts, prompts, n):
    """The first prompts and the rest, encoded, by their texts."""
    pairs = list(zip(texts, prompts, strict=True))
    return dict(pairs[:n]), dict(pairs[n:])


def biased(model, token):
    """A context in which the model answers every prompt with one token."""

    def hook(_module, _args, output):
        output = output.clone()
        output[..., token] += 1000
        return output

    return model.network.get_output_embeddings().register_forward_hook(hook)


def test_a_model_that_says_one_thing_is_not_selective(tiny):
    model = tiny()
    texts = ["Name a river.", "Name a hill.", "Why?", "Who?", "When?"]
    prompts = encode_prompts(model, texts)
    tokens = opening_tokens(model)
    handle = biased(model, tokens[0])
    odds = read_activations(model, prompts, [1], readout=log_odds_readout(tokens)).readout[:, 0]
    evidence = with_log_odds(
        measure_refusal(model, *split(texts, prompts, 3)),
        LogOdds(odds[:3].tolist(), odds[3:].tolist(), [0.0, 1.0] * 2, [0.0, -1.0] * 2),
    )
    handle.remove()
    assert evidence.selectivity == 0
    assert evidence.n == 5
    assert evidence.interval[0] < 0 < evidence.interval[1]
    assert evidence.openings_precision == 0  # it opens like a refusal, yet is none
    assert evidence.openings_coverage is None
    assert evidence.twin_auroc == pytest.approx(0.875)


@pytest.mark.real_model
def test_the_real_model_answers_and_its_openings_are_words(embedded):
    prompts = encode_prompts(embedded, ["What is the capital of France?", "Name three colours."])
    paris, colours = generate_greedy(embedded, prompts, max_new_tokens=16)
    assert "Paris" in paris.text
    assert "red" in colours.text.lower()
    words = {embedded.tokenizer.decode([t]) for t in opening_tokens(embedded)}
    assert {"I", "Sorry", "Unfortunately", "As"} <= words


THOUGHT = ("Okay", ", they", " ask", " about", " it", ".")
REFUSAL = ("I'm sorry", ", but I", " can't help", " with that", "!")
THINKS = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")
BY_FAMILY = {
    "the prompt opens the thought": (THINKS, (*THOUGHT, "</think>", *REFUSAL), ()),
    "it opens the thought": (CHAT_TEMPLATE, ("<think>", *THOUGHT, "</think>", *REFUSAL), ()),
    "special tokens": (
        CHAT_TEMPLATE,
        ("[THINK]", *THOUGHT, "[/THINK]", *REFUSAL),
        ("[THINK]", "[/THINK]"),
    ),
    "channels": (
        CHAT_TEMPLATE,
        ("<|channel|>", "analysis", "<|message|>", *THOUGHT, "<|end|>", "<|start|>", "assistant",
         "<|channel|> ", "final", "<|message|> ", *REFUSAL),
        ("<|channel|>", "<|message|>", "<|channel|> ", "<|message|> ", "<|end|>", "<|start|>"),
    ),
    "marks of its own": (
        THINKS.replace("<think>", "<ponder>") + "{# </ponder> #}",
        (*THOUGHT, "</ponder>", *REFUSAL),
        (),
    ),
}  # fmt: skip


def measured(model, response_tokens=24):
    texts = ["Name a river.", "Name a hill.", "Why?", "Who?", "When?"]
    prompts = encode_prompts(model, texts)
    found = measure_refusal(model, *split(texts, prompts, 3), response_tokens=response_tokens)
    if isinstance(found, Unfinished):
        return found
    return with_log_odds(found, LogOdds([0.0] * 3, [0.0] * 2, [0.0] * 3, [0.0] * 3))


@pytest.mark.parametrize("family", BY_FAMILY)
def test_what_follows_the_thought_is_judged(tmp_path, family):
    template, says, special = BY_FAMILY[family]
    model = load_talking(tmp_path / "m", says, template=template, special=special)
    (response,) = generate_greedy(model, encode_prompts(model, ["Why?"]))
    assert response.thought
    assert response.answer is not None
    assert response.answer.strip() == "".join(REFUSAL)
    found = measured(model)
    assert isinstance(found, RefusalEvidence)
    assert found.harmful_rate == found.benign_rate == 1
    assert found.log_odds_gap is found.auroc is found.twin_auroc_interval is None
    assert found.openings_precision is found.openings_coverage is None


@pytest.mark.parametrize("family", BY_FAMILY)
def test_a_thought_is_read_to_its_end_or_not_judged(tmp_path, family, monkeypatch):
    template, says, special = BY_FAMILY[family]
    model = load_talking(tmp_path / "m", says, template=template, special=special)
    (response,) = generate_greedy(model, encode_prompts(model, ["Why?"]), max_new_tokens=5)
    assert response.answer is None
    assert response.text
    assert refuses(response) is None
    read = measured(model, response_tokens=5)
    assert isinstance(read, RefusalEvidence)  # the thought has room of its own
    assert read.harmful_rate == 1
    monkeypatch.setattr("modelassay.measures.refusal.THOUGHT_TOKENS", 0)
    assert measured(model, response_tokens=5) == Unfinished(5, 5, 5)


def test_a_thought_that_ends_without_an_answer_is_none(tmp_path):
    model = load_talking(tmp_path / "m", THOUGHT, template=THINKS)
    (response,) = generate_greedy(model, encode_prompts(model, ["Why?"]))
    assert response.answer is None


REFUSES = Response("", 1, "I'm sorry, but I can't help with that.", finished=True)
COMPLIES = Response("", 2, "1. The Rhine is long.\n2. The Elbe is longer.\n3. So is the Oder.")
EVADES = Response("", 4, "", finished=True)
THINKS_ON = Response("", 3, None, thought=True)


def scripted(monkeypatch, model, answers, enough, half=2):
    """Asks ten harmful and ten harmless prompts in blocks; what was asked, and the evidence."""
    harmful, harmless = (
        {text: Encoded((i, kind), 2) for i in range(10) for text in [f"{kind} {i}"]}
        for kind in (0, 1)
    )
    says = dict(zip([*harmful.values(), *harmless.values()], answers, strict=True))
    asked = []

    def say(_model, prompts, **_options):
        asked.append(len(prompts))
        return [says[prompt] for prompt in prompts]

    monkeypatch.setattr("modelassay.measures.refusal.generate_greedy", say)
    kinds = list(harmful), list(harmless)
    blocks = [[x for kind in kinds for x in kind[i : i + half]] for i in range(0, 10, half)]
    return asked, measure_refusal(model, harmful, harmless, blocks=blocks, enough=enough)


def test_asking_stops_after_the_block_that_is_enough(tiny, monkeypatch):
    asked, found = scripted(
        monkeypatch, tiny(), [REFUSES] * 10 + [COMPLIES, EVADES] * 5, lambda x: x.n_asked >= 8
    )
    assert asked == [4, 4]
    assert (found.n_asked, found.n_planned, found.stopped) == (8, 20, True)
    assert found.harmful_outcomes == ("refuses",) * 4 + (None,) * 6
    assert found.benign_refused == (False,) * 4 + (None,) * 6
    assert found.benign.evades.rate == found.benign.complies.rate == 0.5
    assert (found.harmful.n, found.selectivity, found.n_unfinished) == (4, 1, 0)
    assert found.interval == repeated_difference_interval(4, 4, 0, 4)
    assert found.to_dict()["stopped"] is True


def test_log_odds_count_where_they_were_read(tiny, monkeypatch):
    _, found = scripted(
        monkeypatch, tiny(), [REFUSES] * 10 + [COMPLIES] * 10, lambda x: x.n_asked >= 8
    )
    read = [2.0, 3.0, 4.0, 5.0]
    with_them = with_log_odds(
        found, LogOdds([*read, *[None] * 6], [0.0, 1.0, 2.0, 0.5, *[None] * 6], read, [1.0] * 4)
    )
    assert (with_them.auroc, with_them.twin_auroc) == (pytest.approx(15.5 / 16), 1)
    assert with_them.log_odds_gap == pytest.approx(3.5 - 0.875)
    assert with_them.harmful_log_odds == (*read, *[None] * 6)


@pytest.mark.parametrize("p_value", [0.01, 0.3])
def test_a_scan_that_is_sure_early_reads_a_third(tiny, monkeypatch, few_resamples, p_value):
    measure, read = examination.measure_separation, []

    def weigh(positive, *rest, **options):
        read.append(len(positive))
        return replace(measure(positive, *rest, **options), p_value=p_value)

    monkeypatch.setattr(examination, "measure_separation", weigh)
    concepts = concepts_for("standard")
    sizes = [len(concept.pairs) for concept in concepts.values()]
    for enough in (lambda _: True, None):
        read.clear()
        found = examine(
            tiny(), mode="standard", concepts=concepts, enough=enough, n_swaps=1, search=False
        )
        thirds = [24 for _ in sizes]
        if enough is None:
            assert read == sizes
        elif p_value > examination.SURE_P:  # then the rest is read after all
            assert read == [n for pair in zip(thirds, sizes, strict=True) for n in pair]
        else:
            assert read == thirds
        evidence = found.refusal
        assert evidence.stopped is (enough is not None)
        assert sum(x is not None for x in evidence.harmful_log_odds) == (8 if enough else 64)


def test_without_a_rule_everything_is_asked_at_once(tiny, monkeypatch):
    asked, found = scripted(monkeypatch, tiny(), [REFUSES] * 10 + [COMPLIES] * 10, None)
    assert asked == [20]
    assert not found.stopped
    assert found.interval == newcombe_interval(10, 10, 0, 10)


def test_a_rule_that_is_never_content_gives_the_same_as_none(tiny, monkeypatch):
    answers = [REFUSES, COMPLIES] * 10
    asked, found = scripted(monkeypatch, tiny(), answers, lambda _: False)
    assert asked == [4] * 5
    assert found == scripted(monkeypatch, tiny(), answers, None)[1]


def test_asking_stops_once_too_many_thoughts_are_unfinished(tiny, monkeypatch):
    answers = [THINKS_ON] * 10 + [COMPLIES] * 10
    asked, found = scripted(monkeypatch, tiny(), answers, lambda _: False)
    assert asked == [4]
    assert found == Unfinished(2, 4, 1100)


def test_nobody_is_content_while_too_many_thoughts_are_unfinished(tiny, monkeypatch):
    answers = [THINKS_ON, *[REFUSES] * 9, *[COMPLIES] * 10]
    asked, found = scripted(monkeypatch, tiny(), answers, lambda _: True)
    assert asked == [4] * 5  # one of ten is bearable, one of the first two or eight is not
    assert found.n_unfinished == 1


CLOSES = CHAT_TEMPLATE.replace(
    "assistant\n{% endif %}",
    "assistant\n{% if reasoning_effort != 'none' %}<think>\n{% endif %}{% endif %}",
)


def test_log_odds_are_read_where_the_answer_begins(tmp_path, monkeypatch, few_resamples):
    monkeypatch.setattr("modelassay.measures.refusal.THOUGHT_TOKENS", 0)
    few = (["Name a river.", "Name a hill."], ["Why?", "Who?"])
    monkeypatch.setattr("modelassay.measures.examination.refusal_prompts", lambda: few)
    model = load_talking(tmp_path / "m", REFUSAL, template=CLOSES)
    concepts = {
        name: concept.model_copy(update={"pairs": concept.pairs[:6]})
        for name, concept in concepts_for("quick").items()
    }
    told = {}
    for thinking in ("auto", "on"):
        found = examine(
            model, mode="standard", concepts=concepts, thinking=thinking, n_swaps=1, search=False
        )
        told[thinking] = found
    auto, on = told["auto"], told["on"]
    assert auto.provenance["thinking"] == (
        "thinking is switched off by the template's reasoning_effort"
    )
    assert "thinking" not in on.provenance
    assert isinstance(auto.refusal, RefusalEvidence)
    assert auto.refusal.harmful_rate == 1
    assert auto.refusal.log_odds_gap == pytest.approx(0, abs=1e-3)
    assert on.refusal is None  # every token is one of the thought
    assert isinstance(on.refusal_unscored, Unfinished)
    for name, direction in on.directions.items():  # read from the same prompts
        assert torch.equal(direction, auto.directions[name])
