"""What a scan costs: against ams-scanner, against one bare forward pass, in checks and in memory.

Everything is measured side by side in one run, in rounds that take turns, on the same loaded model
with the same prompts (those of the installed ams-scanner) and threads. Loading is left out. Only
ratios are reported: the median over the rounds of the ratio within a round, with its range.

    python benchmarks/bench_scan.py [--rounds 5] [--write docs/benchmarks.md]
"""

from __future__ import annotations

import argparse
import copy
import gc
import platform
import statistics
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch
from ams.concepts import get_scan_concepts
from ams.extractor import ActivationExtractor

from modelassay.data.concepts import concepts_for
from modelassay.diff.weights import diff_weights
from modelassay.measures.erased_directions import search_ablation, search_writers
from modelassay.measures.examination import examine, read_range
from modelassay.measures.separation import measure_separation
from modelassay.models import LoadedModel, load
from modelassay.models.accounting import check_accounts, check_finite, read_headers
from modelassay.models.stack import find_stack
from modelassay.models.writers import Kind, Writer, find_writers
from modelassay.reading.activations import read_activations
from modelassay.reading.batching import BATCH_TOKENS_CPU
from modelassay.reading.generation import generate_greedy
from modelassay.reading.hooks import capture
from modelassay.reading.prompts import Encoded, encode_prompts
from modelassay.scan.scanning import scan

Concepts = dict[str, list[tuple[str, str]]]


def ams_scan(model: LoadedModel, concepts: Concepts) -> None:
    """What `ams scan --mode full` does once its model is loaded."""
    extractor = ActivationExtractor(model.network, model.tokenizer, "cpu", torch.float32)
    for pairs in concepts.values():
        positive, negative = (list(side) for side in zip(*pairs, strict=True))
        extractor.extract_direction_with_layer_search(positive, negative)


def our_separation(model: LoadedModel, concepts: Concepts, *, chat_template: bool) -> None:
    """The same question answered by modelassay, 2000 label swaps included."""
    layers = read_range(len(model.layers))
    texts = [text for pairs in concepts.values() for pair in pairs for text in pair]
    encoded = encode_prompts(model, texts, chat_template=chat_template)
    values = iter(read_activations(model, encoded, layers).values)
    for pairs in concepts.values():
        both = torch.stack([next(values) for _ in range(2 * len(pairs))])
        keys = [f"{a}\n{b}" for a, b in pairs]
        measure_separation(both[0::2], both[1::2], layers, keys)


def floor(model: LoadedModel, prompts: list[Encoded]) -> None:
    """One bare forward of the unique prompts, sorted and batched, as deep as the scan reads."""
    depth = max(read_range(len(model.layers)))
    rows = sorted({prompt.ids for prompt in prompts}, key=len)
    with torch.inference_mode():
        while rows:
            count = 1
            while count < len(rows) and len(rows[count]) * (count + 1) <= BATCH_TOKENS_CPU:
                count += 1
            batch, rows = rows[:count], rows[count:]
            width = len(batch[-1])
            ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in batch])
            with capture(model.layers, [depth], lambda _layer, _hidden: None, stop=True):
                model.network(input_ids=ids, use_cache=False)


def seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def ratios(
    over: Callable[[], None], under: Callable[[], None], rounds: int
) -> tuple[float, float, float]:
    """Median, least and largest of time(over) / time(under), taking turns."""
    found = [seconds(over) / seconds(under) for _ in range(rounds)]
    return statistics.median(found), min(found), max(found)


