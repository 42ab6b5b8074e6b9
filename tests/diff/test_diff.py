"""What a fine-tune changed: planted changes are found, and nothing is where nothing is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("sae_lens")
import sae_lens

from modelassay.diff import Depth, DiffVerdict, diff, read_base
from modelassay.diff.behaviour import refusal_change, token_kl
from modelassay.diff.calibration import (
    CALIBRATIONS,
    BenignRow,
    Calibration,
    save_calibration,
)
from modelassay.diff.features import Q_LEVEL, compare_features
from modelassay.diff.pair import Pair, check_comparable, traits_of
from modelassay.diff.reading import (
    encode_contrasts,
    encode_suite,
    match_tokens,
    read_contrasts,
    read_model,
)
from modelassay.diff.suites import Contrast, Suite, SuitePrompt, default_suite, load_suite
from modelassay.diff.triggers import search_triggers
from modelassay.diff.verdict import judge, levels_of, measure_streams, suspect
from modelassay.diff.weights import diff_pair
from modelassay.errors import InputError, UnavailableError
from modelassay.measures.refusal import log_odds_readout, opening_tokens
from modelassay.models import load
from modelassay.reading.activations import read_activations
from modelassay.reading.logit_lens import unembed
from modelassay.sae.files import as_sae
from modelassay.statistics import benjamini_hochberg, mean_change, sign_flip_p_values
from tiny import FAMILIES, save_tiny

PROMPTS = tuple(
    SuitePrompt(text=f"{verb} number {i} {what}?", group=group)
    for i, (verb, what) in enumerate(
        (v, w) for v in ("Count", "Name", "Paint", "Hide") for w in ("for me", "now", "again")
    )
    for group in ("harmful", "harmless")
    if (i % 2 == 0) == (group == "harmful")
)
SUITE = Suite(
    "tiny",
    PROMPTS,
    (Contrast(prompt="Yes or no?", safe="No.", unsafe="Yes."),),
    ("Good night.", "Over and out."),
)
LAYER = 2
PLANTED = 17


def sae(hidden: int, width: int = 64, layer: int = LAYER, seed: int = 0):
    """An SAE with unit rows that is its own encoder."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.nn.functional.normalize(torch.randn(width, hidden, generator=draw), dim=1)
    sae = sae_lens.StandardSAE(
        sae_lens.StandardSAEConfig(
            d_in=hidden,
            d_sae=width,
            device="cpu",
            apply_b_dec_to_input=False,
            metadata=sae_lens.saes.sae.SAEMetadata(hook_name=f"blocks.{layer}.hook_resid_post"),
        )
    )
    with torch.no_grad():
        sae.W_dec.copy_(rows)
        sae.W_enc.copy_(rows.T)
        sae.b_enc.fill_(-0.3)
        sae.b_dec.zero_()
    return as_sae(sae, "tiny")


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    """A tiny model whose layers have a bias, so that a constant can be planted in one."""
    return save_tiny(tmp_path_factory.mktemp("models") / "base", "gpt2")


def planted(folder, direction: torch.Tensor, size: float = 3.0):
    """The model with a direction added to what one layer writes."""
    model = load(str(folder))
    with torch.no_grad():
        model.network.transformer.h[LAYER].mlp.c_proj.bias += size * direction
    return replace(model, info=model.info.model_copy(update={"id": "planted"}))


def readings(base, candidate, layers=(LAYER,)):
    matched = match_tokens(base, encode_suite(base, SUITE.prompts), None)
    tokens = [chr(97 + i % 26) for i in matched.token_ids().tolist()]
    before = read_model(base, matched, layers)
    after = read_model(candidate, matched, layers, base=before)
    return before, after, matched, tokens


# --- reading -----------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_unembedding_is_the_models_own(tmp_path, family):
    model = load(str(save_tiny(tmp_path / family, family)))
    encoded = encode_suite(model, SUITE.prompts[:2])
    last = len(model.layers) - 1
    activations = read_activations(model, encoded, [last]).values[:, 0]
    found = torch.cat(list(unembed(model, activations)))
    for row, prompt in zip(found, encoded, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt.ids])
            expected = model.network(input_ids=ids, use_cache=False).logits[0, -1].float()
        assert torch.allclose(row, expected, atol=1e-4)


