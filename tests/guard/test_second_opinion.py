"""The classifier's part in a guarded response: the uncertain band, the final check, thresholds."""

from __future__ import annotations

import random

import numpy as np
import pytest

from guarding import OPEN, Judge, generated, text_of
from modelassay.errors import InputError
from modelassay.guard import REFUSAL, Guard, Policy, SecondOpinion, Thresholds
from modelassay.guard.policy import ESCALATE_FIRST, REREAD_EVERY
from modelassay.probes import HeadReader
from tiny import probe_for

HELD = Thresholds(0.5, 0.9)
WORDS = ("cleared", "uncertain", "condemned")


def judging(*shares: float):
    """A classifier that gives these P(unsafe) in turn, the last one for ever."""
    left = list(shares)

    def say():
        share = left.pop(0) if len(left) > 1 else left[0]
        return np.array([[1 - share, 0.0, share]], dtype=np.float32)

    return Judge(say)


def held(monkeypatch, risk=0.6):
    monkeypatch.setattr(HeadReader, "read", lambda _self, _states: risk)


@pytest.mark.parametrize("seed", range(400))
def test_nothing_is_shown_that_no_verdict_covers(seed):
    """Over random risks, verdicts and tokens kept back: what may be shown was let through by a low
    risk outside the part that waits, or by a clearance that had read it; doubt shows nothing."""
    draw = random.Random(seed)  # noqa: S311
    pause = draw.uniform(0.05, 0.9)
    keep_back = draw.choice([0, 0, 1, 5, 24, 100])
    policy = Policy(
        Thresholds(pause, draw.uniform(pause, 1.0)), can_escalate=True, keep_back=keep_back
    )
    policy.paused = draw.random() < 0.3
    allowed = last_clearance = covered = 0
    in_doubt = False

    def answer():
        nonlocal allowed, last_clearance, in_doubt
        verdict = draw.choice(WORDS)
        if verdict == "cleared":
            allowed = last_clearance = policy.scored
            in_doubt = False
            return policy.cleared()
        in_doubt = in_doubt or verdict == "uncertain"
        return policy.doubted() if verdict == "uncertain" else policy.condemned()

    for n in range(1, draw.randint(2, 120)):
        ruling = policy.judge(draw.choice([draw.random() ** 2, draw.random() * pause * 0.7]))
        if ruling.action == "continue":
            assert not in_doubt
            allowed = max(allowed, n - keep_back)
        if ruling.action == "escalate":
            ruling = answer()
        assert ruling.covered <= allowed
        assert ruling.covered >= covered  # what was shown stays shown
        if in_doubt or ruling.action == "refuse":
            assert ruling.covered == covered
        covered = ruling.covered
        if ruling.action == "refuse":
            assert policy.judge(0.0).action == policy.finish().action == "refuse"
            return
    ruling = policy.finish()
    if ruling.action == "stop":
        assert ruling.covered == policy.scored
        assert not in_doubt
        assert not keep_back or last_clearance == policy.scored
    else:
        assert ruling.action == "escalate"


@pytest.mark.parametrize("seed", range(24))
def test_a_stream_with_a_final_check_leaks_nothing(tiny, seed, monkeypatch):
    """Through the real stream: before the classifier read it all, the newest tokens wait."""
    model = tiny()
    draw = random.Random(seed)  # noqa: S311
    risks = iter([draw.random() ** 4 for _ in range(60)])
    monkeypatch.setattr(HeadReader, "read", lambda _self, _states: next(risks, 0.0))
    judge = Judge(lambda: np.array([[1.0, 0, draw.choice([0.1, 0.1, 0.4, 0.95])]]))
    keep_back = draw.choice([1, 6, 24, 64])
    opinion = SecondOpinion(uncertain=0.3, final_check=True, keep_back=keep_back)
    limits = {"thresholds": Thresholds(0.3, 0.8), "prompt_thresholds": Thresholds(0.3, 0.99)}
    events = list(
        Guard(model, probe_for(model), judge).stream(
            "Hi", max_new_tokens=30, second_opinion=opinion, **limits
        )
    )
    tokens = generated(model, "Hi", 30)
    whole = model.tokenizer.decode(tokens, skip_special_tokens=True)
    shown, cleared = "", 0
    for event in events[:-1]:
        shown += event.text
        if event.verdict == "cleared":
            cleared = event.index
        let_through = max(cleared, event.index - keep_back)
        assert model.tokenizer.decode(tokens[:let_through]).startswith(shown)
        if event.verdict in ("uncertain", "condemned"):
            assert event.text == ""
    end = events[-1]
    if end.action == "stop":
        assert end.verdict in ("cleared", "uncertain") or cleared == end.index
        assert judge.asked[-1][1].rstrip("\ufffd") == whole.rstrip("\ufffd")
        assert text_of(events).rstrip("\ufffd") == whole.rstrip("\ufffd")
    else:
        assert end.text.endswith(REFUSAL)
        assert whole.startswith(shown)


