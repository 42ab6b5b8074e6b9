"""The Guarded chat tab and the endpoints `/chat` and `/score_exchange`."""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from typing import Any

import gradio as gr

from modelassay.classifier import CLASSIFIERS
from modelassay.errors import AssayError
from modelassay.guard import GuardEvent, SecondOpinion, Thresholds
from modelassay.guard.charts import risk_curve
from modelassay.ui.chat_example import chat_example
from modelassay.ui.chat_service import (
    CHATS,
    CLASSIFIER,
    CONCURRENCY_ID,
    MAX_MESSAGE,
    MAX_NEW_TOKENS,
    MAX_SYSTEM,
    MAX_TEMPERATURE,
    MODEL,
    check_history,
    check_opinion,
    check_thresholds,
    guarded_models,
    run_chat,
    score_exchange,
)
from modelassay.ui.report_view import prose_html
from modelassay.ui.running import (
    PRIVATE,
    afterwards,
    errors_for_caller,
    plain,
    settled,
    under_way,
)

EXAMPLES = [
    "Why is the sky blue?",
    "Write a short poem about the sea.",
    "How do I kill a process in Linux?",
]
REDRAW_EVERY = 8  # tokens; the chart is a hundred times the text in bytes
NOTE = """The model is watched from inside: a probe reads its activations and says how risky prompt
and response are. Text appears once its risk is known. From the first threshold it is held back and
a classifier is asked; from the second it is refused. A classifier that is uncertain reads again,
and what ends in doubt is marked. A probe errs both ways."""

ACTIONS = {
    "continue": "answering",
    "pause": "held back",
    "escalate": "held back, classifier asked",
    "refuse": "refused",
}
ENDINGS = {
    "length": ", cut at the length that was asked for",
    "stop string": ", at a stop string",
    "cancelled": ", stopped",
}


def create_chat_tab() -> None:
    """Builds the tab inside the current `gr.Blocks`."""
    gr.HTML(prose_html([NOTE.replace("\n", " ")]), padding=False)
    with gr.Row():
        with gr.Column(scale=3, min_width=320):
            chatbot = gr.Chatbot(
                label="Conversation",
                show_label=False,
                height=440,
                placeholder="Nothing of a conversation is kept here.",
                render_markdown=False,  # see `_as_shown`
                latex_delimiters=[],
                buttons=["copy"],
                feedback_options=None,
            )
            with gr.Row():
                message = gr.Textbox(
                    placeholder="Ask something",
                    label="Message",
                    show_label=False,
                    max_length=MAX_MESSAGE,
                    lines=1,
                    max_lines=6,
                    scale=5,
                )
                send = gr.Button("Send", variant="primary", scale=1, min_width=80)
            with gr.Row():
                stop = gr.Button("Stop response", variant="stop", size="sm")
                clear = gr.Button("Clear chat", size="sm")
            gr.Examples([[text] for text in EXAMPLES], [message])
            pause, block = _probe_levels(MODEL)[:2]
            gr.HTML(chat_example(Thresholds(pause, block)), padding=False)
        with gr.Column(scale=2, min_width=320):
            status = gr.Markdown("Nothing asked yet.")
            curve = gr.Plot(show_label=False, visible=False)
            model = gr.Dropdown(
                list(guarded_models()) or [MODEL],
                value=MODEL,
                allow_custom_value=True,
                label="Model",
                info="One that a probe belongs to",
            )
            with gr.Accordion("Thresholds", open=False):
                levels = _threshold_sliders()
            with gr.Accordion("Classifier", open=False):
                opinion = _classifier_choices()
            with gr.Accordion("More", open=False):
                system = gr.Textbox("", label="System prompt", lines=2, max_length=MAX_SYSTEM)
                length = gr.Slider(
                    16, MAX_NEW_TOKENS, value=128, step=16, label="Most tokens of a response"
                )
                temperature = gr.Slider(
                    0, MAX_TEMPERATURE, value=0, step=0.1, label="Temperature (0 is greedy)"
                )

    emptied = gr.State(False)  # since the last message

    def chat_for_page(
        text: str, history: list, model_id: str, prompt: str, most: int, heat: float, *chosen: Any
    ) -> Iterator[dict[Any, Any]]:
        pause, block, prompt_pause, prompt_block, uncertain_at, block_at, final, refuse = chosen
        events: list[GuardEvent] = []
        shown = ""
        before: dict[Any, Any] = {}
        try:
            turns = _as_said(check_history(history))
            asked = [*turns, {"role": "user", "content": text}]
            before = {chatbot: _as_shown(turns), message: text}
            yield {
                status: under_way("Waiting for the model…"),
                emptied: False,
                chatbot: _as_shown(asked),
                message: "",
            }
            limits = check_thresholds(model_id, "answer", pause, block)
            prompt_limits = check_thresholds(model_id, "prompt", prompt_pause, prompt_block)
            asks = check_opinion(block_at, uncertain_at, final_check=final, refuse_uncertain=refuse)
            for event in run_chat(
                text,
                turns,
                model_id,
                system=prompt,
                max_new_tokens=most,
                temperature=heat,
                thresholds=limits,
                prompt_thresholds=prompt_limits,
                second_opinion=asks,
            ):
                events.append(event)
                shown += event.text
                before = {}
                line = chat_status(events, prompt_limits)
                over = event.kind == "end"
                update: dict[Any, Any] = {status: line if over else under_way(line)}
                if event.text:
                    update[chatbot] = _as_shown([*asked, {"role": "assistant", "content": shown}])
                if event.kind == "prompt" and event.action == "refuse":
                    update[curve] = gr.update(visible=False)  # there is no response to draw
                elif _is_worth_drawing(event):
                    update[curve] = gr.update(value=risk_curve(events, limits), visible=True)
                yield update
        except AssayError as error:
            # What was not taken up goes back to be corrected and sent again.
            line = f"**Not answered.** {plain(str(error))}"
            yield {status: line, emptied: False, curve: gr.update(visible=False), **before}

    queue: dict[str, Any] = {"concurrency_id": CONCURRENCY_ID, "concurrency_limit": CHATS}
    answering = gr.on(
        [send.click, message.submit],
        chat_for_page,
        [message, chatbot, model, system, length, temperature, *levels, *opinion],
        [message, chatbot, status, curve, emptied],
        trigger_mode="once",
        **queue,
        **PRIVATE,
    )
    stop.click(None, cancels=[answering])
    view = [chatbot, status, curve]
    gr.on(
        [clear.click, chatbot.clear],
        lambda: (True, *_empty()),
        None,
        [emptied, *view],
        cancels=[answering],
        **PRIVATE,
    )
    afterwards(answering, _over, [emptied, status], view)
    model.change(_levels_of, [model], levels, **PRIVATE)
    gr.api(chat_endpoint, api_name="chat", **queue)
    gr.api(score_endpoint, api_name="score_exchange", **queue)


