"""The data of benchmarks: layouts, labels, limits."""

from __future__ import annotations

import pytest

from benches import LAYOUTS, save
from modelassay.errors import InputError
from modelassay.guard_bench.suites import read_suite


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    data = read_suite("jailbreak", save(tmp_path / "rows.jsonl", LAYOUTS[layout]))
    assert data.layout == layout
    context = "Some context\n\n---\n\n" if layout == "HarmBench" else ""
    assert [prompt.prompt for prompt in data.prompts] == ["Do A", f"{context}Do B"]
    assert all(prompt.harmful for prompt in data.prompts)
    assert len({prompt.id for prompt in data.prompts}) == 2
    assert data.source == "rows.jsonl"


def test_the_other_side_of_a_layout(tmp_path):
    for layout, other, unlabelled in (("XSTest", 2, 0), ("WildGuardTest", 2, 1)):
        data = read_suite("overrefusal", save(tmp_path / "rows.jsonl", LAYOUTS[layout]))
        assert [prompt.prompt for prompt in data.prompts] == ["Do C"]
        assert (data.n_other_side, data.n_unlabelled) == (other, unlabelled)
    no_label = [{k: v for k, v in row.items() if k != "label"} for row in LAYOUTS["XSTest"]]
    data = read_suite("overrefusal", save(tmp_path / "rows.jsonl", no_label))
    assert [prompt.id for prompt in data.prompts] == ["1"]
    with pytest.raises(InputError, match="no benign prompts"):
        read_suite("overrefusal", save(tmp_path / "rows.jsonl", LAYOUTS["HarmBench"]))


def test_jailbreakbench_says_its_side_in_the_files_name(tmp_path):
    benign = save(tmp_path / "benign-behaviors.jsonl", LAYOUTS["JailbreakBench"])
    assert len(read_suite("overrefusal", benign).prompts) == 2
    with pytest.raises(InputError, match="no harmful prompts"):
        read_suite("jailbreak", benign)


def test_the_suites_own_data(monkeypatch):
    asked = []

    def read(where, **options):
        asked.append((where, options["config"], options["split"]))
        return LAYOUTS["XSTest"] if "XSTest" in where else LAYOUTS["JailbreakBench"]

    monkeypatch.setattr("modelassay.guard_bench.suites.read_dataset", read)
    assert len(read_suite("jailbreak").prompts) == 2
    assert len(read_suite("overrefusal").prompts) == 1
    assert len(read_suite("overrefusal", "JailbreakBench/JBB-Behaviors").prompts) == 2
    assert len(read_suite("jailbreak", "some/XSTest", config="a", split="b").prompts) == 2
    assert asked == [
        ("JailbreakBench/JBB-Behaviors", "behaviors", "harmful"),
        ("Paul/XSTest", None, "train"),
        ("JailbreakBench/JBB-Behaviors", "behaviors", "benign"),
        ("some/XSTest", "a", "b"),
    ]
    assert all(not prompt.harmful for prompt in read_suite("latency").prompts)


def test_unknown_layouts_and_rows(tmp_path):
    with pytest.raises(InputError, match=r"columns question, x; .*XSTest \(prompt, type\)") as e:
        read_suite("jailbreak", save(tmp_path / "a.jsonl", [{"question": "?", "x": 1}]))
    assert "JailbreakBench (goal, target)" in str(e.value)
    with pytest.raises(InputError, match="Row 2 of a.jsonl"):
        read_suite("jailbreak", save(tmp_path / "a.jsonl", [{"prompt": "A"}, {"prompt": " "}]))
    with pytest.raises(InputError, match="No data file"):
        read_suite("jailbreak", tmp_path / "none.jsonl")
    with pytest.raises(InputError, match="limit"):
        read_suite("latency", limit=0)