def test_a_response_that_was_never_held_is_read_before_its_end_is_shown(tiny):
    model = tiny()
    judge = judging(0.95)
    guard = Guard(model, probe_for(model), judge)
    asks = {"max_new_tokens": 20, "thresholds": OPEN, "prompt_thresholds": OPEN}
    assert list(guard.stream("Hi", **asks))[-1].reason == "length"
    assert judge.asked == []  # by itself the guard asks in doubt alone
    opinion = SecondOpinion(final_check=True, keep_back=8)
    events = list(guard.stream("Hi", second_opinion=opinion, **asks))
    assert (events[-1].action, events[-1].verdict) == ("refuse", "condemned")
    assert events[-1].unsafe == pytest.approx(0.95)
    assert len(judge.asked) == 1
    before = model.tokenizer.decode(generated(model, "Hi", 20)[:12])
    assert text_of(events[:-1]) == before.rstrip("\ufffd")
    short = SecondOpinion(final_check=True)  # all 20 tokens wait
    assert text_of(list(guard.stream("Hi", second_opinion=short, **asks))) == REFUSAL
    cleared = Guard(model, guard.probe, judging(0.05))
    events = list(cleared.stream("Hi", second_opinion=short, **asks))
    assert (events[-1].action, events[-1].verdict) == ("stop", "cleared")
    assert text_of(events) == text_of(list(cleared.stream("Hi", **asks)))


def test_an_uncertain_response_stays_held_is_read_again_and_is_marked(tiny, monkeypatch):
    held(monkeypatch)
    model = tiny()
    judge = judging(0.45)
    guard = Guard(model, probe_for(model), judge)
    asks = {"max_new_tokens": 30, "thresholds": HELD, "prompt_thresholds": OPEN}
    events = list(guard.stream("Hi", second_opinion=SecondOpinion(uncertain=0.4), **asks))
    said = [event.index for event in events[:-1] if event.verdict]
    assert said == [ESCALATE_FIRST, ESCALATE_FIRST + REREAD_EVERY, ESCALATE_FIRST + 16]
    assert {event.verdict for event in events if event.verdict} == {"uncertain"}
    assert text_of(events[:-1]) == ""
    end = events[-1]
    assert (end.action, end.reason, end.verdict) == ("stop", "length", "uncertain")
    assert end.text
    assert "shown as such" in end.detail
    values = end.to_dict()
    assert values["verdict"] == "uncertain"
    assert values["unsafe"] == pytest.approx(0.45)
    refusing = SecondOpinion(uncertain=0.4, when_uncertain="refuse")
    events = list(guard.stream("Hi", second_opinion=refusing, **asks))
    assert text_of(events) == REFUSAL
    assert (events[-1].action, events[-1].verdict) == ("refuse", "uncertain")
    # Without a band the same share clears it at once.
    assert "uncertain" not in {e.verdict for e in guard.stream("Hi", **asks)}


def test_doubt_ends_when_the_classifier_is_sure_and_not_before(tiny, monkeypatch):
    risks = iter([0.1, *[0.6] * ESCALATE_FIRST, *[0.01] * 40])
    monkeypatch.setattr(HeadReader, "read", lambda _self, _states: next(risks))
    guard = Guard(tiny(), probe_for(tiny()), judging(0.45, 0.1))
    asks = {"max_new_tokens": 30, "thresholds": HELD, "prompt_thresholds": OPEN}
    events = list(guard.stream("Hi", second_opinion=SecondOpinion(uncertain=0.4), **asks))
    shown = [event.index for event in events if event.text]
    assert shown[0] == ESCALATE_FIRST + REREAD_EVERY  # though the risk fell long before
    assert events[shown[0]].verdict == "cleared"


@pytest.mark.parametrize(("block", "reason"), [(None, "length"), (0.3, "answer refused")])
def test_the_threshold_can_be_given_at_run_time(tiny, monkeypatch, block, reason):
    held(monkeypatch)
    guard = Guard(tiny(), probe_for(tiny()), judging(0.4))
    opinion = SecondOpinion(block=block)
    asks = {"max_new_tokens": 20, "thresholds": HELD, "prompt_thresholds": OPEN}
    assert list(guard.stream("Hi", second_opinion=opinion, **asks))[-1].reason == reason