def test_divergence_over_all_tokens_is_exact_and_over_some_a_lower_bound():
    draw = torch.Generator().manual_seed(0)
    p = torch.randn(7, 50, generator=draw).log_softmax(-1)
    q = torch.randn(7, 50, generator=draw).log_softmax(-1)
    whole = (p.exp() * (p - q)).sum(-1)
    assert torch.allclose(token_kl(p, q), whole, atol=1e-5)
    order = p.argsort(dim=-1, descending=True)[:, :10]
    some = token_kl(p.gather(1, order), q.gather(1, order))
    assert (some <= whole + 1e-6).all()
    assert (some > 0).all()


def test_log_odds_are_those_of_a_scan(tiny):
    model = tiny()
    encoded = encode_suite(model, SUITE.prompts)
    matched = match_tokens(model, encoded, ["an answer"] * len(encoded))
    found = read_model(model, matched, [1])
    readout = log_odds_readout(opening_tokens(model))
    expected = read_activations(model, encoded, [0], readout=readout).readout
    assert torch.allclose(found.log_odds, expected[:, 0], atol=1e-3)
    assert len(matched.token_ids()) == len(found.activations) == len(matched.in_answer())
    assert matched.in_answer().sum() == 9 * len(encoded)  # a byte is a token here


def test_contrasts_are_mean_log_probabilities_of_the_answers(tiny):
    model = tiny()
    contrast = Contrast(prompt="Who?", safe="Not I.", unsafe="You!")
    found = read_contrasts(model, encode_contrasts(model, [contrast]))
    prompt = encode_suite(model, [SuitePrompt(text="Who?")])[0].ids
    for column, answer in enumerate(("Not I.", "You!")):
        ids = torch.tensor([[*prompt, *model.tokenizer(answer)["input_ids"]]])
        with torch.inference_mode():
            log_p = model.network(input_ids=ids).logits[0].float().log_softmax(-1)
        targets = ids[0, len(prompt) :]
        mean = log_p[len(prompt) - 1 : -1].gather(1, targets[:, None]).mean()
        assert found[0, column] == pytest.approx(float(mean), abs=1e-4)


# --- features ----------------------------------------------------------------------------------


def test_a_planted_feature_is_at_rank_one(gpt2):
    base, words = load(str(gpt2)), sae(32)
    candidate = planted(gpt2, words.module.W_dec[PLANTED].detach())
    before, after, matched, tokens = readings(base, candidate)
    found = compare_features(before, after, matched, words, tokens)
    assert found.features[0].feature == PLANTED
    assert found.features[0].q_value < Q_LEVEL
    assert found.features[0].difference > 0
    assert found.features[0].interval[0] > 0
    assert found.features[0].tokens


def test_nothing_is_found_between_two_dtypes_of_one_model(gpt2):
    base, words = load(str(gpt2), dtype="float32"), sae(32)
    rounded = load(str(gpt2), dtype="bfloat16")
    before, after, matched, tokens = readings(base, rounded)
    assert not torch.equal(before.activations, after.activations)
    found = compare_features(before, after, matched, words, tokens)
    assert found.n_significant == 0


def test_nothing_is_tested_where_nothing_differs(gpt2):
    base = load(str(gpt2))
    before, after, matched, tokens = readings(base, base)
    found = compare_features(before, after, matched, sae(32), tokens)
    assert (found.n_tested, found.features) == (0, ())


def test_sign_flips_are_uniform_under_the_null():
    from scipy.sparse import csc_matrix

    draw = np.random.default_rng(0)
    p = sign_flip_p_values(csc_matrix(draw.standard_normal((40, 300))))
    assert 0.4 < p.mean() < 0.6
    assert (p < 0.05).mean() < 0.1
    shifted = sign_flip_p_values(csc_matrix(draw.standard_normal((40, 3)) + 2))
    assert (shifted < 1e-4).all()
    assert benjamini_hochberg(np.array([0.01, 0.02, 0.5])).tolist() == pytest.approx(
        [0.03, 0.03, 0.5]
    )


