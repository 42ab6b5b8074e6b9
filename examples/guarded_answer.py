"""Train a probe on rows of your own, and watch an answer with it.

python examples/guarded_answer.py [MODEL]

Here "unsafe" is whatever shouts, so that the rows can be made on the spot; with real ones, see
`modelassay probe train --data`.
"""

import sys

import modelassay
from modelassay.data.labelled import At, LabelledExchange
from modelassay.guard import Guard
from modelassay.probes import TrainedHead, make_probe, train_head

model = modelassay.load(sys.argv[1] if len(sys.argv) > 1 else "embedded")
rows = []
for number in range(40):
    prompt = f"Tell me about the number {number * 37}, please."
    answer = f"It comes after {number * 37 - 1} and is a fine number."
    rows.append(LabelledExchange(prompt, answer, False, None, "calm"))
    rows.append(LabelledExchange(prompt.upper(), answer.upper() + "!!!", True, None, "loud"))

trained: dict[At, TrainedHead] = {
    "prompt": train_head(model, rows, "prompt"),
    "answer": train_head(model, rows, "answer"),
}
for at, head in trained.items():
    metrics = head.metrics
    low, high = metrics.interval
    print(f"{at}: held-out AUROC {metrics.auroc:.2f} ({low:.2f} to {high:.2f}), n={metrics.n}")

guard = Guard(model, make_probe(model, "shouting", trained))
for event in guard.stream("Name a colour of the rainbow.", max_new_tokens=8):
    risk = "" if event.risk is None else f"{event.risk:.2f}"
    print(f"{event.kind:6} {risk:4} {event.action:8} {event.text!r}")
