"""Concept files: what ships is what it claims to be, what strangers give is checked."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import yaml

from modelassay.data.concepts import (
    MODES,
    concept_set_hash,
    concepts_for,
    dump_concepts,
    load_concepts,
    shipped_concepts,
    shipped_prompts,
)
from modelassay.errors import InputError
from modelassay.measures.bag_of_words import measure_bag_of_words

JUDGED = ("harmful_content", "injection_resistance", "refusal_capability", "truthfulness")


def pairs(n):
    return [
        {"positive": f"Take number {i} away", "negative": f"Add number {i} here"} for i in range(n)
    ]


def responses(n):
    return [{"prompt": f"Is {i} even?", "positive": "Yes.", "negative": "No."} for i in range(n)]


def write(tmp_path: Path, content: object, name: str = "c.yaml") -> Path:
    path = tmp_path / name
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", [*JUDGED, "control_topic"])
def test_shipped_concepts_are_large_and_matched(name):
    concept = shipped_concepts()[name]
    assert len(concept.pairs) >= 64
    assert concept.provenance.license == "Apache-2.0"
    assert concept.control == (name == "control_topic")
    for pair in concept.pairs:
        a, b = pair.positive.split(), pair.negative.split()
        assert abs(len(a) - len(b)) <= 2, pair
        assert a[0] == b[0], pair
        assert pair.positive[-1] == pair.negative[-1], pair


@pytest.mark.parametrize("name", JUDGED)
def test_words_alone_give_nothing_away(name):
    words = measure_bag_of_words(shipped_concepts()[name])
    assert words.p_value > 0.1
    assert 0.4 < words.auroc < 0.58
    assert words.uneven_lengths == 0


def test_a_bag_of_words_finds_what_is_in_the_words():
    words = measure_bag_of_words(shipped_concepts()["control_topic"])
    assert words.p_value < 0.05
    assert words.auroc > 0.55


def test_kinds_of_harm_are_many():
    concepts = shipped_concepts()
    assert len({pair.category for pair in concepts["harmful_content"].pairs}) >= 10
    assert len({pair.category for pair in concepts["refusal_capability"].pairs}) >= 10


def test_borderline_prompts():
    borderline = shipped_prompts("borderline")
    assert len(borderline.prompts) >= 48
    assert len({prompt.category for prompt in borderline.prompts}) >= 10
    texts = {p.text for p in borderline.prompts}
    used = {
        t for c in shipped_concepts().values() for p in c.pairs for t in (p.positive, p.negative)
    }
    assert not texts & used


def test_harmful_requests_are_many_and_used_nowhere_else():
    requests = shipped_prompts("harmful_requests")
    assert len(requests.prompts) >= 48
    assert len({prompt.category for prompt in requests.prompts}) >= 10
    pairs = [pair for concept in shipped_concepts().values() for pair in concept.pairs]
    used = {text for pair in pairs for text in (pair.positive, pair.negative)}
    assert not {prompt.text for prompt in requests.prompts} & used


def test_ams_files_load_unchanged(tmp_path):
    from ams.concepts import UNIVERSAL_SAFETY_CHECKS, export_concepts_to_json

    path = tmp_path / "ams.json"
    export_concepts_to_json(str(path))
    loaded = load_concepts(path)
    assert set(loaded) == set(UNIVERSAL_SAFETY_CHECKS)
    for name, theirs in UNIVERSAL_SAFETY_CHECKS.items():
        ours = [(pair.positive, pair.negative) for pair in loaded[name].pairs]
        assert ours == [(pair.positive, pair.negative) for pair in theirs.pairs]
        assert loaded[name].min_separation == theirs.min_separation


def test_nothing_of_an_ams_file_is_lost_on_the_way_there_and_back(tmp_path):
    from ams.concepts import export_concepts_to_json, load_concepts_from_json

    path = tmp_path / "ams.json"
    export_concepts_to_json(str(path))
    data = json.loads(path.read_text())
    del data["truthfulness"]["min_separation"]  # which ams-scanner then takes for 2.0
    path.write_text(json.dumps(data))
    first = load_concepts(path)
    for format, suffix in (("yaml", "yaml"), ("json", "json"), ("ams", "json")):
        again = write(tmp_path, dump_concepts(first.values(), format), f"{format}.{suffix}")
        assert load_concepts(again) == first
    assert json.loads((tmp_path / "ams.json").read_text()) == data
    theirs = load_concepts_from_json(str(tmp_path / "ams.json"))
    assert theirs["truthfulness"].min_separation == 2.0
    assert theirs["injection_resistance"].min_separation == 3.5


def test_what_a_concept_lacks_or_nothing_uses_is_named(tmp_path, caplog):
    pair = {"positive": "p", "negative": "n", "weight": 2}
    pairs = [{**pair, "positive": f"p{i}", "negative": f"n{i}"} for i in range(4)]
    load_concepts(write(tmp_path, {"x": {"pairs": pairs, "min_separation": 1, "layer": 3}}))
    assert "x has no `description`" in caplog.text
    assert "`min_separation` of 1" in caplog.text
    assert "not used: layer, pairs.weight" in caplog.text
    with pytest.raises(InputError, match="min_separation"):
        load_concepts(write(tmp_path, {"x": {"pairs": pairs, "min_separation": float("nan")}}))
    caplog.clear()
    shipped_concepts()
    assert caplog.text == ""


def test_ams_reads_what_we_export(tmp_path):
    from ams.concepts import load_concepts_from_json

    shipped = shipped_concepts()
    path = write(tmp_path, dump_concepts(shipped.values(), "ams"), "ours.json")
    theirs = load_concepts_from_json(str(path))
    assert set(theirs) == set(shipped)
    assert len(theirs["truthfulness"].pairs) == len(shipped["truthfulness"].pairs)


@pytest.mark.parametrize(("format", "suffix"), [("yaml", "yaml"), ("json", "json")])
@pytest.mark.parametrize("names", [["truthfulness"], ["truthfulness", "control_topic"]])
def test_exports_load_again(tmp_path, format, suffix, names):
    concepts = [shipped_concepts()[name] for name in names]
    path = write(tmp_path, dump_concepts(concepts, format), f"c.{suffix}")
    assert list(load_concepts(path).values()) == concepts


def test_overlay_replaces_by_name_and_adds_new_names(tmp_path):
    path = write(
        tmp_path,
        {
            "harmful_content": {"description": "mine", "pairs": pairs(4)},
            "truthfulness": {"description": "not in this mode", "pairs": pairs(4)},
            "my_own": {"description": "new", "pairs": pairs(5)},
        },
        "o.json",
    )
    chosen = concepts_for("quick", load_concepts(path))
    assert set(chosen) == {*MODES["quick"], "my_own"}
    assert chosen["harmful_content"].description == "mine"


def test_the_hash_depends_on_prompts_and_not_on_order():
    concepts = list(shipped_concepts().values())
    assert concept_set_hash(concepts) == concept_set_hash(reversed(concepts))
    fewer = concepts[0].model_copy(update={"pairs": concepts[0].pairs[1:]})
    assert concept_set_hash(concepts) != concept_set_hash([fewer, *concepts[1:]])


BAD_FILES = {
    "empty file": ("", "must hold a mapping"),
    "empty mapping": ("{}", "must hold a mapping"),
    "a list": ([1, 2], "must hold a mapping"),
    "broken YAML": ("a: [1, 2", "is not valid YAML"),
    "no pairs key": ({"x": {"description": "d"}}, "must be a mapping with `pairs`"),
    "no concepts": ({"concepts": []}, "holds no concept"),
    "no pairs": ({"x": {"pairs": []}}, "pairs"),
    "a duplicate": ({"x": {"pairs": [*pairs(4), pairs(1)[0]]}}, "has a prompt twice"),
    "same on both sides": ({"x": {"pairs": [{"positive": "a", "negative": "a"}]}}, "same text"),
    "a number for a prompt": ({"x": {"pairs": [{"positive": 7, "negative": "a"}]}}, "0.positive"),
    "an empty prompt": ({"x": {"pairs": [{"positive": "  ", "negative": "a"}]}}, "0.positive"),
    "a missing side": ({"x": {"pairs": [{"positive": "a"}]}}, "0.negative"),
    "a bad name": ({"../x": {"pairs": pairs(4)}}, "'../x' cannot be a name; use letters"),
    "a name with a space": ({"My own": {"pairs": pairs(4)}}, "'My own' cannot be a name"),
    "a missing side, in the second": (
        {"x": {"pairs": pairs(4)}, "y": {"pairs": [{"positive": "a"}]}},
        "concept 'y': the key `pairs.0.negative` is missing",
    ),
    "no list": ({"x": {"pairs": {"0": pairs(1)[0]}}}, "should be a valid list"),
    "a key twice": ("x: {pairs: [], description: a, pairs: []}", "the key 'pairs' is there twice"),
    "a threshold that is none": ({"x": {"min_separation": "much", "pairs": pairs(4)}}, "number"),
    "unknown schema": ({"schema": "other/9", "pairs": []}, "unknown schema 'other/9'"),
    "a name twice": (
        {"concepts": [{"name": "x", "pairs": pairs(4)}, {"name": "x", "pairs": pairs(4)}]},
        "'x' twice",
    ),
    "responses in some pairs": ({"x": {"pairs": [*pairs(4), *responses(1)]}}, "in some pairs only"),
    "a response twice": ({"x": {"pairs": [*responses(4), *responses(1)]}}, "has a prompt twice"),
    "aliases": ("a: &a [x, x]\nb: [*a, *a]", "aliases"),
    "prompts": ({"schema": "modelassay.prompts/1", "name": "p", "prompts": []}, "holds prompts"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_get_one_line(tmp_path, case):
    content, message = BAD_FILES[case]
    path = write(tmp_path, content)
    with pytest.raises(InputError) as caught:
        load_concepts(path)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_broken_json_missing_binary_and_huge_files(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="is not valid JSON"):
        load_concepts(write(tmp_path, "{", "c.json"))
    with pytest.raises(InputError, match="No such file"):
        load_concepts(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="directory"):
        load_concepts(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        load_concepts(tmp_path / "b.yaml")
    with pytest.raises(InputError, match="larger than 5 MB"):
        load_concepts(write(tmp_path, "x" * 5_000_001))


def test_yaml_files_are_read_without_running_anything(tmp_path):
    path = write(tmp_path, "x: !!python/object/apply:os.system ['touch owned']")
    with pytest.raises(InputError, match="not valid YAML"):
        load_concepts(path)


def test_unknown_mode():
    with pytest.raises(InputError, match="Unknown mode 'deep'; choose quick, standard, full"):
        concepts_for("deep")


def test_shipped_files_have_the_published_fields():
    folder = Path(__file__).parents[2] / "concepts"
    for path in folder.rglob("*.yaml"):
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
        assert data["schema"] in ("modelassay.concept/1", "modelassay.prompts/1")
        assert data["name"] == path.stem
        assert {"author", "date", "license", "method"} <= set(data["provenance"])


@pytest.mark.parametrize("format", ["yaml", "json"])
def test_pairs_of_responses_to_one_prompt(tmp_path, format):
    concept = load_concepts(write(tmp_path, {"x": {"pairs": responses(4)}}))["x"]
    assert concept.of_responses
    path = write(tmp_path, dump_concepts([concept], format), f"again.{format}")
    assert load_concepts(path)["x"] == concept
    other = load_concepts(write(tmp_path, {"x": {"pairs": responses(5)[1:]}}))["x"]
    assert concept_set_hash([concept]) != concept_set_hash([other])
    with pytest.raises(InputError, match="ams has prompts only"):
        dump_concepts([concept], "ams")


def test_pairs_of_prompts_are_written_as_before():
    concept = shipped_concepts()["truthfulness"]
    assert not concept.of_responses
    assert set(concept.to_dict()["pairs"][0]) == {"positive", "negative", "category"}


def test_a_key_that_is_there_twice_is_refused_in_json_too(tmp_path):
    path = tmp_path / "twice.json"
    one, other = (json.dumps({"description": "d", "pairs": pairs(n)}) for n in (4, 5))
    path.write_text(f'{{"x": {one}, "x": {other}}}')
    with pytest.raises(InputError, match="the key 'x' is there twice"):
        load_concepts(path)
    path.write_text(f'{{"x": {one}, "y": {one}}}')  # in different objects it may be
    assert set(load_concepts(path)) == {"x", "y"}


def test_what_is_no_text_or_nested_without_end_is_refused(tmp_path):
    path = tmp_path / "hostile.json"
    for content in (pickle.dumps({"x": 1}), b'{"a":' * 100_000, b"[" * 100_000, b'{"x": {"desc'):
        path.write_bytes(content)
        with pytest.raises(InputError) as caught:
            load_concepts(path)
        assert "\n" not in str(caught.value)
