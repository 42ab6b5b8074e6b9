"""Time of comparing two models' features: ours beside the loop that it takes the place of.

The loop is how a fine-tune auditor reads features: prompt by prompt, each model in turn, all
hidden states, every feature of every token as a dense row. Both get the same prompts, models and
dictionary in one process, in turns, and only ratios are reported.

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

from modelassay.cache import write_text_atomically
from modelassay.concepts import concepts_for
from modelassay.diffing.features import compare_features
from modelassay.diffing.reading import Matched, encode_suite, match_tokens, read_model
from modelassay.diffing.suites import SuitePrompt
from modelassay.models import LoadedModel, load
from modelassay.prompts import Encoded
from modelassay.sae import Dictionary, find_dictionary
from modelassay.unembedding import decode_each


@torch.inference_mode()
def loop(models: Sequence[LoadedModel], prompts: Sequence[Encoded], dictionary: Dictionary) -> Any:
    """Prompt by prompt, model by model: mean activation [model, prompt, feature]."""
    rows = []
    for prompt in prompts:
        for model in models:
            output = model.model(torch.tensor([prompt.ids]), output_hidden_states=True)
            hidden = output.hidden_states[dictionary.layer + 1][0, prompt.answer_start :]
            rows.append(dictionary.sae.encode(hidden).mean(dim=0))
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
    dictionary = find_dictionary(arguments.sae)
    pairs = [pair for concept in concepts_for("full").values() for pair in concept.pairs]
    texts = list(dict.fromkeys(text for p in pairs for text in (p.positive, p.negative)))
    prompts = [SuitePrompt(text=text) for text in texts[: arguments.prompts]]
    encoded = encode_suite(models[0], prompts)
    matched = match_tokens(models[0], encoded, None)
    tokens = decode_each(models[0], matched.token_ids().tolist())

    ratios, shares = [], []
    for _ in range(arguments.rounds):
        old, _ = _timed(lambda: loop(models, encoded, dictionary))
        reading, (before, after) = _timed(lambda: _read(models, matched, dictionary.layer))
        features, _ = _timed(
            lambda before=before, after=after: compare_features(
                before, after, matched, dictionary, tokens
            )
        )
        ratios.append(old / (reading + features))
        shares.append(features / reading)
    text = page(len(encoded), sum(matched.lengths), ratios, shares, arguments)
    print(text)
    if arguments.write:
        write_text_atomically(arguments.write, text)


def _read(models: Sequence[LoadedModel], matched: Matched, layer: int) -> Any:
    before = read_model(models[0], matched, [layer])
    return before, read_model(models[1], matched, [layer], base=before)


def page(
    n: int, n_tokens: int, ratios: Sequence[float], shares: Sequence[float], arguments: Any
) -> str:
    """The table."""
    return "\n".join(
        [
            "# How fast features of two models are compared",
            "",
            f"Written by `python benchmarks/bench_diff.py`: {arguments.base} against"
            f" {arguments.candidate}, {n} prompts, {n_tokens} compared tokens, dictionary"
            f" {arguments.sae}, {torch.get_num_threads()} CPU threads, {len(ratios)} rounds in"
            " turns. Medians, with the range.",
            "",
            "| what | ratio |",
            "|---|---|",
            f"| prompt by prompt with all hidden states, over ours with tests | {_range(ratios)} |",
            f"| the features' step over the two forward passes | {_range(shares)} |",
            "",
            "Ours reads next-token probabilities of all tokens as well, tests every feature by sign"
            " flips, and gives the loop's numbers beside them.",
            "",
        ]
    )


def _range(values: Sequence[float]) -> str:
    return f"{median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
