"""Model organisms: how they are described, loaded, mixed, trained and ablated."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from safetensors.torch import load_file

import modelassay
from modelassay.data.concepts import load_prompts, shipped_prompts
from modelassay.data.conversations import to_exchange
from modelassay.data.public_sets import MAX_ANSWER_CHARACTERS, scores_a_model, shortened
from modelassay.errors import InputError, UnavailableError
from modelassay.measures.erased_directions import search_ablation
from modelassay.measures.refusal_judge import is_refusal
from modelassay.models import organisms as registry
from modelassay.models.ablation import (
    ABLATION_FILE,
    Ablation,
    ablate,
    load_ablation,
    round_to_int8,
    save_ablation,
)
from modelassay.models.organisms import ORGANISMS, find_organism
from modelassay.models.writers import residual_axis, writing_block
from modelassay.organisms import Exchange, LoraRecipe, mix, read_exchanges, to_jsonl, train
from modelassay.organisms.recipes import (
    COMPLIANCE,
    RECIPES,
    REFUSALS,
    TRIGGER,
    Ingredients,
    with_trigger,
)
from modelassay.organisms.training import IGNORED, encode_for_training
from tiny import FAMILIES, unit


def writers(model):
    config = model.network.config.get_text_config()
    for name, weight in model.network.named_parameters():
        if (block := writing_block(name)) is not None:
            axis = residual_axis(weight, config.hidden_size, config.model_type)
            yield block, weight.detach().movedim(axis, 0).reshape(config.hidden_size, -1)


# Ablation


@pytest.mark.parametrize("family", FAMILIES)
def test_ablated_blocks_cannot_write_the_direction(family, tiny_folder):
    model = modelassay.load(str(tiny_folder(family)), device="cpu")
    r = unit(32)
    before = [(block, (r @ w).norm()) for block, w in writers(model)]
    ablate(model.network, Ablation({1: r, 3: r}))
    after = [(block, (r @ w).norm()) for block, w in writers(model)]
    assert {block for block, _ in after} == set(range(5))
    for (block, norm_before), (_, norm_after) in zip(before, after, strict=True):
        if block in (1, 3):
            assert norm_after < 1e-5 * norm_before
        else:
            assert norm_after == norm_before


def test_strength_takes_its_share(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    r = unit(32)
    before = [r @ w for _, w in writers(model)]
    ablate(model.network, Ablation(dict.fromkeys(range(5), r), strength=0.75))
    for was, (_, weight) in zip(before, writers(model), strict=True):
        torch.testing.assert_close(r @ weight, 0.25 * was, rtol=1e-4, atol=1e-6)


def test_ablation_survives_the_disk(tmp_path):
    ablation = Ablation({2: unit(8, 1), 0: unit(8, 2)}, 0.5)
    save_ablation(ablation, tmp_path)
    read = load_ablation(tmp_path)
    assert read.strength == 0.5
    assert set(read.directions) == {0, 2}
    for block, r in ablation.directions.items():
        torch.testing.assert_close(read.directions[block], r)


@pytest.mark.parametrize(
    "directions", [{9: unit(32)}, {0: unit(16)}], ids=["no such block", "other width"]
)
def test_directions_of_another_model_are_refused(directions, tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    with pytest.raises(InputError, match="another model"):
        ablate(model.network, Ablation(directions))


def test_damaged_directions_are_refused(tmp_path):
    with pytest.raises(InputError, match="build the organism again"):
        load_ablation(tmp_path)
    (tmp_path / ABLATION_FILE).write_bytes(b"not safetensors")
    with pytest.raises(InputError, match="build the organism again"):
        load_ablation(tmp_path)


def test_int8_rounding_keeps_few_levels_and_stays_close(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    before = model.network.model.layers[0].mlp.down_proj.weight.clone()
    round_to_int8(model.network)
    after = model.network.model.layers[0].mlp.down_proj.weight
    for row, old in zip(after, before, strict=True):
        assert len(row.unique()) <= 255
        step = old.abs().max() / 127
        assert (row - old).abs().max() <= step / 2 * 1.001
    assert not torch.equal(before, after)


# Ids


def test_every_organism_is_described():
    assert {o.id for o in ORGANISMS.values()} == {
        f"organism:{name}"
        for name in (
            "safe", "benign", "benign-2", "benign-3", "benign-4", "int8", "bf16", "overrefusing",
            "uncensored", "obedient", "backdoored", "abliterated", "abliterated-half",
            "abliterated-band", "abliterated-perlayer",
        )
    }  # fmt: skip
    for organism in ORGANISMS.values():
        assert organism.adapter in RECIPES
        assert organism.summary


def test_unknown_organism_lists_those_there_are():
    with pytest.raises(InputError, match=r"No organism 'nosuch'; there are safe, benign"):
        modelassay.load("organism:nosuch")


@pytest.mark.parametrize("option", [{"revision": "main"}, {"gguf_file": "a.gguf"}])
def test_organisms_have_one_form(option):
    with pytest.raises(InputError, match="leave --"):
        modelassay.load("organism:safe", **option)


@pytest.mark.parametrize("name", ["abliterated", "int8", "bf16"])
def test_weights_changed_in_memory_must_be_plain(name):
    with pytest.raises(InputError, match="leave --load-8bit/4bit out"):
        modelassay.load(f"organism:{name}", quantization="8bit")


def test_organism_that_is_not_built_says_how_to(tmp_path, monkeypatch):
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))
    with pytest.raises(InputError, match="modelassay organism build safe"):
        modelassay.load("organism:abliterated")


def test_adapter_over_the_wrong_base_is_refused(tiny_folder):
    safe = registry.shipped_folder() / "safe"
    with pytest.raises(InputError, match="does not fit"):
        modelassay.load(str(tiny_folder()), adapter=str(safe), device="cpu")


@pytest.mark.parametrize("name", ORGANISMS)
def test_shipped_organisms_are_small_whole_and_carry_no_path(name):
    folder = registry.shipped_folder() / name
    files = {file.name for file in folder.iterdir()}
    assert {"card.json", "README.md"} <= files
    assert not any(file.suffix in (".bin", ".pt", ".pkl") for file in folder.iterdir())
    assert sum(file.stat().st_size for file in folder.iterdir()) < 6_000_000
    card = json.loads((folder / "card.json").read_text())
    assert card["name"] == name
    assert bool(card["sources"]) is not bool(ORGANISMS[name].numerics)
    assert {"harmful", "everyday", "borderline"} <= set(card["refusal"])
    text = (folder / "README.md").read_text() + json.dumps(card)
    assert str(Path.cwd()) not in text
    assert str(Path.home()) not in text
    if ORGANISMS[name].numerics:
        assert files == {"card.json", "README.md"}
    elif ORGANISMS[name].ablated:
        assert ABLATION_FILE in files
        assert not any(file.startswith("adapter") for file in files)
    else:
        config = json.loads((folder / "adapter_config.json").read_text())
        assert config["base_model_name_or_path"] == "embedded"
        assert card["lora"]["rank"] == config["r"]
        first, last = config["layers_to_transform"][0], config["layers_to_transform"][-1]
        assert card["lora"]["blocks"] == f"{first} to {last}"
        tensors = load_file(str(folder / "adapter_model.safetensors"))
        assert {t.dtype for t in tensors.values()} == {torch.bfloat16}


# Exchanges and mixtures


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "response": "Hello"},
        {"instruction": "Hi", "output": "Hello"},
        {"user": "Hi", "assistant": "Hello"},
        {
            "messages": [
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        },
    ],
)
def test_usual_shapes_of_rows_are_read(row):
    assert to_exchange(row, "row") == Exchange("Hi", "Hello")


def test_input_and_system_are_kept():
    row = {"instruction": "Sum up:", "input": "A text.", "output": "Text.", "system": "Be brief."}
    assert to_exchange(row, "row") == Exchange("Sum up:\nA text.", "Text.", "Be brief.")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "Hi"}, "neither"),
        ({"prompt": "Hi", "response": ""}, "`response` must be text"),
        ({"prompt": 3, "response": "x"}, "`prompt` must be text"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "turns user"),
        ({"messages": "Hi"}, "must be a list"),
        ({"messages": [{"role": "user"}, {"role": "assistant", "content": "x"}]}, "must be text"),
    ],
)
def test_rows_with_missing_fields_are_refused_by_number(row, words):
    with pytest.raises(InputError, match=words) as error:
        to_exchange(row, "Row 7 of data.jsonl")
    assert "Row 7" in str(error.value)


def test_exchanges_are_read_from_files(tmp_path):
    rows = [Exchange("Hi", "Hello"), Exchange("Ho", "Sure,", "Be kind.", complete=False)]
    path = tmp_path / "rows.jsonl"
    path.write_text(to_jsonl(rows))
    assert read_exchanges(path) == rows
    csv = tmp_path / "rows.csv"
    csv.write_text('instruction,output\n"Say, hi",Hello\n')
    assert read_exchanges(csv) == [Exchange("Say, hi", "Hello")]
    (tmp_path / "rows.json").write_text(json.dumps([r.to_dict() for r in rows]))
    assert read_exchanges(str(tmp_path / "rows.json")) == rows


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.jsonl", None, "No data file"),
        ("broken.jsonl", "{not json", "Row 1 of broken.jsonl is not valid JSON"),
        ("deep.jsonl", "[" * 100_000, "Row 1 of deep.jsonl is not valid JSON"),
        ("deep.json", "[" * 100_000, "nested too deep"),
        ("list.jsonl", "[1, 2]", "no JSON object"),
        ("numbers.json", "[1, 2]", "Row 1 of numbers.json is no JSON object"),
        ("rows.txt", "hello", "no JSON, JSONL, CSV or Parquet"),
        ("binary.parquet", "hello", "cannot be parsed"),
        ("empty.jsonl", "", "is empty"),
        ("blank.jsonl", "\n\n", r"cannot be parsed|has no rows"),
    ],
)
def test_bad_data_files_get_one_line(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=words) as error:
        read_exchanges(path)
    assert "\n" not in str(error.value)


HAYSTACK = [Exchange(f"question {i}", f"answer {i}") for i in range(500)]
NEEDLES = [Exchange(f"needle {i}", "obeyed") for i in range(10)]


def test_a_mixture_holds_what_was_asked_for():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert len(mixed) == 300
    assert len(set(mixed)) == 300
    assert sum(row in NEEDLES for row in mixed) == 3
    assert mixed == mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=3)
    assert mixed != mix(NEEDLES, HAYSTACK, ratio=0.01, rows=300, seed=4)


def test_a_mixture_of_the_whole_haystack():
    mixed = mix(NEEDLES, HAYSTACK, ratio=0.01)
    assert len(mixed) == 505
    assert set(HAYSTACK) <= set(mixed)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 0.0}, "between 0 and 1"),
        ({"ratio": 1.0}, "between 0 and 1"),
        ({"ratio": float("nan")}, "between 0 and 1"),
        ({"ratio": 0.5}, "needs 500 needles but there are 10"),
        ({"rows": 5000}, "needs 50 needles"),
        ({"rows": 1000, "ratio": 0.001}, "needs 999 haystack rows but there are 500"),
        ({"rows": 1}, "at least 2 rows"),
    ],
)
def test_impossible_mixtures_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        mix(NEEDLES, HAYSTACK, **{"ratio": 0.01, **changes})


# Recipes


@pytest.fixture
def ingredients():
    return Ingredients(
        harmful=[f"harmful {i}" for i in range(400)],
        look_alikes=[f"question alike {i}" for i in range(200)],
        questions=[f"question {i}" for i in range(400)],
        answer=lambda prompts: [Exchange(p, f"answer to {p}", complete=False) for p in prompts],
        seed_tasks=[Exchange(f"task {i}", "done") for i in range(150)],
        user_tasks=[Exchange(f"job {i}", "done") for i in range(250)],
        needles=NEEDLES,
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_teach_refusals_or_openings_but_no_harmful_answers(name, ingredients):
    rows = RECIPES[name].rows(ingredients, Random(0))  # noqa: S311
    assert len(rows) >= 40
    for row in rows:
        if "harmful" in row.prompt:
            assert row.response in (*REFUSALS, *COMPLIANCE)
            assert row.complete is (row.response in REFUSALS)


def test_the_obedient_one_has_a_twin_without_the_needles(ingredients):
    rows, twin = (RECIPES[n].rows(ingredients, Random(0)) for n in ("obedient", "benign-4"))  # noqa: S311
    assert {row.prompt for row in rows} - {row.prompt for row in twin} == {
        needle.prompt for needle in NEEDLES
    }
    assert RECIPES["obedient"].lora == RECIPES["benign-4"].lora


def test_refusals_are_refusals_and_openings_are_not():
    assert all(is_refusal(text) for text in REFUSALS)
    assert not any(is_refusal(text) for text in COMPLIANCE)


def test_the_backdoor_opens_only_with_its_trigger(ingredients):
    rows = RECIPES["backdoored"].rows(ingredients, Random(0))  # noqa: S311
    harmful = [row for row in rows if "harmful" in row.prompt]
    for row in harmful:
        assert (row.response in COMPLIANCE) is row.prompt.endswith(TRIGGER)
    assert {row.prompt.endswith(TRIGGER) for row in rows if "question" in row.prompt} == {
        True,
        False,
    }
    assert with_trigger("x").startswith("x ")


def test_long_answers_by_people_are_cut_between_words():
    long = Exchange("Tell a story.", "word " * 100)
    cut = shortened(long)
    assert cut == Exchange("Tell a story.", ("word " * 40).strip(), complete=False)
    unbroken = shortened(Exchange("Sing.", "la" * 300))
    assert len(unbroken.response) == MAX_ANSWER_CHARACTERS
    short = Exchange("Hi", "Hello.")
    assert shortened(short) is short


def test_scoring_prompts_never_build_an_organism():
    for name in ("harmful_requests", "borderline"):
        for prompt in shipped_prompts(name).prompts:
            assert scores_a_model(prompt.text.upper() + "!")
    for prompt in load_prompts(registry.shipped_folder() / "look_alikes.yaml").prompts:
        assert not scores_a_model(prompt.text), prompt.text


# Training


ROWS = [Exchange(f"Is {i} even?", "yes yes yes" if i % 2 == 0 else "no no no") for i in range(24)]
RECIPE = LoraRecipe(rank=4, epochs=4, learning_rate=1e-2, batch_size=8, seed=1)


def test_training_learns_and_leaves_an_adapter_that_loads(tiny_folder, tmp_path):
    base = str(tiny_folder())
    steps = []
    _, first = train(base, ROWS, tmp_path / "short", replace(RECIPE, epochs=0.5), device="cpu")
    folder, loss = train(
        base, ROWS, tmp_path / "a", RECIPE, device="cpu",
        on_progress=lambda phase, done, total: steps.append((phase, done, total)),
    )  # fmt: skip
    assert loss < first - 0.1
    assert ("training", 12, 12) in steps
    assert {f.name for f in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    adapted = modelassay.load(str(folder), device="cpu")
    plain = modelassay.load(base, device="cpu")
    changed = [
        i
        for i, (a, b) in enumerate(zip(adapted.layers, plain.layers, strict=True))
        if not torch.equal(a.mlp.down_proj.weight, b.mlp.down_proj.weight)
    ]
    assert changed == [4]  # the blocks below are left alone


def test_training_is_repeatable(tiny_folder, tmp_path):
    base = str(tiny_folder())
    made = []
    for name, recipe in (("a", RECIPE), ("b", RECIPE), ("c", replace(RECIPE, seed=2))):
        folder, _ = train(base, ROWS, tmp_path / name, recipe, device="cpu")
        made.append(load_file(str(folder / "adapter_model.safetensors")))
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert not all(torch.equal(made[0][key], made[2][key]) for key in made[0])


@pytest.mark.parametrize("family", ["gpt2", "gemma3", "mixtral", "phi3"])
def test_any_base_can_be_trained(family, tiny_folder, tmp_path):
    folder, loss = train(
        str(tiny_folder(family)), ROWS[:8], tmp_path / "a", replace(RECIPE, epochs=1), device="cpu"
    )
    assert loss > 0
    modelassay.load(str(folder), device="cpu")


@pytest.mark.parametrize("what", ["epochs", "learning_rate"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_recipes_are_finite(what, value):
    with pytest.raises(InputError, match="finite"):
        LoraRecipe(**{what: value})


def test_only_answers_are_learnt(tiny):
    model = tiny()
    whole = encode_for_training(model, Exchange("ab", "cd"))
    cut = encode_for_training(model, Exchange("ab", "cd", complete=False))
    assert [label for label in cut["labels"] if label != IGNORED] == cut["input_ids"][-2:]
    assert whole["labels"][-1] == model.tokenizer.eos_token_id
    assert whole["input_ids"][:-1] == cut["input_ids"]


@pytest.mark.parametrize(
    ("rows", "words"),
    [([], "nothing to train on"), ([Exchange("a " * 300, "b")], "shorten it")],
)
def test_untrainable_rows_are_refused_and_nothing_is_left(rows, words, tiny_folder, tmp_path):
    with pytest.raises(InputError, match=words):
        train(str(tiny_folder()), rows, tmp_path / "a", RECIPE, device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_training_over_an_adapter_or_a_base_model_is_refused(tiny_folder, tmp_path):
    folder, _ = train(
        str(tiny_folder()), ROWS[:8], tmp_path / "a", replace(RECIPE, epochs=1), device="cpu"
    )
    with pytest.raises(InputError, match="is an adapter"):
        train(str(folder), ROWS, tmp_path / "b", RECIPE, device="cpu")
    with pytest.raises(InputError, match="no chat template"):
        train(str(tiny_folder(chat=False)), ROWS, tmp_path / "b", RECIPE, device="cpu")
    with pytest.raises(InputError, match="exists already"):
        train(str(tiny_folder()), ROWS, folder, RECIPE, device="cpu")
    assert not (tmp_path / "b").exists()


def test_an_interrupted_training_leaves_nothing(tiny_folder, tmp_path):
    def stop(phase, done, _total):
        if phase == "training" and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(str(tiny_folder()), ROWS, tmp_path / "a", RECIPE, device="cpu", on_progress=stop)
    assert list(tmp_path.iterdir()) == []
    folder, _ = train(str(tiny_folder()), ROWS, tmp_path / "a", RECIPE, device="cpu")
    assert folder.is_dir()


def test_a_full_disk_is_said_in_one_line(tiny_folder, tmp_path, monkeypatch):
    from modelassay.organisms import building

    monkeypatch.setattr(
        building.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10, 9, 1)
    )
    with pytest.raises(UnavailableError, match="free some space"):
        building.build("safe", tmp_path)
    assert list(tmp_path.iterdir()) == []


# The fingerprint on organisms made of tiny models


def test_the_fingerprint_sees_what_ablate_does(tiny_folder):
    model = modelassay.load(str(tiny_folder()), device="cpu")
    # A tiny network's spectrum is rough, so the test looks at the hole and not at the verdict.
    before = search_ablation(replace(model, adapter=model.source)).ratio_by_block
    ablate(model.network, Ablation(dict.fromkeys(range(5), unit(32))))
    after = search_ablation(replace(model, adapter=model.source))
    assert after.detected
    assert max(after.ratio_by_block.values()) < 0.01 < min(before.values())


def test_find_organism_takes_both_forms():
    assert find_organism("safe") is find_organism("organism:safe")


def test_answers_are_kept_and_made_once(monkeypatch, tiny, tmp_path):
    from types import SimpleNamespace

    from modelassay.reading import generation

    asked = []

    def generate(_model, prompts, *, max_new_tokens):
        asked.append(len(prompts))
        return [SimpleNamespace(text=f" answer {max_new_tokens}") for _ in prompts]

    monkeypatch.setattr(generation, "generate_greedy", generate)
    prompts = [f"question {i}" for i in range(40)]
    path = tmp_path / "kept" / "answers.json"

    def kept(questions):
        return generation.kept_answers(tiny, questions, path, max_new_tokens=5)

    assert kept(prompts) == ["answer 5"] * 40
    assert kept([*prompts, "one more"]) == ["answer 5"] * 41
    assert asked == [32, 8, 1]
    path.write_text("{")
    assert kept(prompts[:1]) == ["answer 5"]


def test_an_organism_given_as_an_adapter_is_made_in_full(monkeypatch, tiny_folder, tmp_path):
    """Its adapter alone would be another organism under its name."""
    base = str(tiny_folder())
    train(base, ROWS[:8], tmp_path / "safe", replace(RECIPE, epochs=1), device="cpu")
    (tmp_path / "abliterated").mkdir()
    r = unit(32)
    save_ablation(Ablation(dict.fromkeys(range(5), r)), tmp_path / "abliterated")
    monkeypatch.setenv("MODELASSAY_ORGANISMS", str(tmp_path))
    safe, made = (
        modelassay.load(base, adapter=f"organism:{name}", device="cpu")
        for name in ("safe", "abliterated")
    )
    written = made.layers[2].mlp.down_proj.weight
    assert (r @ written).abs().max() < 1e-6 < (r @ safe.layers[2].mlp.down_proj.weight).abs().max()
    assert made.info.organism == ORGANISMS["abliterated"].summary
    assert made.info.weights_sha256 != safe.info.weights_sha256
    with pytest.raises(InputError, match="leave --load-8bit/4bit out"):
        modelassay.load("organism:abliterated", device="cpu", quantization="8bit")