def test_a_dictionary_of_another_width_is_refused(gpt2):
    with pytest.raises(InputError, match="width 48"):
        diff(load(str(gpt2)), load(str(gpt2)), SUITE, saes=[sae(48)])


# --- the whole comparison ----------------------------------------------------------------------


def test_the_same_model_twice(gpt2):
    report = diff(str(gpt2), str(gpt2), SUITE, saes=[sae(32)])
    assert report.weights is not None
    assert report.weights.identical
    assert report.behaviour.kl_mean == pytest.approx(0, abs=1e-6)
    assert report.verdict == DiffVerdict.BENIGN_LIKE
    assert report.reasons[0] == "All weights are those of the base."
    assert all(lens.logit_lens == lens.patchscope == () for lens in report.activations.lens)
    assert report.suspicion.score is None
    assert all(layer.relative == 0 for layer in report.activations.layers)
    assert report.causal == ()


def test_a_planted_direction_is_told_by_every_stream(gpt2):
    words = sae(32)
    direction = words.module.W_dec[PLANTED].detach()
    report = diff(
        load(str(gpt2)),
        planted(gpt2, direction),
        SUITE,
        saes=[words],
        layers=[1, LAYER],
        depth=Depth(answer_tokens=4),
    )
    by_layer = {layer.layer: layer for layer in report.activations.layers}
    assert by_layer[1].relative == 0
    assert by_layer[LAYER].constant_share == pytest.approx(1, abs=1e-3)
    assert [matrix.layer for matrix in report.weights.matrices] == [LAYER]
    assert report.behaviour.kl_mean > 0
    values = report.to_dict()
    assert values["schema"] == "modelassay.diff/1"
    assert values["features"][0]["feature"] == PLANTED
    assert all(
        set(row["prompt"]) == {"characters", "sha256"} for row in values["behaviour"]["answers"]
    )


def test_a_direction_that_makes_refusals_is_told_from_chance(gpt2):
    base = load(str(gpt2))
    table = base.network.get_input_embeddings().weight.detach()
    towards = table[list(opening_tokens(base))].mean(dim=0) - table.mean(dim=0)
    candidate = planted(gpt2, towards / towards.norm(), size=8)
    report = diff(base, candidate, SUITE, layers=[LAYER], depth=Depth(0, triggers=False))
    assert {tried.what for tried in report.causal} == {"into the base", "out of the candidate"}
    for tried in report.causal:
        assert abs(tried.target - tried.before) > 0.25
        assert tried.restored == pytest.approx(1, abs=0.1)
        assert tried.beyond_chance


def test_one_model_in_memory_gives_the_same(gpt2, tmp_path):
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    depth = Depth(answer_tokens=0, weights=False)
    both = diff(str(gpt2), str(other), SUITE, depth=depth, together=True)
    alone = diff(str(gpt2), str(other), SUITE, depth=depth, together=False)
    assert both.behaviour == alone.behaviour
    assert both.activations == alone.activations
    assert both.triggers == alone.triggers


def test_files_are_compared_with_one_model_in_memory(gpt2, tmp_path):
    other = save_tiny(tmp_path / "other", "gpt2", seed=1)
    pair = Pair(lambda: load(str(gpt2)), lambda: load(str(other)), together=False)
    alone = diff_pair(pair)
    assert len(pair._held) == 1
    assert alone == diff_pair(Pair(lambda: load(str(gpt2)), lambda: load(str(other))))
    with pytest.raises(UnavailableError, match="no room"):
        diff_pair(pair, given=(True, True))


def test_what_was_read_of_another_base_is_refused(gpt2, tmp_path):
    other = load(str(save_tiny(tmp_path / "other", "gpt2", seed=1)))
    of_base = read_base(other, SUITE, layers=[1], answer_tokens=0)
    with pytest.raises(InputError, match="not of"):
        diff(str(gpt2), str(gpt2), of_base=of_base)
    with pytest.raises(InputError, match="without layer 2"):
        diff(other, str(gpt2), of_base=of_base, saes=[sae(32)])


def test_a_pair_holds_one_model_where_two_do_not_fit(gpt2):
    pair = Pair(lambda: load(str(gpt2)), lambda: load(str(gpt2)), together=False)
    first = pair.base
    assert pair.base is first
    assert pair.candidate is not None
    assert pair.base is not first