def chat_endpoint(
    message: str,
    history: list | None = None,
    model: str = MODEL,
    max_new_tokens: int = 128,
    pause: float | None = None,
    block: float | None = None,
    system: str = "",
    block_at: float | None = None,
    uncertain_at: float | None = None,
    final_check: bool = False,
    refuse_uncertain: bool = False,
) -> Iterator[dict]:
    """Ask a model that is watched by a safety probe; unsafe responses are withheld.

    Args:
        message: What you say to the model.
        history: Earlier turns of the conversation, each {"role": "user" or "assistant", "content"}.
        model: A model that a probe belongs to: "organism:safe" or "embedded".
        max_new_tokens: Length at which the response is cut, 1 to 512.
        pause: Risk of the response, 0 to 1, from which it is held back and a classifier asked; the
            probe's own by default.
        block: Risk of the response from which it is refused; the probe's own by default.
        system: A system prompt; empty for the model's own.
        block_at: P(unsafe), 0 to 1, from which the classifier refuses what is held; its own by
            default, at most 0.9.
        uncertain_at: P(unsafe) from which the classifier is uncertain: it reads again until it is
            sure, and a response that ends in doubt has the verdict "uncertain".
        final_check: Whether the classifier reads every response before its end is shown.
        refuse_uncertain: Whether a response that ends in doubt is refused rather than shown.

    Returns:
        Events: "prompt" with the prompt's risk, a "token" for each token with its risk and what can
        be shown, "end" with the reason and in "answer" all that was shown.
    """
    shown = ""
    with errors_for_caller():
        for event in run_chat(
            message,
            history,
            model,
            system=system,
            max_new_tokens=max_new_tokens,
            thresholds=check_thresholds(model, "answer", pause, block),
            second_opinion=check_opinion(
                block_at, uncertain_at, final_check=final_check, refuse_uncertain=refuse_uncertain
            ),
        ):
            shown += event.text
            end = {"answer": shown} if event.kind == "end" else {}
            yield {**event.to_dict(), **end}


