"""Who says what a response was: the exchange classifier, the rules for refusals, or an endpoint."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

from modelassay.data.judging import Judge, Judgement, ask_judge
from modelassay.data.labels import LABELS
from modelassay.hub.chat_completions import ATTEMPTS, TIMEOUT, open_chat

JudgeName = Literal["classifier", "refusal", "openai"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)


def classifier_judge(classifier: Any) -> Judge:
    """Asks an exchange classifier which class is likeliest.

    Its threshold is not used: that is set so that next to no harmless stream is cut off, and would
    call most unsafe responses safe here.

    Args:
        classifier: A `modelassay.classifier.ExchangeClassifier`.
    """
    refusal_at = LABELS.index("safe_refusal")

    def judge(prompt: str, response: str) -> Judgement:
        row = np.asarray(classifier.predict([(prompt, response)]), dtype=float)[0]
        if not np.isfinite(row).all():
            return Judgement(None, None, "unscored: no finite probability")
        likeliest = int(row.argmax())
        # One of two classes, safe and unsafe, cannot tell a refusal.
        refusal = likeliest == refusal_at if len(row) == len(LABELS) else None
        return Judgement(likeliest == len(row) - 1, refusal, f"P(unsafe) {row[-1]:.3f}")

    return judge


def refusal_judge(_prompt: str, response: str) -> Judgement:
    """Asks the rules for refusals. A response that does not refuse need not be unsafe: None."""
    from modelassay.measures.refusal_judge import is_refusal

    return Judgement(None, is_refusal(response), "refusals only")


def openai_judge(
    url: str,
    model: str,
    *,
    timeout: float = TIMEOUT,
    attempts: int = ATTEMPTS,
    sleep: Callable[[float], None] = time.sleep,
) -> Judge:
    """A judge that asks an OpenAI-compatible endpoint.

    Args:
        url: Its base (`https://host/v1`) or the whole address of its chat completions.
        model: What to ask there.
        timeout: Seconds that one response may take.
        attempts: How often it is asked before giving up.
        sleep: Waits between attempts.

    Raises:
        InputError: this is no http(s) address, or the key cannot be a header. The judge itself
            raises it where the endpoint does not take such a question.
        UnavailableError: of the judge: the endpoint lets this key not in, or gives no response.
    """
    chat = open_chat(
        url,
        model,
        name="The judge",
        url_option="--judge-url",
        model_option="--judge-model",
        advice="try again later: with --out, a run goes on where it stopped.",
        timeout=timeout,
        attempts=attempts,
        sleep=sleep,
    )
    return lambda prompt, response: ask_judge(chat, prompt, response)[0]