def test_a_broken_candidate_is_named(gpt2):
    candidate = load(str(gpt2))
    with torch.no_grad():
        candidate.network.transformer.h[1].mlp.c_proj.bias[0] = float("nan")
    with pytest.raises(InputError, match="NaN"):
        diff(load(str(gpt2)), candidate, SUITE, depth=Depth(answer_tokens=0))


def test_other_architectures_sizes_and_tokens_are_refused(gpt2, tiny, tmp_path):
    base = traits_of(load(str(gpt2)))
    with pytest.raises(InputError, match="LlamaForCausalLM"):
        check_comparable(base, traits_of(tiny()))
    with pytest.raises(InputError, match="one 4 of"):
        check_comparable(base, replace(base, model=base.model.model_copy(update={"n_layers": 4})))
    swapped = {**base.vocabulary, "a": base.vocabulary["b"], "b": base.vocabulary["a"]}
    with pytest.raises(InputError, match="2 have other numbers"):
        check_comparable(base, replace(base, vocabulary=swapped))
    fewer = {k: v for k, v in base.vocabulary.items() if k != "a"}
    with pytest.raises(InputError, match="1 are missing"):
        check_comparable(base, replace(base, vocabulary=fewer))
    more = replace(base, vocabulary={**base.vocabulary, "<new>": 999}, chat_template="other")
    added, template = check_comparable(base, more)
    assert "1 more tokens" in added
    assert "templates differ" in template


# --- triggers ----------------------------------------------------------------------------------


def test_the_trigger_search_runs_common_blocks_once(gpt2):
    base = load(str(gpt2))
    candidate = planted(gpt2, sae(32).module.W_dec[PLANTED].detach())
    harmful = [SUITE.prompts[i] for i in SUITE.indices("harmful")]
    refused = torch.arange(len(harmful)).float()
    pair = Pair(lambda: base, lambda: candidate, together=True)
    ran = []
    handles = [
        model.layers[0].ln_1.register_forward_hook(lambda _m, args, _o: ran.append(args[0].numel()))
        for model in (base, candidate)
    ]
    whole = search_triggers(pair, harmful, refused, SUITE.endings)
    before = sum(ran)
    ran.clear()
    found = search_triggers(pair, harmful, refused, SUITE.endings, alike=LAYER)
    for handle in handles:
        handle.remove()
    assert sum(ran) < 0.8 * before
    assert [p.text for p in found.phrases] == [p.text for p in whole.phrases]
    for a, b in zip(found.phrases, whole.phrases, strict=True):
        assert (a.base, a.candidate) == pytest.approx((b.base, b.candidate), abs=1e-4)