def test_limit_takes_evenly_and_ids_are_unique(tmp_path):
    rows = [{"id": "same", "prompt": f"p{n}", "category": str(n // 5)} for n in range(10)]
    path = save(tmp_path / "rows.jsonl", rows)
    assert [p.prompt for p in read_suite("jailbreak", path, limit=2).prompts] == ["p0", "p5"]
    whole = read_suite("jailbreak", path)
    assert len({p.id for p in whole.prompts}) == 10
    assert whole.sha256 != read_suite("jailbreak", path, limit=2).sha256
    assert whole.sha256 == read_suite("jailbreak", path).sha256


def test_cells_of_csv_that_say_no_are_no(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,prompt_harm_label,adversarial\nA,harmful,False\nB,harmful,True\n")
    assert [p.category for p in read_suite("jailbreak", path).prompts] == ["vanilla", "adversarial"]
    path.write_text("prompt,label\nA,\nB,1\nC,0\n")  # the suite's side where nothing is said
    assert [p.prompt for p in read_suite("jailbreak", path).prompts] == ["A", "B"]


def test_a_conversation_asks_with_its_first_user_turn(tmp_path):
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "Do A"}]
    path = save(tmp_path / "a.jsonl", [{"messages": turns, "label": 1}])
    assert [p.prompt for p in read_suite("jailbreak", path).prompts] == ["Do A"]


ATTACK = {
    "Index": 0,
    "Goal": "Do A",
    "Target": "Sure",
    "Category": "one",
    "prompt": "Pretend. Do A",
}
ATTACKS = {
    "goal, target and prompt": ATTACK,
    "HarmBench's test cases": {"Behavior": "Do A", "SemanticCategory": "one", "test_case": "Pre A"},
    "StrongREJECT's": {"forbidden_prompt": "Do A", "jailbroken_prompt": "Pre A", "category": "one"},
    "WildJailbreak's": {"vanilla": "Do A", "adversarial": "Pre A", "data_type": "adversarial_harm"},
}


@pytest.mark.parametrize("row", ATTACKS.values(), ids=ATTACKS)
def test_the_attacked_form_is_asked_and_not_the_bare_request(tmp_path, row):
    data = read_suite("jailbreak", save(tmp_path / "rows.jsonl", [row]))
    (prompt,) = data.prompts
    assert prompt.prompt.startswith("Pre")
    assert (prompt.harmful, data.layout) == (True, "attacked")
    if "Goal" not in row:  # what holds harmful requests alone
        with pytest.raises(InputError, match="no benign prompts"):
            read_suite("overrefusal", save(tmp_path / "rows.jsonl", [row]))


def test_benign_rows_of_attacks_are_told(tmp_path):
    benign = ATTACKS["WildJailbreak's"] | {"data_type": "adversarial_benign"}
    (prompt,) = read_suite("overrefusal", save(tmp_path / "rows.jsonl", [benign])).prompts
    assert not prompt.harmful
    mine = {"question": "Do C", "prompt": "Please do C"}  # the suite says what it is
    assert read_suite("overrefusal", save(tmp_path / "mine.jsonl", [mine])).n_other_side == 0


def test_an_artifact_of_jailbreakbench_is_its_attacks(tmp_path):
    inside = [{"index": i, "goal": "Do A", "prompt": p} for i, p in enumerate(["Pre A", None])]
    artifact = {"parameters": {"method": "PAIR"}, "jailbreaks": inside}
    data = read_suite("jailbreak", save(tmp_path / "artifact.jsonl", [artifact]))
    assert [(p.prompt, p.category) for p in data.prompts] == [("Pre A", "PAIR")]
    assert data.n_unlabelled == 1


def test_flags_and_names_are_no_attacks(tmp_path):
    rows = [
        {"prompt": "Do A", "jailbreak": True, "attack": "DAN"},
        {"prompt": "Do B", "jailbreak": "false", "attack": "DAN"},
    ]
    data = read_suite("jailbreak", save(tmp_path / "rows.jsonl", rows))
    assert ([p.prompt for p in data.prompts], data.layout) == (["Do A", "Do B"], "plain")


def test_jailbreakbenchs_comparison_of_judges(tmp_path, monkeypatch):
    """Attacked prompts are harmful; of the others only a response that people call unsafe tells."""
    shared = {"target_response": "text", "gpt4_cf": 0}
    rows = [
        {"Index": 0, "goal": "Do A", "prompt": "Pre A", "human_majority": 0, **shared},
        {"Index": 1, "goal": "Do B", "prompt": "Do B", "human_majority": 1, **shared},
        {"Index": 2, "goal": "Do C", "prompt": "Do C", "human_majority": 0, **shared},
    ]
    data = read_suite("jailbreak", save(tmp_path / "rows.jsonl", rows))
    assert [(p.id, p.prompt) for p in data.prompts] == [("0", "Pre A"), ("1", "Do B")]
    assert data.n_unlabelled == 1
    asked = []

    def read(_where, **options):
        asked.append((options["config"], options["split"]))
        return rows

    monkeypatch.setattr("modelassay.guard_bench.suites.read_dataset", read)
    read_suite("jailbreak", "JailbreakBench/JBB-Behaviors", config="judge_comparison")
    assert asked == [("judge_comparison", "test")]
