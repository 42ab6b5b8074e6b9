"""Time of comparing two models' features: ours beside the loop that it takes the place of.

The loop is how a fine-tune auditor reads features: prompt by prompt, each model in turn, all
hidden states, every feature of every token as a dense row. Both get the same prompts, models and
SAE in one process, in turns, and only ratios are reported.

    python benchmarks/bench_diff.py [--prompts 200] [--rounds 3] [--sae DICTIONARY] [--write FILE]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from modelassay.data.concepts import concepts_for
from modelassay.diff.features import compare_features
from modelassay.diff.pair import Pair, traits_of
from modelassay.diff.reading import (
    N_DEPTHS,
    Matched,
    Reading,
    encode_suite,
    match_tokens,
    read_model,
)
from modelassay.diff.suites import SuitePrompt
from modelassay.diff.weights import count_alike, diff_pair
from modelassay.files.atomic import write_text_atomically
from modelassay.models import LoadedModel, load
from modelassay.models.layers import spread_layers
from modelassay.reading.activations import Activations, read_activations
from modelassay.reading.prompts import Encoded
from modelassay.sae import SAE, find_sae


@torch.inference_mode()
def loop(models: Sequence[LoadedModel], prompts: Sequence[Encoded], sae: SAE) -> Any:
    """Prompt by prompt, model by model: mean activation [model, prompt, feature]."""
    rows = []
    for prompt in prompts:
        for model in models:
            output = model.network(torch.tensor([prompt.ids]), output_hidden_states=True)
            hidden = output.hidden_states[sae.layer + 1][0, prompt.response_start :]
            rows.append(sae.module.encode(hidden).mean(dim=0))
    return torch.stack(rows)


def main() -> None:
    """Reads the command line and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sae", default="embedded")
    parser.add_argument("--base", default="organism:safe")
    parser.add_argument("--candidate", default="organism:benign")
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    models = [load(arguments.base), load(arguments.candidate)]
    sae = find_sae(arguments.sae)
    pairs = [pair for concept in concepts_for("full").values() for pair in concept.pairs]
    texts = list(dict.fromkeys(text for p in pairs for text in (p.positive, p.negative)))
    prompts = [SuitePrompt(text=text) for text in texts[: arguments.prompts]]
    encoded = encode_suite(models[0], prompts)
    matched = match_tokens(models[0], encoded, None)

    table = Table()
    for _ in range(arguments.rounds):
        old, _ = timed(lambda: loop(models, encoded, sae))
        comparing, alike = timed(lambda: find_alike(models))
        whole, (before, after) = timed(lambda: read_states(models, matched, sae.layer))
        shared, _ = timed(lambda alike=alike: read_states(models, matched, sae.layer, alike))
        features, _ = timed(lambda before=before, after=after: compare_features(before, after, sae))
        everything, _ = timed(lambda alike=alike: read_all(models, matched, sae.layer, alike))
        table.add("the same features, tested; all layers of both models run", old, whole + features)
        table.add(
            f"the same; the candidate's first {alike} layers are the base's, and a comparison of"
            " all weights finds that out",
            old,
            comparing + shared + features,
        )
        table.add(
            "that, with the next-token probabilities of all tokens in both models",
            old,
            comparing + everything + features,
        )
        table.add(STEP, features, whole)
    text = page(len(encoded), sum(matched.lengths), table, arguments)
    print(text)
    if arguments.write:
        write_text_atomically(arguments.write, text)


def find_alike(models: Sequence[LoadedModel]) -> int:
    """How many first layers of two models are the same, by their weights."""
    pair = Pair(lambda: models[0], lambda: models[1], together=True)
    first, second = (traits_of(model) for model in models)
    return count_alike(diff_pair(pair), first, second)


def read_states(
    models: Sequence[LoadedModel], matched: Matched, layer: int, alike: int = 0
) -> tuple[Reading, Reading]:
    """What the loop reads, and no next-token probabilities."""
    kept = layers_to_read(models[0], layer)
    known = [i for i in kept if i < alike]
    base = _reading(matched, read_activations(models[0], matched.encoded, kept, position="all"))
    wanted = [i for i in kept if i not in known[:-1]]
    resume = base.resume_point(known[-1]) if known else None
    read = read_activations(models[1], matched.encoded, wanted, position="all", resume=resume)
    return base, _reading(matched, read)


def read_all(models: Sequence[LoadedModel], matched: Matched, layer: int, alike: int) -> Any:
    """What `diff` reads of the tokens."""
    kept = layers_to_read(models[0], layer)
    before = read_model(models[0], matched, kept)
    return before, read_model(models[1], matched, kept, base=before, alike=alike)


def layers_to_read(model: LoadedModel, layer: int) -> list[int]:
    """Those that `diff` reads too, up to the SAE's."""
    spread = spread_layers(len(model.layers), N_DEPTHS)
    return sorted({layer, *(i for i in spread if i < layer)})


def _reading(matched: Matched, read: Activations) -> Reading:
    nothing = torch.zeros(0)
    return Reading(matched, read.layers, read.values, nothing, nothing, nothing)


STEP = "the features' step over the two forward passes"


class Table:
    """Ratios of times, by what they compare."""

    def __init__(self) -> None:
        """Begins with nothing."""
        self.rows: dict[str, list[float]] = {}

    def add(self, what: str, over: float, under: float) -> None:
        """One more round."""
        self.rows.setdefault(what, []).append(over / under)

    def lines(self) -> list[str]:
        """Markdown rows: median and range."""
        return [
            f"| {what} | {median(values):.2f} ({min(values):.2f} to {max(values):.2f}) |"
            for what, values in self.rows.items()
        ]


def page(n: int, n_tokens: int, table: Table, arguments: Any) -> str:
    """The page."""
    rounds = len(table.rows[STEP])
    return "\n".join(
        [
            "# How fast features of two models are compared",
            "",
            f"Written by `python benchmarks/bench_diff.py`: {arguments.base} against"
            f" {arguments.candidate}, {n} prompts, {n_tokens} compared tokens, SAE"
            f" {arguments.sae}, {torch.get_num_threads()} CPU threads, {rounds} rounds in turns."
            " Medians, with the range.",
            "",
            "| time of the loop, prompt by prompt with all hidden states, over that of | ratio |",
            "|---|---|",
            *table.lines()[:-1],
            "",
            "| | ratio |",
            "|---|---|",
            table.lines()[-1],
            "",
            "The loop gives mean activations and no tests. On a CPU all of this is bound by"
            " arithmetic, so what is saved are the tokens of the template, the output layer, layers"
            " above the SAE's, and layers that are the same in both models.",
            "",
        ]
    )


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds, and what the work gives."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
