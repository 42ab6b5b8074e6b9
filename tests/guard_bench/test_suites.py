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