def score_endpoint(prompt: str, response: str, model: str = "embedded") -> dict:
    """Judge a finished exchange: the risks of prompt and response, and what the response is.

    Args:
        prompt: What was asked.
        response: What was answered.
        model: The model whose activations are read; without a probe of it both risks are null.

    Returns:
        The prompt's risk, the answer_risk, the classifier's probabilities of safe_compliance,
        safe_refusal and unsafe_compliance, its threshold for the last, and the label.
    """
    with errors_for_caller():
        return score_exchange(prompt, response, model)


def chat_status(events: Sequence[GuardEvent], prompt: Thresholds) -> str:
    """Where a guarded response stands, as one line of Markdown."""
    first, newest = events[0], events[-1]
    lines = []
    if first.risk is not None:
        lines.append(f"Risk of the prompt **{first.risk:.3f}** (refused from {prompt.block:.3g})")
    if newest.kind == "end":
        reason = newest.reason or ""
        if newest.action == "refuse":
            where = f" at token {newest.index}" if newest.index else ""
            lines.append(f"**{reason.capitalize()}**{where}")
        else:
            if newest.verdict == "uncertain":
                lines.append("**Uncertain:** the classifier could not clear this response")
            lines.append(f"Done after {newest.index} tokens{ENDINGS.get(reason, '')}")
    elif newest.action in ACTIONS:
        lines.append(f"Token {newest.index}: {ACTIONS[newest.action]}")
    if detail := next((e.detail for e in reversed(events) if e.detail), None):
        lines.append(plain(detail))
    if alert := next((e.alert for e in events if e.alert), None):
        lines.append(f"**Alert:** {plain(alert)}")
    return " · ".join(lines)


def _over(emptied: bool, line: str) -> tuple[Any, Any, Any]:
    """The conversation, its status line and the curve once a response ended or was stopped."""
    return _empty() if emptied else (gr.skip(), settled(line), gr.skip())


def _empty() -> tuple[list, str, Any]:
    return [], "Nothing asked yet.", gr.update(visible=False)


def _threshold_sliders() -> list[gr.Slider]:
    labels = (
        "Response: hold back from",
        "Response: refuse from",
        "Prompt: hold back from",
        "Prompt: refuse from",
    )
    return [
        gr.Slider(0.001, 1, value=value, step=0.001, label=label)
        for label, value in zip(labels, _probe_levels(MODEL), strict=True)
    ]


def _classifier_choices() -> list[Any]:
    """Thresholds of the classifier, and what is done besides."""
    uncertain, block = SecondOpinion().levels(CLASSIFIERS.find(CLASSIFIER).record)
    return [
        gr.Slider(0.001, 1, value=uncertain, step=0.001, label="Uncertain from P(unsafe)"),
        gr.Slider(0.001, 1, value=block, step=0.001, label="Refuse from P(unsafe)"),
        gr.Checkbox(
            False, label="Final check", info="It reads every response before its end is shown."
        ),
        gr.Checkbox(
            False, label="Refuse what stays uncertain", info="Else it is shown and marked."
        ),
    ]


def _probe_levels(model_id: str) -> list[float]:
    """Thresholds of the model's probe, as far as a slider resolves them."""
    record = guarded_models().get(model_id)
    if record is None:
        return [0.5, 0.9, 0.5, 0.9]
    heads = record.heads["answer"], record.heads["prompt"]
    return [max(0.001, round(level, 3)) for head in heads for level in (head.pause, head.block)]


def _levels_of(model_id: str) -> list[Any]:
    return [gr.update(value=level) for level in _probe_levels(str(model_id))]


def _as_shown(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """Messages as text in which HTML means nothing: no image of a model's choice is fetched.

    Gradio renders HTML even where Markdown is off.
    """
    return [{**turn, "content": html.escape(turn["content"], quote=False)} for turn in turns]


def _as_said(turns: list[dict[str, str]]) -> list[dict[str, str]]:
    """The messages that `_as_shown` made, as they were."""
    return [{**turn, "content": html.unescape(turn["content"])} for turn in turns]


def _is_worth_drawing(event: GuardEvent) -> bool:
    if event.kind == "end":
        return event.index > 0
    acted = event.action in ("escalate", "refuse")
    return event.kind == "prompt" or acted or event.index % REDRAW_EVERY == 0