def test_a_classifier_may_bring_its_own_band(tiny, monkeypatch):
    held(monkeypatch)
    judge = judging(0.4)
    judge.uncertain = 0.3
    guard = Guard(tiny(), probe_for(tiny()), judge)
    asks = {"max_new_tokens": 14, "thresholds": HELD, "prompt_thresholds": OPEN}
    assert list(guard.stream("Hi", **asks))[-1].verdict == "uncertain"
    lower = SecondOpinion(block=0.2)  # what is given stands
    assert list(guard.stream("Hi", second_opinion=lower, **asks))[-1].reason == "answer refused"


def test_a_classifier_of_two_classes_is_asked_like_one_of_three(tiny, monkeypatch):
    held(monkeypatch)
    asks = {"max_new_tokens": 14, "thresholds": HELD, "prompt_thresholds": OPEN}
    for unsafe, reason in ((0.1, "length"), (0.95, "answer refused")):
        judge = Judge(lambda unsafe=unsafe: np.array([[1 - unsafe, unsafe]], dtype=np.float32))
        events = list(Guard(tiny(), probe_for(tiny()), judge).stream("Hi", **asks))
        assert events[-1].reason == reason


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"block": 0.0}, "`block` must lie above 0"),
        ({"block": 1.5}, "`block` must lie above 0"),
        ({"block": float("nan")}, "`block` must lie above 0"),
        ({"uncertain": -0.1}, "`uncertain` must lie above 0"),
        ({"uncertain": 0.7, "block": 0.6}, "cannot be uncertain from 0.7"),
        ({"uncertain": 0.95}, "cannot be uncertain from 0.95"),
        ({"when_uncertain": "perhaps"}, "show or refuse"),
        ({"keep_back": 0}, "1 token at least"),
    ],
)
def test_settings_that_cannot_be(values, words):
    with pytest.raises(InputError, match=words) as caught:
        SecondOpinion(**values)
    assert "\n" not in str(caught.value)


def test_a_guard_says_what_its_classifier_cannot_do(tiny):
    alone = Guard(tiny(), probe_for(tiny()))
    with pytest.raises(InputError, match="needs a classifier"):
        alone.stream("Hi", second_opinion=SecondOpinion(final_check=True))
    guard = Guard(tiny(), alone.probe, judging(0.4))  # its threshold is 0.5
    with pytest.raises(InputError, match=r"refuses from 0\.5 on"):
        guard.stream("Hi", second_opinion=SecondOpinion(uncertain=0.7))
    with pytest.raises(InputError, match="needs a classifier"):
        Policy(HELD, keep_back=4)


class Narrow:
    """A classifier that reads no more than the newest characters, as one with few tokens does."""

    threshold = 0.9

    def __init__(self, window: int) -> None:
        self.window = window
        self.asked: list[list[str]] = []

    def reads_all(self, _prompt: str, response: str) -> bool:
        return len(response) <= self.window

    def predict(self, exchanges):
        """In doubt about the first five characters of a response, sure of all others."""
        texts = [text for _, text in exchanges]
        self.asked.append(texts)
        unsafe = np.array([0.4 if len(text) - self.window < 5 else 0.1 for text in texts])
        return np.stack([1 - unsafe, 0 * unsafe, unsafe], axis=1)


@pytest.mark.parametrize("risk", [0.6, 0.0])
def test_what_is_held_is_read_whole_by_a_classifier_that_reads_less(tiny, monkeypatch, risk):
    """In doubt (risk 0.6), or for a final check (0.0), more is held than it reads at once."""
    held(monkeypatch, risk)
    model = tiny()
    tokens = generated(model, "Hi", 90)
    size = max(len(model.tokenizer.decode([each])) for each in tokens)
    judge = Narrow(30 * size)
    opinion = SecondOpinion(uncertain=0.3, final_check=True, keep_back=500)
    limits = {"thresholds": HELD, "prompt_thresholds": OPEN}
    guard = Guard(model, probe_for(model), judge)
    events = list(guard.stream("Hi", max_new_tokens=90, second_opinion=opinion, **limits))
    assert {event.text for event in events[:-1]} == {""}
    assert events[-1].verdict == "uncertain"  # of what it no longer sees when it is asked last
    for texts in judge.asked:
        read = {i for text in texts for i in range(max(0, len(text) - judge.window), len(text))}
        assert read == set(range(len(texts[-1])))
    assert len(judge.asked[-1]) > 1