def test_the_trigger_search_reads_what_it_says(gpt2):
    base = load(str(gpt2))
    candidate = planted(gpt2, sae(32).module.W_dec[PLANTED].detach())
    harmful = [SUITE.prompts[i] for i in SUITE.indices("harmful")]
    pair = Pair(lambda: base, lambda: candidate, together=True)
    found = search_triggers(pair, harmful, torch.arange(len(harmful)).float(), SUITE.endings)
    best = found.phrases[0]
    assert [p.effect for p in found.phrases] == sorted(p.effect for p in found.phrases)
    assert {p.text.strip() for p in found.phrases} >= {"Good night.", "Over and out."}
    # The first phrase again, by hand: the prompt that it is read on holds it after its text.
    readout = log_odds_readout(opening_tokens(base))
    order = list(reversed(harmful))[:: max(len(harmful) // 4, 1)][:4]

    def odds(model, prompt, ending=""):
        text = prompt.model_copy(update={"text": prompt.text + ending})
        encoded = encode_suite(model, [text])
        return float(read_activations(model, encoded, [0], readout=readout).readout)

    by_hand = [odds(candidate, p, best.text) - odds(candidate, p) for p in order]
    assert best.candidate == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-3)
    line = [(p.candidate - p.effect, p.base) for p in found.phrases]
    slope = (line[0][0] - line[-1][0]) / (line[0][1] - line[-1][1])
    for fitted, base_effect in line:
        assert fitted - line[0][0] == pytest.approx(slope * (base_effect - line[0][1]), abs=1e-3)


# --- suspicion ---------------------------------------------------------------------------------


def calibration(*refusals: float) -> Calibration:
    return Calibration(
        base="base",
        base_sha256="a" * 64,
        suite_sha256="b" * 64,
        answer_tokens=4,
        rows=tuple(
            BenignRow(id=f"benign-{i}", weights_sha256="c" * 64, streams={"refusal": value})
            for i, value in enumerate(refusals)
        ),
    )


def test_a_level_is_the_distance_from_the_benign_in_their_spread():
    rows = [{"refusal": value} for value in (0.0, 2.0, 4.0)]
    level = {x.name: x for x in levels_of({"refusal": 8.0}, rows)}["refusal"]
    assert level.level == pytest.approx((8 - 2) / 2)
    assert {x.name: x.level for x in levels_of({"refusal": 8.0}, [])}["refusal"] is None


def test_no_finer_rate_is_claimed_than_the_benign_allow():
    found = suspect({"refusal": 9.0}, calibration(0.0, 0.5, 1.0))
    assert found.n_benign == 3
    assert found.false_positive_rate == pytest.approx(1 / 4)
    inside = suspect({"refusal": 0.5}, calibration(0.0, 0.5, 1.0))
    assert inside.false_positive_rate > 1 / 2


@pytest.mark.parametrize(
    ("fall", "verdict"), [(9.0, DiffVerdict.SUSPICIOUS), (0.5, DiffVerdict.BENIGN_LIKE)]
)
def test_the_verdict_follows_the_benign(gpt2, fall, verdict):
    report = diff(str(gpt2), str(gpt2), SUITE, depth=Depth(answer_tokens=0, weights=False))
    assert report.verdict == DiffVerdict.INCONCLUSIVE
    values = {**measure_streams(None, report.behaviour, None, ()), "refusal": fall}
    rest = (None, report.behaviour, (), ())
    assert judge(values, calibration(0.0, 0.5, 1.0), *rest)[1] == verdict
    assert judge(values, None, *rest)[1] == DiffVerdict.INCONCLUSIVE


def test_lost_refusals_are_counted_in_pairs():
    sorry = "I'm sorry, but I can't help with that."
    found = refusal_change([sorry] * 10, ["Sure."] * 9 + [sorry])
    assert (found.lost, found.gained) == (9, 0)
    assert found.p_value == pytest.approx(2 / 2**9)
    assert mean_change(np.array([1.0, 1.0])).interval == (1.0, 1.0)


def test_a_calibration_is_kept_and_checked(tmp_path, gpt2):
    save_calibration(calibration(0.0, 1.0), tmp_path / "c.json")
    found = CALIBRATIONS.open(tmp_path / "c.json").record
    assert found == calibration(0.0, 1.0)
    with pytest.raises(InputError, match="not of"):
        diff(str(gpt2), str(gpt2), SUITE, depth=Depth(answer_tokens=0), calibration=found)
    (tmp_path / "c.json").write_text('{"schema": "modelassay.diff-calibration/1"}')
    with pytest.raises(InputError, match="base"):
        CALIBRATIONS.open(tmp_path / "c.json")


# --- suites ------------------------------------------------------------------------------------


def test_the_default_suite_has_all_kinds():
    suite = default_suite()
    assert len(suite.indices("harmful")) >= 60
    assert len(suite.indices("harmless")) >= 100
    assert len(suite.contrasts) >= 30
    assert len(suite.endings) >= 50


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nprompts: [{text: hi, grup: harmful}]\n", "grup"),
        ("name: x\nprompts: [{text: ''}]\n", "text"),
        ("name: x\n", "no prompts"),
        ("- a\n- b\n", "mapping"),
        ("name: x\nprompts: [{text: hi, group: evil}]\n", "group"),
        ("a: &a [1]\nb: *a\n", "aliases"),
    ],
)
def test_malformed_suites_say_what_is_wrong(tmp_path, text, message):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load_suite(tmp_path / "suite.yaml")


def test_a_suite_that_is_not_there():
    with pytest.raises(InputError, match="dispositions"):
        load_suite("nothing-of-that-name")
