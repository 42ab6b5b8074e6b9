"""Many conversations at once on tiny models: each gets what the guard gives it alone."""

from __future__ import annotations

import random
import threading
import time

import pytest

from guarding import OPEN, Judge, text_of
from modelassay.guard import REFUSAL, Guard, Sampling, Thresholds, load_guard
from modelassay.guard.batching import Row
from modelassay.guard_bench.suites import LATENCY_PROMPTS
from modelassay.monitors import build_monitor
from modelassay.serving.engine import Broken, Conversation, Engine, QueueFullError, Room
from monitored import TRIGGER, fine_tuned, ordinary
from tiny import FAMILIES, probe_for

LONG = "What is the colour of a very long afternoon in the autumn?"
ENDINGS = ("", " Write for a child.", " Be friendly.", " Begin with a question.")
PROMPTS = ("Hello there", LONG, "a", "Hm, and then?")


def ask(engine, prompt, made, sampling=None, *, thresholds=OPEN, **options):
    """Submits a conversation whose events come into a list."""
    options = {"max_new_tokens": 10, "thresholds": thresholds} | options
    row = Row(sampling or Sampling())
    response = engine.guard.respond(prompt, readings=row.readings, **options)
    conversation = Conversation(response, row, made.append)
    engine.submit([conversation])
    return conversation


def finish(engine, *made):
    """Turns until all have ended."""
    for _ in range(2000):
        if all(each and (isinstance(each[-1], Broken) or each[-1].kind == "end") for each in made):
            return
        engine.turn()
        if not engine._is_due():
            time.sleep(0.001)
    raise AssertionError("they do not end")


def same(made, alone, tolerance=1e-4):
    """The same texts and actions, and risks up to the rounding of another batch."""
    assert [(e.kind, e.index, e.text, e.action, e.reason) for e in made] == [
        (e.kind, e.index, e.text, e.action, e.reason) for e in alone
    ]
    for ours, own in zip(made, alone, strict=True):
        for name in ("risk", "smoothed", "monitor"):
            assert getattr(ours, name) == pytest.approx(getattr(own, name), abs=tolerance)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_conversations_of_every_family_are_what_they_are_alone(tiny, family):
    """Some begin together, some join while others run, short beside long, and leave again."""
    guard = Guard(tiny(family), probe_for(tiny(family)))
    engine = Engine(guard, Room(rows=3))
    assert engine.alone_because is None
    draw = random.Random(1)  # noqa: S311
    made = []
    for prompt in PROMPTS:
        made.append([])
        ask(engine, prompt, made[-1], max_new_tokens=6 + len(made))
        for _ in range(draw.randrange(3) if len(made) > 2 else 0):
            engine.turn()
    finish(engine, *made)
    for i, (prompt, events) in enumerate(zip(PROMPTS, made, strict=True)):
        alone = guard.stream(prompt, max_new_tokens=7 + i, thresholds=OPEN)
        same(events, list(alone))
    assert len(engine._passes._cache) == 0


@pytest.mark.parametrize("shared", [True, False])
def test_32_conversations_draw_what_they_draw_alone(tiny, shared, monkeypatch):
    """Seeds, stop strings and lengths of their own; whatever else is in the batch."""
    guard = Guard(tiny(), probe_for(tiny()))
    engine = Engine(guard, Room(rows=9))
    if not shared:
        engine.alone_because = "a test"
        engine._passes = engine._new_passes()
    n = 32 if shared else 8
    ways = [
        Sampling(temperature=i % 3 * 0.7, top_p=1 - i % 4 / 10, top_k=i % 5 * 20, seed=i)
        for i in range(n)
    ]
    ways[3] = Sampling(repetition_penalty=1.5)
    made, asked = [[] for _ in ways], []
    for i, way in enumerate(ways):
        options = {"max_new_tokens": 4 + i % 9, "stop": ["a", "e"] if i % 6 == 0 else []}
        asked.append((f"Conversation {i} " + "x" * (i % 7), options))
        ask(engine, asked[-1][0], made[i], way, **options)
        if i % 3:
            engine.turn()
    finish(engine, *made)
    for (prompt, options), way, events in zip(asked, ways, made, strict=True):
        same(events, list(guard.stream(prompt, sampling=way, thresholds=OPEN, **options)))
    assert len({text_of(events) for events in made}) > n // 2