def peak_megabytes(work: Callable[[], object]) -> float:
    """Largest growth of this process's memory while `work` runs."""
    process, done = psutil.Process(), threading.Event()
    gc.collect()
    before = process.memory_info().rss
    peak = before

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.005):
            peak = max(peak, process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        work()
    finally:
        done.set()
        watcher.join()
    return (peak - before) / 1e6


def check_seconds(model: LoadedModel, prompts: Sequence[Encoded]) -> dict[str, float]:
    """Seconds of each check that a model passes before anything is measured on it."""
    network, tokenizer = model.network, model.tokenizer
    # What a check found is kept by network and by tokenizer, so that copies are checked again.
    fresh = replace(model, network=copy.copy(network), tokenizer=copy.deepcopy(tokenizer))
    report: dict[str, Any] = {"mismatched_keys": (), "missing_keys": (), "unexpected_keys": ()}

    def account() -> None:
        check_accounts(model.source, read_headers(model.source.weight_files()), network, report)

    def first_minus_second(work: Callable[[], object]) -> float:
        return max(seconds(work) - seconds(work), 0.0)

    layers = read_range(len(model.layers))
    return {
        "the tensors of the files are those of the model": seconds(account),
        "the weights are finite": seconds(lambda: check_finite(network, model.info.id)),
        "the layers are one stream": seconds(lambda: find_stack(network, tokenizer)),
        "which matrices write to it": seconds(lambda: find_writers(network)),
        "the tokenizer and the chat template lose no text": first_minus_second(
            lambda: encode_prompts(fresh, ["Hello"])
        ),
        "batches change no activation": first_minus_second(
            lambda: read_activations(fresh, prompts, layers)
        ),
        "batches change no response": first_minus_second(
            lambda: generate_greedy(fresh, prompts, max_new_tokens=1)
        ),
    }


LARGE_LAYERS = (8192, 28672, 3)
"""Hidden size, MLP width and how many layers, as in models of 70 billion parameters."""


def large_layer() -> tuple[float, float]:
    """Seconds that the search for erased directions takes for a large layer, and GB read for it."""
    hidden, width, n_layers = LARGE_LAYERS
    columns: dict[Kind, int] = {"attention": hidden, "mlp": width}
    weights: dict[Kind, torch.Tensor] = {
        kind: torch.randn(hidden, n, dtype=torch.bfloat16) for kind, n in columns.items()
    }
    readers = {
        Writer(f"{kind}.{layer}", layer, 0, kind): [lambda w=w, i=layer: w.roll(i, 0)]
        for layer in range(n_layers)
        for kind, w in weights.items()
    }
    read = sum(weight.nbytes for weight in weights.values()) / 1e9
    return seconds(lambda: search_writers(readers, hidden)) / n_layers, read


def large_change() -> tuple[float, float]:
    """The same for a comparison with the base, of an edit in all that the layer writes."""
    hidden, width, _ = LARGE_LAYERS
    direction = torch.nn.functional.normalize(torch.randn(hidden), dim=0).bfloat16()
    taken, read = 0.0, 0.0
    matrices: tuple[tuple[str, tuple[int, int], Kind | None], ...] = (
        ("self_attn.q_proj", (hidden, hidden), None),
        ("self_attn.k_proj", (hidden // 8, hidden), None),
        ("self_attn.v_proj", (hidden // 8, hidden), None),
        ("self_attn.o_proj", (hidden, hidden), "attention"),
        ("mlp.gate_proj", (width, hidden), None),
        ("mlp.up_proj", (width, hidden), None),
        ("mlp.down_proj", (hidden, width), "mlp"),
    )
    for part, shape, kind in matrices:
        name = f"model.layers.0.{part}.weight"
        before = after = torch.randn(shape, dtype=torch.bfloat16) / 90
        writer = None
        if kind is not None:
            writer = Writer(name, 0, 0, kind)
            after = before - torch.outer(direction, direction @ before)
        tensors = [[(name, partial(torch.clone, weight))] for weight in (before, after)]
        found = partial(diff_weights, *tensors, lambda _, w=writer: w, hidden=hidden)
        taken, read = taken + seconds(found), read + (before.nbytes + after.nbytes) / 1e9
    return taken, read


def main() -> None:
    """Runs the benchmark and prints or writes the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path)
    arguments = parser.parse_args()
    rounds = arguments.rounds

    model = load("embedded", device="cpu")
    concepts = {
        c.name: [(p.positive, p.negative) for p in c.pairs] for c in get_scan_concepts("full")
    }
    texts = [text for pairs in concepts.values() for pair in pairs for text in pair]
    raw = encode_prompts(model, texts, chat_template=False)
    chat = encode_prompts(model, texts)
    floor(model, chat)  # warm up, and touch every page of the weights

    memory = {
        mode: peak_megabytes(lambda mode=mode: scan(model, mode=mode))
        for mode in ("quick", "standard")
    }

    def ours_raw() -> None:
        our_separation(model, concepts, chat_template=False)

    def ours_chat() -> None:
        our_separation(model, concepts, chat_template=True)

    def theirs() -> None:
        ams_scan(model, concepts)

    def with_weights() -> None:
        ours_raw()
        search_ablation(model)

    table = {
        "ams-scanner / modelassay, raw prompts": ratios(theirs, ours_raw, rounds),
        "ams-scanner / modelassay, raw prompts, weight forensics included": ratios(
            theirs, with_weights, rounds
        ),
        "ams-scanner (raw) / modelassay (chat template)": ratios(theirs, ours_chat, rounds),
        "modelassay / floor, raw prompts": ratios(ours_raw, lambda: floor(model, raw), rounds),
        "modelassay / floor, chat template": ratios(ours_chat, lambda: floor(model, chat), rounds),
    }

    def scanned(verify: str | None = None) -> None:
        scan(model, mode="standard", verify=verify)

    def scanned_quickly() -> None:
        scan(model, mode="quick")

    def verified() -> None:
        examine(
            model,
            mode="quick",
            concepts=concepts_for("quick"),
            identity=True,
            n_swaps=1,
            search=False,
        )

    by_length = sorted(chat, key=lambda prompt: len(prompt.ids))
    few = [by_length[0], by_length[len(by_length) // 2], by_length[-1]]
    shares: dict[str, list[float]] = {}
    for _ in range(rounds):
        whole = seconds(scanned)
        for name, cost in check_seconds(model, few).items():
            shares.setdefault(name, []).append(cost / whole)

    large_layer_seconds, large_layer_read = large_layer()
    large_change_seconds, large_change_read = large_change()
    table["scan --verify / scan, standard mode"] = ratios(
        lambda: scanned("embedded"), scanned, rounds
    )
    table["what verify reads / scan, quick mode"] = ratios(verified, scanned_quickly, rounds)
    layers = read_range(len(model.layers))

    def read(times: int) -> None:
        copies = [f"({n}) {text}" for n in range(times) for text in texts]
        read_activations(model, encode_prompts(model, copies), layers)

    curve = {
        n: ratios(lambda n=n: read(n), lambda: read(1), max(1, rounds // 2)) for n in (1, 4, 16)
    }

    lines = [
        "# Benchmarks",
        "",
        "Written by `make bench`. Ratios of times measured in turns in one run, median of"
        f" {rounds} rounds (least to largest); loading excluded.",
        "",
        f"Model `embedded` (SmolLM2-135M-Instruct, fp32), {len(texts)} prompts of ams-scanner"
        f" {version('ams-scanner')}, {torch.get_num_threads()} threads, {platform.machine()}, torch"
        f" {torch.__version__}, transformers {version('transformers')}.",
        "",
        "| ratio of times | median | range |",
        "|---|---|---|",
        *(
            f"| {name} | {m:.2f} | {low:.2f} to {high:.2f} |"
            for name, (m, low, high) in table.items()
        ),
        "",
        "The floor is one bare forward pass of the same unique prompts, sorted, batched by tokens,"
        " to the same depth, without a shared prefix. modelassay's time has the tokenizer, reading"
        " and, for every concept, nested cross-validation with 2000 label swaps in it. With a chat"
        " template, the system prompt is computed once, which is how it can fall below 1.",
        "",
        "| what is checked before a scan, once for each model | share of a standard scan |",
        "|---|---|",
        *(f"| {name} | {statistics.median(found):.2%} |" for name, found in shares.items()),
        "",
        "| prompts | time against 1x |",
        "|---|---|",
        *(f"| {n}x ({n * len(texts)}) | {m:.2f} |" for n, (m, _, _) in curve.items()),
        "",
        "| mode | peak memory above the loaded model |",
        "|---|---|",
        *(f"| {mode} | {megabytes:.0f} MB |" for mode, megabytes in memory.items()),
        "",
        f"The search for erased directions takes {large_layer_seconds:.1f} s for a layer of hidden"
        f" size {LARGE_LAYERS[0]} and MLP width {LARGE_LAYERS[1]}, of which {large_layer_read:.2f}"
        " GB are read. With its base beside it, and a direction taken out of what it writes, it"
        f" takes {large_change_seconds:.1f} s, and {large_change_read:.2f} GB are read.",
        "",
    ]
    text = "\n".join(lines)
    if arguments.write:
        arguments.write.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
