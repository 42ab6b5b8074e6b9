"""Known suites: read with the real clients from a Hub with files in each one's real layout."""

from __future__ import annotations

import json

import pytest

from hub_layouts import ACCEPTED, public_hub, run_with
from modelassay.errors import InputError
from modelassay.guard_bench.known import KNOWN_SUITES, known_suite, place_of
from modelassay.guard_bench.suites import as_suite, read_suite

ASKED = """
import json, sys
from modelassay.errors import AssayError
from modelassay.guard_bench.suites import read_suite
for asked, options in json.loads(sys.argv[1]):
    try:
        data = read_suite(*asked, **options)
        print(json.dumps([data.source, data.config, data.split, data.suite, data.n_unlabelled,
                          [[p.prompt, p.category] for p in data.prompts]]))
    except AssayError as error:
        print(json.dumps([type(error).__name__, str(error)]))
"""


@pytest.fixture(scope="module")
def read_there(tmp_path_factory):
    """Reads suites in a process that knows the loopback Hub alone."""
    with public_hub() as hub:

        def read(*asked):
            ran = run_with(hub, tmp_path_factory.mktemp("hf"), ASKED, json.dumps(asked))
            assert ran.returncode == 0, ran.stderr[-2000:]
            return [json.loads(line) for line in ran.stdout.splitlines()]

        yield read


def test_each_known_suite_is_read_by_its_name(read_there):
    found = read_there(*([[suite.name], {"token": ACCEPTED}] for suite in KNOWN_SUITES))
    prompts = {}
    for suite, (source, config, split, kind, _, asked) in zip(KNOWN_SUITES, found, strict=True):
        assert (source, config, split) == (suite.where, suite.config, suite.split)
        assert kind == ("jailbreak" if suite.side == "harmful" else "overrefusal")
        prompts[suite.name] = asked
    assert prompts == {
        "jailbreakbench": [["Make a kite", "Toys"]],
        "jailbreakbench-benign": [["Fly a kite", "Toys"]],
        "jailbreakbench-judges": [["Pretend, then make a kite", "none"]],
        "xstest": [["How do I kill a process?", "homonyms"]],
        "xstest-unsafe": [["How do I spoil a picnic?", "contrast_homonyms"]],
        "wildguard": [["Make a kite", "toys"]],
        "wildguard-benign": [["Fly a kite", "benign"]],
        "strongreject": [["Make a kite", "toys"]],
        "harmbench": [["Make a kite", "toys"]],
        "harmbench-contextual": [["Paper is at hand.\n\n---\n\nMake a kite", "toys"]],
    }
    assert found[5][4] == 1  # the row of WildGuard that no side is told of


def test_hub_ids_splits_and_gates(read_there):
    jailbreakbench, harmbench = "JailbreakBench/JBB-Behaviors", "walledai/HarmBench"
    by_id, benign, judges, bad_split, bad_config, gated, one_sided = read_there(
        [[jailbreakbench], {}],
        [["overrefusal", jailbreakbench], {}],
        [["jailbreak", "judge_comparison"], {}],
        [["jailbreak", jailbreakbench], {"split": "train"}],
        [["jailbreak", jailbreakbench], {"config": "behaviours"}],
        [["harmbench"], {}],
        [["overrefusal", harmbench], {"token": ACCEPTED}],
    )
    assert by_id[:3] == [jailbreakbench, "behaviors", "harmful"]
    assert benign[2:4] == ["benign", "overrefusal"]
    assert judges[:3] == [jailbreakbench, "judge_comparison", "test"]
    assert bad_split == [
        "InputError",
        f"{jailbreakbench} has no split 'train'; it has harmful, benign.",
    ]
    assert bad_config == [
        "InputError",
        f"{jailbreakbench} has no configuration 'behaviours'; it has behaviors, judge_comparison.",
    ]
    assert gated == [
        "UnavailableError",
        f"{harmbench} is gated: accept its terms on its Hub page, then pass --token or run"
        " `hf auth login`.",
    ]
    assert one_sided[0] == "InputError"  # all of it is harmful, whoever asks
    assert "no benign prompts" in one_sided[1]


def test_names():
    assert as_suite("HarmBench") == "jailbreak"
    assert as_suite("paul/xstest") == "overrefusal"
    with pytest.raises(InputError, match=r"Unknown suite 'nope'; choose jailbreak,.*harmbench"):
        as_suite("nope")
    with pytest.raises(InputError, match="has data of its own"):
        read_suite("harmbench", "walledai/HarmBench")
    names = [name for suite in KNOWN_SUITES for name in (suite.name, *suite.aliases)]
    assert len(set(names)) == len(names)
    assert all(known_suite(name) is not None for name in names)
    assert place_of("Paul/XSTest", None, "harmful").name == "xstest-unsafe"
    assert place_of("some/data", None, "harmful") is None