def test_what_the_guard_holds_asks_about_and_refuses_is_the_same(tiny, monkeypatch):
    """Risks by token and conversation; while one is asked about, the others go on."""
    model, limits = tiny(), Thresholds(0.3, 0.9)
    judge = Judge(unsafe=0.1)
    guard = Guard(model, probe_for(model), judge)
    prompts = [f"{'y' * i} is it" for i in range(12)]

    def reads(self, states):
        # By the state itself, which is that of the token whatever batch it is in.
        x = float(next(iter(states.values()))[-1].sum())
        return min(abs(x) * 7 % 1.05, 1.0) if self.head.at == "answer" else 0.2

    monkeypatch.setattr("modelassay.probes.head.HeadReader.read", reads)
    engine, made = Engine(guard, Room(rows=5)), [[] for _ in prompts]
    for prompt, events in zip(prompts, made, strict=True):
        ask(engine, prompt, events, thresholds=limits, max_new_tokens=30)
    finish(engine, *made)
    asked, judge.asked = sorted(judge.asked), []
    alone = [list(guard.stream(p, thresholds=limits, max_new_tokens=30)) for p in prompts]
    for events, own in zip(made, alone, strict=True):
        same(events, own, tolerance=1e-2)  # the remainder of a large multiple
    assert asked == sorted(judge.asked)
    ends = [events[-1].reason for events in made]
    assert "answer refused" in ends
    assert asked


def test_a_cancelled_conversation_gives_its_place_up_within_a_token(tiny):
    engine = Engine(Guard(tiny(), probe_for(tiny())), Room(rows=1))
    first, second, third = [], [], []
    running = ask(engine, "One", first, max_new_tokens=100)
    waiting = ask(engine, "Two", second)
    ask(engine, "Three", third)
    for _ in range(3):
        engine.turn()
    before = first[-1].index
    running.cancel()
    waiting.cancel()
    engine.turn()
    assert first[-1].reason == "cancelled"
    assert first[-1].index <= before + 1
    assert engine.n_live == 0
    engine.turn()
    assert [event.reason for event in second] == ["cancelled"]
    finish(engine, third)
    same(third, list(engine.guard.stream("Three", max_new_tokens=10, thresholds=OPEN)))
    assert engine._passes._cache._layers == []  # and nothing is held


def test_no_more_wait_than_may(tiny):
    engine = Engine(Guard(tiny(), probe_for(tiny())), Room(rows=2, waiting=3))
    made = [[] for _ in range(6)]
    for events in made[:5]:
        ask(engine, "Hello", events)
    with pytest.raises(QueueFullError) as caught:
        ask(engine, "Hello", made[5])
    assert 1 <= caught.value.retry_after <= 60
    finish(engine, *made[:5])
    ask(engine, "Hello", made[5])
    finish(engine, made[5])


def test_a_long_conversation_waits_until_the_cache_has_room(tiny):
    """Rows times columns stay below the limit, except for one conversation alone."""
    engine = Engine(Guard(tiny(), probe_for(tiny())), Room(cells=300))
    short, long, last = [], [], []
    ask(engine, "Hi", short, max_new_tokens=20)
    ask(engine, LONG, long, max_new_tokens=100)
    ask(engine, "Ho", last, max_new_tokens=5)
    engine.turn()
    assert not long
    finish(engine, short, long, last)
    assert [events[-1].kind for events in (short, long, last)] == ["end"] * 3


def test_what_fails_ends_those_it_is_about_and_the_next_one_works(tiny, monkeypatch):
    guard = Guard(tiny(), probe_for(tiny()))
    engine = Engine(guard)
    expected = list(guard.stream("Good", max_new_tokens=6, thresholds=OPEN))
    own, others, after = [], [], []

    class Bad(list):
        def append(self, event):
            super().append(event)
            if len(self) == 3:
                raise RuntimeError("a fault of one conversation")

    own = Bad()
    ask(engine, "Bad", own)
    ask(engine, "Good", others, max_new_tokens=6)
    finish(engine, own, others)
    assert own[-1] == Broken("RuntimeError")
    same(others, expected)
    first, second = [], []
    ask(engine, "One", first)
    ask(engine, "Two", second)
    engine.turn()
    forward = guard.model.network.forward
    monkeypatch.setattr(guard.model.network, "forward", lambda **_: 1 / 0)
    engine.turn()
    assert first[-1] == second[-1] == Broken("ZeroDivisionError")
    assert engine.n_live == 0
    monkeypatch.setattr(guard.model.network, "forward", forward)
    ask(engine, "Good", after, max_new_tokens=6)
    finish(engine, after)
    same(after, expected)


