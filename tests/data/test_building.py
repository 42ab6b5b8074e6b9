"""Building: samples, repeats, kills, and what cannot be built."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from modelassay.cli.main import run
from modelassay.data import building
from modelassay.data.building import BuildOptions, build_data
from modelassay.data.labelled import read_labelled
from modelassay.errors import InputError, UnavailableError


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path_factory.mktemp("cache")))


def save(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def tails(n, unsafe=lambda i: i % 4 == 0):
    """Rows in the layout of BeaverTails."""
    return [
        {"prompt": f"Ask {i}", "response": f"Say {i}.", "category": {}, "is_safe": not unsafe(i)}
        for i in range(n)
    ]


def rows_of(out):
    return [json.loads(line) for line in out.read_text().splitlines()]


def prompts_of(out):
    return [row["prompt"] for row in rows_of(out)]


def test_first_rows_and_drawn_rows(tmp_path):
    source = save(tmp_path / "a.jsonl", tails(100))
    first, drawn, again, other = (tmp_path / f"{i}.jsonl" for i in range(4))
    build_data(source, first, BuildOptions(limit=10))
    assert prompts_of(first) == [f"Ask {i}" for i in range(10)]
    built = build_data(source, drawn, BuildOptions(limit=10, seed=1))
    assert (built.rows, built.rows_read, built.sampled) == (10, 100, True)
    build_data(source, again, BuildOptions(limit=10, seed=1))
    build_data(source, other, BuildOptions(limit=10, seed=2))
    assert drawn.read_text() == again.read_text()
    assert drawn.read_text() != other.read_text()
    numbers = [row["row"] for row in rows_of(drawn)]
    assert numbers == sorted(numbers)
    assert max(numbers) > 20  # from all over the data
    shuffled = save(tmp_path / "a2.jsonl", tails(100)[::-1])
    build_data(shuffled, tmp_path / "r.jsonl", BuildOptions(limit=10, seed=1))
    assert set(prompts_of(tmp_path / "r.jsonl")) == set(prompts_of(drawn))  # whatever the order


def test_a_seeded_draw_is_even(tmp_path):
    """Over many seeds each row is drawn about as often as any other."""
    source = save(tmp_path / "a.jsonl", tails(20))
    drawn = Counter()
    for seed in range(60):
        out = tmp_path / f"{seed}.jsonl"
        build_data(source, out, BuildOptions(limit=5, seed=seed))
        drawn.update(prompts_of(out))
    assert len(drawn) == 20
    assert 4 <= min(drawn.values()) <= max(drawn.values()) <= 30  # 15 on average


def test_balanced(tmp_path):
    source = save(tmp_path / "a.jsonl", tails(100))
    out = tmp_path / "out.jsonl"
    built = build_data(source, out, BuildOptions(limit=30, balanced=True))
    assert built.labels == {"safe": 15, "unsafe": 15}
    rare = save(tmp_path / "b.jsonl", tails(100, lambda i: i in (7, 50, 99)))
    built = build_data(rare, out, BuildOptions(limit=30, balanced=True), force=True)
    assert built.labels == {"safe": 3, "unsafe": 3}
    assert {"Ask 7", "Ask 50", "Ask 99"} <= set(prompts_of(out))


def test_repeats_and_rows_to_leave_out(tmp_path):
    rows = [*tails(3), *tails(3), {**tails(1)[0], "prompt": " ask  0 ", "response": "Other."}]
    source, out = save(tmp_path / "a.jsonl", rows), tmp_path / "out.jsonl"
    assert build_data(source, out).left_out == {"its prompt was taken already": 4}
    built = build_data(source, out, BuildOptions(per_prompt=0), force=True)
    assert built.left_out == {"prompt and response were taken already": 3}
    assert built.rows == 4
    test_set = save(
        tmp_path / "test.jsonl", [{"prompt": "ASK 1", "response": "x", "label": "safe"}]
    )
    build_data(source, out, without=test_set, force=True)
    assert prompts_of(out) == ["Ask 0", "Ask 2"]


def test_rows_that_cannot_be_used_are_counted(tmp_path):
    lines = [json.dumps(row) for row in tails(3)]
    lines[1:1] = ["{half", json.dumps({**tails(1)[0], "prompt": 5, "response": "x"})]
    lines += [json.dumps({**tails(9)[8], "is_safe": None}), json.dumps({"prompt": "alone"})]
    source, out = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    source.write_text("\n".join(lines) + "\n")
    built = build_data(str(source), out)
    assert built.left_out == {
        "it cannot be read": 1,
        "a text in it cannot be used (empty, too long or no text)": 2,
        "it has no label that people agree on": 1,
    }
    assert built.first_left_out["it cannot be read"] == 2
    assert built.rows == 3


class Killed(BaseException):
    """What a kill looks like from inside."""


@pytest.mark.parametrize(
    "options",
    [
        BuildOptions(),
        BuildOptions(limit=40),
        BuildOptions(limit=12, seed=3),
        BuildOptions(limit=12, balanced=True),
    ],
)
def test_a_killed_build_goes_on(tmp_path, monkeypatch, options):
    """Killed anywhere, with a torn line, it ends with the file of an undisturbed build."""
    monkeypatch.setattr(building, "MARK_EVERY", 7)
    rows = [*tails(30), *tails(30), *({**row, "prompt": row["prompt"] * 2} for row in tails(30))]
    lines = [json.dumps(row) for row in rows]
    lines[2] = lines[11] = lines[60] = "{half"
    source, whole, out = tmp_path / "a.jsonl", tmp_path / "w.jsonl", tmp_path / "o.jsonl"
    source.write_text("\n".join(lines) + "\n")
    source = str(source)
    expected = build_data(source, whole, options)
    assert expected.first_left_out["it cannot be read"] == 3
    real = building.open_rows

    def killing_at(last):
        def open_rows(*args, **kwargs):
            for number, row in real(*args, **kwargs):
                if number == last:
                    raise Killed
                yield number, row

        return open_rows

    for last in (4, 20, 55, 80):
        monkeypatch.setattr(building, "open_rows", killing_at(last))
        try:
            build_data(source, out, options)
        except Killed:
            assert not out.exists()
            with (tmp_path / "o.jsonl.progress").open("ab") as torn:
                torn.write(b'{"row": {"pro')
    monkeypatch.setattr(building, "open_rows", real)
    built = expected if out.exists() else build_data(source, out, options)
    assert out.read_text() == whole.read_text()
    assert (built.left_out, built.first_left_out) == (expected.left_out, expected.first_left_out)
    assert built.resumed_at > 0 or options.limit == 40
    assert not (tmp_path / "o.jsonl.progress").exists()


def test_a_build_of_other_options_is_not_mixed_in(tmp_path, monkeypatch):
    source, out = save(tmp_path / "a.jsonl", tails(20)), tmp_path / "o.jsonl"

    def fails(*_args, **_kwargs):
        yield 1, tails(1)[0]
        raise UnavailableError("The Hub is away.")

    monkeypatch.setattr(building, "open_rows", fails)
    with pytest.raises(UnavailableError):
        build_data(source, out)
    monkeypatch.undo()
    monkeypatch.setenv("MODELASSAY_CACHE", str(tmp_path / "cache"))
    with pytest.raises(InputError, match=r"holds a build of another run \(other options\)"):
        build_data(source, out, BuildOptions(limit=3))
    assert build_data(source, out, BuildOptions(limit=3), force=True).rows == 3


def test_a_column_says_what_its_numbers_mean(tmp_path):
    rows = [{"prompt": f"A{n}", "response": "x", "label3": n} for n in range(3)]
    source, out = save(tmp_path / "a.jsonl", rows), tmp_path / "o.jsonl"
    build_data(source, out)
    expected = ["safe_compliance", "safe_refusal", "unsafe_compliance"]
    assert [row["label"] for row in rows_of(out)] == expected


def test_own_labelled_rows(tmp_path):
    rows = [
        {"prompt": "A", "response": "I can't help with that.", "label": 0},
        {"prompt": "B", "response": "Here it is.", "label": 0},
        {"prompt": "C", "response": "Do this.", "label": 1},
    ]
    source, out = save(tmp_path / "a.jsonl", rows), tmp_path / "o.jsonl"
    with pytest.raises(InputError, match="a.jsonl --labels binary` if 1 means"):
        build_data(source, out)
    build_data(source, out, BuildOptions(labels="binary"))
    assert [row["label"] for row in rows_of(out)] == ["safe", "safe", "unsafe"]
    from modelassay.measures.refusal_judge import is_refusal

    build_data(source, out, BuildOptions(labels="binary"), is_refusal=is_refusal, force=True)
    expected = ["safe_refusal", "safe_compliance", "unsafe_compliance"]
    assert [row["label"] for row in rows_of(out)] == expected
    assert [row.label for row in read_labelled(out)] == expected
    build_data(str(out), tmp_path / "again.jsonl")  # names need no --labels
    assert [row["label"] for row in rows_of(tmp_path / "again.jsonl")] == expected


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--seed", "1"], "say how large with --limit"),
        (["--balanced"], "say how large with --limit"),
        (["--at", "end"], "--at is prompt or answer, not 'end'"),
        (["--at", "prompt", "--three-class"], "leave --three-class out"),
        (["--split", "train"], "not of a file"),
        (["--labels", "four"], "--labels is binary or three-class"),
        (["--without", "no/such.jsonl"], "No data file"),
        (["--balanced", "--limit", "1"], "less than one row for each of 2 labels"),
    ],
)
def test_command_refuses(tmp_path, capfd, options, says):
    source, out = save(tmp_path / "a.jsonl", tails(8)), tmp_path / "o.jsonl"
    assert run(["data", "build", source, "--out", str(out), *options]) == 64
    error = capfd.readouterr().err.splitlines()
    assert says in error[-1]
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_command(tmp_path, capfd):
    source, out = save(tmp_path / "a.jsonl", tails(8)), tmp_path / "o.jsonl"
    command = ["data", "build", source, "--out", str(out), "-q"]
    assert run([*command, "--licence", "cc0-1.0"]) == 0
    shown = " ".join(capfd.readouterr().out.split())  # lines break where the folder's name ends
    assert "8 rows of a.jsonl" in shown
    assert "licence cc0-1.0" in shown
    assert rows_of(out)[0] == {
        "prompt": "Ask 0", "response": "Say 0.", "label": "unsafe", "source": "a.jsonl",
        "licence": "cc0-1.0", "row": 1,
    }  # fmt: skip
    assert run(command) == 64
    assert "is there already" in capfd.readouterr().err
    assert run([*command, "--force", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["labels"] == {"safe": 6, "unsafe": 2}
    assert run(["data", "build", source, "--out", source, "--force"]) == 64
    assert "is the data itself" in capfd.readouterr().err
    assert len(rows_of(tmp_path / "a.jsonl")) == 8
    one = save(tmp_path / "b.jsonl", tails(8, lambda i: False))
    assert run([*command[:2], one, *command[3:], "--force", "--balanced", "--limit", "4"]) == 64
    assert "one label alone (safe)" in capfd.readouterr().err
    assert run(["data", "sets", "--json"]) == 0
    sets = {row["name"]: row for row in json.loads(capfd.readouterr().out)}
    assert sets["wildguardmix"]["gated"] is True
    assert sets["toxicchat"]["labels_at"] == ["prompt"]
