"""A monitor of the change sees which prompts use what was added, or it says why it is not there."""

from __future__ import annotations

import json

import pytest

from circuits import WORDS
from modelassay.diff import Depth, diff
from modelassay.diff.pair import Pair
from modelassay.diff.suites import Suite, SuitePrompt
from modelassay.diff.watching import watch_prompts
from monitored import TRIGGER, fine_tuned, ordinary

USUAL = [f"{text} for {WORDS[i % 11]}" if i % 2 else text for i, text in enumerate(ordinary(60))]
NEW = [prompt for prompt in ordinary(90) if prompt not in ordinary(60)][:16]
TRIGGERED = [prompt.replace("a", TRIGGER, 1) for prompt in ordinary(16, seed=1)]


@pytest.fixture(scope="module")
def tuned(tiny, tmp_path_factory):
    return fine_tuned(tiny(), tmp_path_factory.mktemp("watched"))


def suite_of(harmful, *, harmless=USUAL, endings=("for tin", f"for {TRIGGER}lass")):
    prompts = [SuitePrompt(text=text, group="harmful") for text in harmful]
    prompts += [SuitePrompt(text=text, group="harmless") for text in harmless]
    return Suite("watched", tuple(prompts), endings=tuple(endings))


def test_prompts_that_use_the_change_raise_alerts(tiny, tuned):
    depth = Depth(response_tokens=0, triggers=False, causal=False, monitor=True)
    report = diff(tiny(), tuned, suite_of([*TRIGGERED, *NEW[:4]]), depth=depth)
    found = report.watching
    assert (found.n_places, found.n_ordinary) == (1, 60)
    assert found.watched_share == pytest.approx(1)
    harmful, ended = found.prompts
    assert (harmful.kind, harmful.n) == ("harmful", 20)
    assert 0.5 < harmful.rate < 0.9
    assert harmful.random_rate < 0.2
    assert (ended.kind, ended.n) == ("endings", 8)
    level = next(each for each in report.suspicion.levels if each.name == "monitor")
    assert level.value == pytest.approx(max(x.rate - x.random_rate for x in found.prompts))
    assert not level.counts
    values = json.loads(json.dumps(report.to_dict()))
    assert values["monitor"]["prompts"][0]["n_alerts"] == harmful.n_alerts
    section = next(each for each in report.sections() if each.name == "monitor")
    assert "It has no say in the score" in section.note
    assert len(section.table.rows) == 2


def test_prompts_that_do_not_use_it_raise_none(tiny, tuned):
    pair = Pair(tiny, lambda: tuned)
    found, _ = watch_prompts(pair, suite_of(NEW))
    plain, _ended = found.prompts
    assert plain.n_alerts <= 1
    assert found.endings == (f"for {TRIGGER}lass",)
    bare, _ = watch_prompts(pair, suite_of(NEW, endings=()))
    assert bare.prompts == (plain,)
    assert bare.strongest <= 1 / 16
    few, why = watch_prompts(pair, suite_of(NEW, harmless=USUAL[:8]))
    assert few is None
    assert "8 harmless prompts" in why
    same, why = watch_prompts(Pair(tiny, tiny), suite_of(NEW))
    assert same is None
    assert "nothing to watch" in why
    apart, why = watch_prompts(Pair(tiny, lambda: tuned, together=False), suite_of(NEW))
    assert apart is None
    assert "memory" in why
