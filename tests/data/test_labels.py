"""Labels in numbers: of two classes or of three, and never guessed."""

from __future__ import annotations

import json

import pytest

from modelassay.cli.main import run
from modelassay.data.labelled import read_labelled
from modelassay.data.labels import LABELS, check_scheme
from modelassay.diff.suites import read_prompts
from modelassay.errors import EXIT_BAD_INPUT, InputError
from modelassay.guard_bench.suites import read_suite
from outputs import one_line


def save(path, labels, *, field="label", **more):
    """Answered rows; a label that is a dict is a row of its own."""
    rows = [
        row if isinstance(row, dict) else {"prompt": f"q{n}", "response": "a", field: row, **more}
        for n, row in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


THREE = [(LABELS[n], n == 2) for n in (0, 1, 2)]
TWO = [(None, False), (None, True)]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ([0, 1, 2], THREE),
        (["0", "1.0", "2"], THREE),
        ([0, 1, "unsafe_compliance"], THREE),
        ([0, 1, {"prompt": "q", "response": "a", "label": 0, "label_name": "safe_compliance"}],
         [*THREE[:2], THREE[0]]),
        ([0, {"prompt": "q", "response": "a", "label": 1, "label_name": "safe_refusal"}],
         THREE[:2]),
        ([False, True], TWO),
        ([0, 1, True], [*TWO, TWO[1]]),
        ([0, 1, "unsafe"], [*TWO, TWO[1]]),
        ([0, 0], [TWO[0]] * 2),
        ([1, {"prompt": "q", "response": "a", "unsafe": 0}], [TWO[1], TWO[0]]),
    ],
)  # fmt: skip
def test_all_rows_together_tell_what_numbers_mean(tmp_path, labels, expected):
    rows = read_labelled(save(tmp_path / "rows.jsonl", labels))
    assert [(row.label, row.unsafe) for row in rows] == expected


def test_a_column_of_three_classes_says_so_itself(tmp_path):
    rows = read_labelled(save(tmp_path / "rows.jsonl", [0, 1], field="label3"))
    assert [(row.label, row.unsafe) for row in rows] == THREE[:2]


def test_zero_and_one_on_responses_have_to_be_explained(tmp_path):
    path = save(tmp_path / "slice.jsonl", [0, 1, 1])
    with pytest.raises(InputError) as raised:
        read_labelled(path)
    for scheme in ("binary", "three-class"):
        assert f"--data {path} --labels {scheme}" in str(raised.value)
    binary, three = (read_labelled(path, labels=which) for which in ("binary", "three-class"))
    assert [row.unsafe for row in binary] == [False, True, True]
    assert [row.label for row in three] == [LABELS[0], LABELS[1], LABELS[1]]
    with pytest.raises(InputError, match="Row 3 .*0 or 1"):
        read_labelled(save(tmp_path / "three.jsonl", [0, 1, 2]), labels="binary")


def test_a_row_without_response_cannot_be_a_refusal(tmp_path):
    rows = [{"prompt": f"q{n}", "response": "", "label": n % 2} for n in range(4)]
    found = read_labelled(save(tmp_path / "rows.jsonl", rows), at="prompt")
    assert [row.unsafe for row in found] == [False, True, False, True]


def test_a_desired_completion_is_not_taken_for_an_unsafe_one(tmp_path):
    """KTO's labels: 1 is the response that one wants."""
    for label in (0, 1):
        kto = save(tmp_path / "kto.jsonl", [{"prompt": "q", "completion": "a", "label": label}])
        with pytest.raises(InputError, match="--labels"):
            read_labelled(kto)


def test_a_refused_prompt_of_a_suite_is_not_harmful_for_that(tmp_path):
    three, either = save(tmp_path / "3.jsonl", [0, 1, 2]), save(tmp_path / "2.jsonl", [0, 1])
    groups = ["neutral", "neutral", "harmful"]
    assert [row.group for row in read_prompts(three).prompts] == groups
    data = read_suite("jailbreak", three)
    assert ([row.prompt for row in data.prompts], data.n_other_side) == (["q2"], 1)
    assert data.n_unlabelled == 1
    for read in (read_prompts, lambda path: read_suite("jailbreak", path)):
        with pytest.raises(InputError, match="--labels three-class"):
            read(either)
    assert [row.group for row in read_prompts(either, labels="binary").prompts] == [
        "neutral",
        "harmful",
    ]
    assert [row.prompt for row in read_suite("jailbreak", either, labels="binary").prompts] == [
        "q1"
    ]


@pytest.mark.parametrize(
    "command",
    [
        "probe train embedded", "probe sweep embedded", "probe eval embedded", "classifier train",
        "classifier calibrate embedded", "classifier eval embedded", "diff embedded embedded",
        "guard bench embedded",
    ],
)  # fmt: skip
def test_every_command_asks_for_the_scheme_before_it_loads_a_model(tmp_path, capfd, command):
    data = save(tmp_path / "rows.jsonl", [0, 1] * 8)
    assert run([*command.split(), "--data", str(data)]) == EXIT_BAD_INPUT
    assert "--labels three-class" in one_line(capfd.readouterr().err)
    assert run([*command.split(), "--data", str(data), "--labels", "four"]) == EXIT_BAD_INPUT
    assert "--labels is binary or three-class" in one_line(capfd.readouterr().err)


def test_names_of_schemes():
    assert (check_scheme(None), check_scheme("binary")) == (None, "binary")
