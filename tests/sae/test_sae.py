"""Dictionaries are trained on a stream, kept, taken up again, and scored on text they never saw."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("sae_lens")
import sae_lens

from modelassay.cli.main import run
from modelassay.errors import InputError
from modelassay.models import load
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import encode_prompts
from modelassay.sae import (
    Corpus,
    Settings,
    evaluate_sae,
    load_dictionary,
    save_dictionary,
    train_sae,
)
from modelassay.sae.stream import encode_contexts, read_windows, shuffled_batches
from tiny import save_tiny

TEXTS = [f"Line {i}: the quick brown fox jumps over {i * 7 % 13} lazy dogs." for i in range(120)]
HELD_OUT = [f"Note {i}: a slow red hen walks under {i * 5 % 11} tall trees." for i in range(8)]
SETTINGS = Settings(
    layer=2,
    width=96,
    k=8,
    tokens=6000,
    passes=8,
    batch=256,
    learning_rate=5e-3,
    window_tokens=2000,
    context=32,
)


@pytest.fixture(scope="module")
def trained(tiny):
    return train_sae(tiny(), lambda: TEXTS, SETTINGS)


def state_of(sae):
    return {name: value.clone() for name, value in sae.state_dict().items()}


# --- the stream --------------------------------------------------------------------------------


def test_windows_hold_every_token_but_the_first_of_a_context(tiny):
    model = tiny()
    window = next(read_windows(model, lambda: TEXTS[:20], 2, window_tokens=300, context=10_000))
    rows = encode_contexts(model, TEXTS[:20], 10_000)
    read = read_activations(model, rows, [2], position="all")
    assert len(window.values) == sum(len(row.ids) - 1 for row in rows)
    assert torch.equal(window.values, read.values[:, 0].bfloat16())


def test_long_texts_are_cut_and_none_is_lost(tiny):
    rows = encode_contexts(tiny(), TEXTS[:3], 10)
    whole = [list(row.ids) for row in encode_contexts(tiny(), TEXTS[:3], 10_000)]
    assert all(1 < len(row.ids) <= 10 for row in rows)
    cut = [token for row in rows for token in row.ids]
    assert len(cut) >= sum(map(len, whole)) - 3  # a single token left over is no context


def test_a_stream_that_ends_begins_again(tiny):
    windows = read_windows(tiny(), lambda: TEXTS[:3], 2, window_tokens=500, context=32)
    first, second = next(windows), next(windows)
    assert len(first.values) >= 500
    assert second.number == 1
    assert second.texts_read <= 3


def test_empty_texts_are_said(tiny):
    windows = read_windows(tiny(), lambda: ["", ""], 2, window_tokens=10, context=32)
    with pytest.raises(InputError, match="are empty"):
        next(windows)


def test_each_activation_is_used_as_often_as_asked(tiny):
    window = next(read_windows(tiny(), lambda: TEXTS, 2, window_tokens=1000, context=32))
    window = replace(window, values=window.values[:1000])
    batches = list(shuffled_batches(window, 100, 3, seed=0))
    assert len(batches) == 30
    used = torch.cat(batches[:10]).sort(dim=0).values
    assert torch.equal(used, window.values.float().sort(dim=0).values)
    assert not torch.equal(batches[0], batches[10])


# --- training ----------------------------------------------------------------------------------


def test_training_learns_and_is_as_sparse_as_asked(tiny, trained):
    untrained = train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, tokens=256, passes=1))
    scores = [evaluate_sae(tiny(), sae, 2, HELD_OUT) for sae in (untrained, trained)]
    assert scores[1].explained_variance > scores[0].explained_variance + 0.1
    kept = save_and_load(trained, tiny)
    assert 0.6 * SETTINGS.k < evaluate_sae(tiny(), kept, 2, HELD_OUT).l0 < 1.6 * SETTINGS.k


def save_and_load(sae, tiny):
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        sae.save_inference_model(folder)
        return sae_lens.SAE.load_from_disk(folder, dtype="float32")


@pytest.mark.parametrize("kind", ["topk", "jumprelu", "matryoshka"])
def test_every_kind_trains_and_opens_in_sae_lens(tiny, kind):
    settings = replace(SETTINGS, kind=kind, tokens=2000)
    sae = save_and_load(train_sae(tiny(), lambda: TEXTS, settings), tiny)
    values = torch.randn(5, tiny().info.hidden_size)
    assert sae.decode(sae.encode(values)).shape == values.shape


def test_the_same_run_gives_the_same_dictionary(tiny, trained):
    again = state_of(train_sae(tiny(), lambda: TEXTS, SETTINGS))
    assert all(torch.equal(value, again[name]) for name, value in state_of(trained).items())


def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(tiny, trained, tmp_path):
    class StopError(Exception):
        pass

    def stop_after_a_window(done, _total):
        if done > 2000:
            raise StopError

    state = tmp_path / "state"
    with pytest.raises(StopError):
        train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state, on_progress=stop_after_a_window)
    assert {file.suffix for file in state.iterdir()} == {".safetensors", ".json"}
    resumed = state_of(train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state))
    for name, value in state_of(trained).items():
        assert torch.allclose(value, resumed[name], atol=1e-5), name
    with pytest.raises(InputError, match="another model or other settings"):
        train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, k=9), state=state)
    (state / "progress.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match="is damaged"):
        train_sae(tiny(), lambda: TEXTS, SETTINGS, state=state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layer": 5}, "layer must lie"),
        ({"k": 0}, "k must be at least 1"),
        ({"k": 96}, "k must be at least 1"),
        ({"width": 2, "k": 1}, "too small"),
        ({"batch": 0}, "batch must be"),
        ({"batch": 5000}, "cannot be larger"),
        ({"learning_rate": 0.0}, "learning rate"),
        ({"context": 1}, "context"),
    ],
)
def test_settings_that_cannot_be_are_refused(tiny, change, message):
    with pytest.raises(InputError, match=message):
        train_sae(tiny(), lambda: TEXTS, replace(SETTINGS, **change))


# --- scoring -----------------------------------------------------------------------------------


class Whole:
    """A dictionary that takes nothing apart and so loses nothing."""

    device = torch.device("cpu")

    def __init__(self, d: int, keep: float = 1.0) -> None:
        self.cfg = type("Config", (), {"d_in": d, "d_sae": 2 * d})()
        self.keep = keep

    def encode(self, x):
        return torch.cat([x.relu(), (-x).relu()], dim=-1)

    def decode(self, features):
        half = features.shape[-1] // 2
        return self.keep * (features[..., :half] - features[..., half:])


def test_a_perfect_dictionary_explains_all_and_costs_nothing(tiny):
    model = tiny()
    scores = evaluate_sae(model, Whole(model.info.hidden_size), 2, HELD_OUT)
    assert scores.explained_variance == pytest.approx(1)
    assert scores.loss_added == pytest.approx(0, abs=1e-5)
    # Random layers are of no use to these texts; were they, all of it would be undone.
    assert scores.loss_recovered is None
    useful = replace(scores, loss_mean=scores.loss + 1)
    assert useful.loss_recovered == pytest.approx(1, abs=1e-3)
    losses = [useful.loss, useful.loss_spliced, useful.loss_mean]
    assert list(useful.to_dataframe()["loss"]) == list(useful.figure().data[0].y) == losses
    assert "undoes 100.0% of the damage" in useful._repr_html_()
    assert scores.l0 == pytest.approx(model.info.hidden_size)
    assert scores.dead_share == 0


def test_the_loss_is_the_model_s_own(tiny):
    model = tiny()
    scores = evaluate_sae(model, Whole(model.info.hidden_size, keep=0.0), 2, HELD_OUT[:1])
    ids = torch.tensor([encode_contexts(model, HELD_OUT[:1], 128)[0].ids])
    with torch.no_grad():
        logits = model.network(input_ids=ids).logits[0, 1:-1]
    expected = torch.nn.functional.cross_entropy(logits, ids[0, 2:])
    assert scores.loss == pytest.approx(float(expected), abs=1e-4)
    assert abs(scores.loss_added) > 1e-4
    assert scores.explained_variance <= 0


def test_scoring_does_not_depend_on_the_batch(tiny, trained):
    whole = evaluate_sae(tiny(), trained, 2, HELD_OUT)
    parts = [evaluate_sae(tiny(), trained, 2, [text]) for text in HELD_OUT]
    tokens = [part.n_tokens for part in parts]
    l0 = sum(p.l0 * n for p, n in zip(parts, tokens, strict=True)) / sum(tokens)
    assert whole.n_tokens == sum(tokens)
    assert whole.loss == pytest.approx(
        sum(p.loss * (n - 1) for p, n in zip(parts, tokens, strict=True))
        / (sum(tokens) - len(tokens)),
        abs=1e-4,
    )
    assert l0 > 0


def test_a_dictionary_of_another_width_is_refused(tiny):
    with pytest.raises(InputError, match="belongs to another model"):
        evaluate_sae(tiny(), Whole(7), 2, HELD_OUT)


# --- on disk -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tiny, trained, tmp_path):
    import copy

    out = tmp_path / "dictionary"
    save_dictionary(
        copy.deepcopy(trained), tiny(), SETTINGS, HELD_OUT, out, name="tiny", data=["lines"]
    )
    return out


def test_what_was_saved_is_loaded(tiny, folder):
    found = load_dictionary(folder)
    record = found.record
    assert (record.layer, record.width, record.k, record.kind) == (2, 96, 8, "batchtopk")
    assert record.dtype == "bfloat16"
    assert load_file(folder / "sae_weights.safetensors")["W_dec"].dtype == torch.bfloat16
    found.check_belongs_to(tiny())
    scores = evaluate_sae(tiny(), found.sae, 2, HELD_OUT, context=SETTINGS.context)
    assert record.metrics.explained_variance == pytest.approx(scores.explained_variance)
    assert record.metrics.loss_spliced == pytest.approx(scores.loss_spliced)
    assert sae_lens.SAE.load_from_disk(folder).cfg.metadata.model_name == tiny().info.id


def test_a_model_of_another_shape_or_family_is_refused(folder, tiny, tmp_path):
    with pytest.raises(InputError, match="a LlamaForCausalLM, this one a Qwen3ForCausalLM"):
        load_dictionary(folder).check_belongs_to(tiny("qwen3"))
    wide = load(str(save_tiny(tmp_path / "wide", hidden_size=64, head_dim=16)), device="cpu")
    with pytest.raises(InputError, match="belongs to"):
        load_dictionary(folder).check_belongs_to(wide)


def damage_weights(folder):
    path = folder / "sae_weights.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "W_dec": tensors["W_dec"] * 2}, path)


def damage_shape(folder):
    config = json.loads((folder / "cfg.json").read_text(encoding="utf-8"))
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 12}), encoding="utf-8")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "is not the file"),
        (damage_shape, "does not fit"),
        (lambda folder: (folder / "cfg.json").unlink(), "no whole dictionary"),
        (lambda folder: (folder / "cfg.json").write_text("[]"), "no config"),
        (lambda folder: (folder / "sae_weights.safetensors").unlink(), "no whole dictionary"),
        (lambda folder: (folder / "dictionary.json").write_text("{"), "no valid SAE"),
        (lambda folder: shutil.rmtree(folder), "holds no SAE"),
    ],
)
def test_damaged_dictionaries_are_refused(folder, damage, message):
    damage(folder)
    with pytest.raises(InputError, match=message) as error:
        load_dictionary(folder)
    assert "\n" not in str(error.value)


# --- texts -------------------------------------------------------------------------------------


def test_exchanges_are_read_as_conversations_and_some_are_kept_out(tiny, tmp_path):
    model = tiny()
    rows = [{"prompt": f"Question {i}?", "response": f"Answer {i}."} for i in range(120)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = Corpus(model, [str(file)])
    train, held_out = list(corpus.train()), corpus.held_out()
    assert len(train) + len(held_out) == 120
    assert not set(train) & set(held_out)
    assert list(corpus.train()) == train
    whole = model.tokenizer(train[0], add_special_tokens=False)["input_ids"]
    prompt = encode_prompts(model, ["Question 1?"])[0].ids
    assert tuple(whole[: len(prompt)]) == prompt
    assert train[0].endswith("Answer 1.")


def test_answers_to_one_prompt_are_never_on_both_sides(tiny, tmp_path):
    rows = [{"prompt": f"Question {i % 7}?", "response": f"Answer {i}."} for i in range(120)]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    corpus = Corpus(tiny(), [str(file)])
    asked = [
        {text.split("Question ")[1][0] for text in part}
        for part in (corpus.train(), corpus.held_out())
    ]
    assert asked[0]
    assert asked[1]
    assert not asked[0] & asked[1]


def test_texts_come_from_any_table_and_by_turns(tiny, tmp_path):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n", encoding="utf-8")
    (tmp_path / "b.csv").write_text("body,n\nfour,1\nfive,2\n", encoding="utf-8")
    corpus = Corpus(tiny(), [str(tmp_path / "a.txt")])
    assert corpus.held_out() == ["one"]
    assert list(corpus.train()) == ["two", "three"]
    by_field = Corpus(tiny(), [str(tmp_path / "b.csv")], field="body")
    assert list(by_field.train()) == ["five"]
    with pytest.raises(InputError, match=r"Row 1 of .* has no text; it has body, n"):
        Corpus(tiny(), [str(tmp_path / "b.csv")]).held_out()
    with pytest.raises(InputError, match="has no text in 'words'"):
        Corpus(tiny(), [str(tmp_path / "b.csv")], field="words").held_out()


# --- the command -------------------------------------------------------------------------------


def test_train_and_info_as_a_user_runs_them(tiny_folder, tmp_path, capsys):
    data = tmp_path / "texts.txt"
    data.write_text("\n".join(TEXTS), encoding="utf-8")
    out = tmp_path / "mine"
    command = ["sae", "train", str(tiny_folder()), "--data", str(data), "--out", str(out)]
    command += ["--width", "96", "--k", "8", "--tokens", "2000", "--window", "1000"]
    command += ["--batch", "128", "--context", "32", "--layer", "1", "--device", "cpu"]
    assert run(command) == 0
    printed = capsys.readouterr().out
    assert "mine: 96 features of layer 1" in printed
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "texts.txt"]
    assert run(["sae", "info", str(out), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["schema"] == "modelassay.sae/1"
    assert record["data"] == ["texts.txt"]
    assert run(command) != 0
    assert "exists already; pass --force" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Give text to read"),
        (["--data", "nowhere.jsonl"], "No data file at nowhere.jsonl"),
        (["--data", "other"], "is a folder"),
        (["--data", "no such"], "neither a data file nor a Hub data set"),
        (["--data", "TEXTS", "--kind", "deep"], "--kind is"),
        (["--data", "TEXTS", "--storage", "int8"], "--storage is"),
        (["--data", "TEXTS", "--layer", "99"], "layer must lie"),
        (["--data", "TEXTS", "--out", "my words"], "cannot name an SAE"),
        (["--data", "TEXTS", "--out", "OTHER"], "is there and is no SAE"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tiny_folder, tmp_path, monkeypatch, capsys, arguments, message
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS), encoding="utf-8")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("mine", encoding="utf-8")
    names = {"TEXTS": "texts.txt", "OTHER": "other"}
    arguments = [names.get(argument, argument) for argument in arguments]
    code = run(["sae", "train", str(tiny_folder()), "--device", "cpu", "--quiet", *arguments])
    lines = capsys.readouterr().err.strip().splitlines()
    assert code not in (0, 1)
    assert message in lines[-1]
    assert "Traceback" not in "".join(lines)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["other", "texts.txt"]