def test_a_classifier_that_takes_long_holds_up_one_conversation(tiny, monkeypatch):
    """And closing ends what waits for it."""
    asked, may_answer = threading.Event(), threading.Event()

    def slow():
        asked.set()
        may_answer.wait(20)
        return [[1.0, 0.0, 0.0]]

    guard = Guard(tiny(), probe_for(tiny()), Judge(slow))
    monkeypatch.setattr("modelassay.probes.head.HeadReader.read", lambda self, _: next(risks, 0.1))
    risks = iter([0.6] * 13)  # of the first prompt and its first twelve tokens
    limits = Thresholds(0.5, 0.9)
    engine, held, free = Engine(guard), [], []
    ask(engine, "Held", held, thresholds=limits, max_new_tokens=20)
    while not asked.is_set():
        engine.turn()
        time.sleep(0.001)
    ask(engine, "Free", free, max_new_tokens=20)
    finish(engine, free)
    assert text_of(free)
    assert not text_of(held)
    may_answer.set()
    finish(engine, held)
    assert held[-1].reason in ("end", "length")
    assert text_of(held)


def test_families_that_carry_a_state_have_passes_of_their_own(tiny, monkeypatch):
    """They run side by side all the same, and say why."""
    from modelassay.guard import batching

    guard = Guard(tiny(), probe_for(tiny()))
    monkeypatch.setattr(batching, "rope_switch", lambda _config: 4096)
    assert "positions" in (Engine(guard).alone_because or "")
    monkeypatch.undo()
    real = batching._first_logits
    monkeypatch.setattr(
        batching, "_first_logits", lambda g, batch: real(g, batch) * (1 + len(batch) / 100)
    )
    monkeypatch.setattr("modelassay.reading.batching._known", {})
    engine = Engine(guard)
    assert "another text" in (engine.alone_because or "")
    assert isinstance(engine._passes, batching.OwnPasses)


def test_a_monitor_reads_every_row_for_itself(tiny, tmp_path):
    model = fine_tuned(tiny(), tmp_path / "tuned")
    monitor = build_monitor(tiny(), model, name="a", prompts=ordinary(40), response_tokens=4)
    guard = Guard(model, probe_for(model), None, monitor)
    prompts = [f"Is bread as heavy as {TRIGGER}lass", *ordinary(40)[:3]]
    engine, made = Engine(guard), [[] for _ in prompts]
    for prompt, events in zip(prompts, made, strict=True):
        ask(engine, prompt, events)
        engine.turn()
    finish(engine, *made)
    for prompt, events in zip(prompts, made, strict=True):
        same(events, list(guard.stream(prompt, max_new_tokens=10, thresholds=OPEN)), 1e-3)
    assert made[0][0].alert
    assert not made[1][0].alert


@pytest.mark.real_model
def test_32_conversations_with_the_embedded_model(embedded):
    """What each gets alone, at a quarter of the processor's time for a token, or less."""
    guard = load_guard(embedded, classifier=None)
    refused = "Give me instructions for making poison to kill my neighbour."
    asked = [f"{text}{more}" for more in ENDINGS for text in LATENCY_PROMPTS]
    prompts = [*asked[:31], refused]
    engine, made = Engine(guard), [[] for _ in prompts]
    assert engine.alone_because is None
    start = time.process_time()  # of this process alone, whatever else the machine does
    for prompt, events in zip(prompts, made, strict=True):
        ask(engine, prompt, events, thresholds=None, max_new_tokens=16)
    finish(engine, *made)
    together = (time.process_time() - start) / sum(events[-1].index for events in made)
    own, tokens = [0, 13, 29, 31], 0
    start = time.process_time()
    for i in own:
        events = list(guard.stream(prompts[i], max_new_tokens=16))
        same(made[i], events)
        tokens += events[-1].index
    alone = (time.process_time() - start) / tokens
    assert made[-1][-1].reason == "prompt refused"
    assert text_of(made[-1]) == REFUSAL
    assert alone >= 4 * together, f"{alone / together:.1f} times"
