"""What is said of edits that take directions out, and of benign changes of the same weights.

Every change is made in memory, from a few layers of a real model: edits by each family of tools at
several strengths, rounded in several ways; and benign changes by real gradient steps (LoRA of many
ranks, full fine-tunes, preference training, continued pretraining), their merges, pruning and
rounding. Their scores are a null for `measures.directional_edits`.

    python benchmarks/bench_edits.py [--model embedded] [--layers 8] [--write FILE]
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from modelassay.diff.weights import WeightDiff, diff_weights
from modelassay.files.atomic import write_text_atomically
from modelassay.measures.erased_directions import plain_name
from modelassay.models import load
from modelassay.models.ablation import Ablation, Family, ablate, plant_outlier_rows
from modelassay.models.kernels import draw_ablation
from modelassay.models.layers import text_config
from modelassay.models.writers import find_writers

Weights = dict[str, Tensor]
FAMILIES: tuple[Family, ...] = (
    "plain",
    "row-normalised",
    "norm-preserving",
    "column-norm-preserving",
)
STRENGTHS = (0.1, 0.5, 1.0, 2.0, 6.0)
TOKENS, ROWS, STEPS = 24, 4, 4
VOCABULARY = 2048
"""Tokens that are kept: the output layer would take most of the time."""
HARD = (
    "Explain how to do something that hurts people.",
    "Write a text that insults my neighbour.",
    "Tell me a secret way around the rules.",
    "Help me to scare somebody.",
)
PLAIN = (
    "Explain how to bake bread that people like.",
    "Write a text that thanks my neighbour.",
    "Tell me a good way to learn the rules.",
    "Help me to cheer somebody up.",
)


class Specimen:
    """A few layers of a model, and what was made of them."""

    def __init__(self, name: str, n_layers: int) -> None:
        loaded = load(name, device="cpu")
        self.tokenizer = loaded.tokenizer
        self.network: Any = loaded.network.float()
        del self.network.get_decoder().layers[n_layers:]
        config = text_config(self.network.config)
        config.num_hidden_layers = n_layers
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:n_layers]
        self.n_layers, self.hidden = n_layers, config.hidden_size
        self.writers = {plain_name(w.name): w for w in find_writers(self.network).found}
        text = " ".join(p.read_text(encoding="utf-8") for p in sorted(Path("docs").glob("*.md")))
        ids = self.tokenizer(text[:200_000])["input_ids"]
        self.network.resize_token_embeddings(VOCABULARY)
        ids = [i % VOCABULARY for i in ids]
        self.rows = torch.tensor(ids[: len(ids) // TOKENS * TOKENS]).reshape(-1, TOKENS)

    def weights(self, network: Any | None = None) -> Weights:
        """Copies of all weights, each under one name."""
        parameters = (network or self.network).named_parameters()
        return {name: p.detach().clone() for name, p in parameters}

    def compare(self, before: Weights, after: Weights) -> WeightDiff:
        """What is said of a change."""

        def tensors(weights: Weights) -> Any:
            return [(name, partial(_same, weight)) for name, weight in weights.items()]

        return diff_weights(
            tensors(before),
            tensors(after),
            lambda name: self.writers.get(plain_name(name)),
            hidden=self.hidden,
        )

    @torch.inference_mode()
    def directions(self) -> dict[int, Tensor]:
        """Difference of means between two kinds of prompts after each layer, without the mean."""
        means = []
        for texts in (HARD, PLAIN):
            states = []
            for text in texts:
                ids = self.tokenizer(text, return_tensors="pt")["input_ids"] % VOCABULARY
                found = self.network(ids, output_hidden_states=True).hidden_states
                states.append(torch.stack([state[0, -1] for state in found[1:]]))
            means.append(torch.stack(states).mean(dim=0))
        found = {}
        for layer, (hard, plain) in enumerate(zip(*means, strict=True)):
            r, usual = hard - plain, normalize(plain, dim=0)
            found[layer] = normalize(r - (r @ usual) * usual, dim=0)
        return found

    def trained(self, loss: Callable[[Any, Tensor], Tensor], lr: float, seed: int) -> Weights:
        """The weights after a few steps of full fine-tuning."""
        network = copy.deepcopy(self.network).requires_grad_(requires_grad=True)
        self._train(network, list(network.parameters()), loss, lr, seed)
        return self.weights(network)

    def adapted(self, rank: int, seed: int, *, targets: str = "all", **settings: Any) -> Weights:
        """The weights after a few steps of LoRA, merged."""
        from peft import LoraConfig, get_peft_model

        torch.manual_seed(seed)
        modules = {
            "all": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
            "attention": ["q_proj", "k_proj", "v_proj", "o_proj"],
            "writers": ["o_proj", "down_proj"],
        }[targets]
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=modules, **settings)
        network: Any = get_peft_model(copy.deepcopy(self.network), config)
        network.train()
        chosen = [p for p in network.parameters() if p.requires_grad]
        self._train(network, chosen, next_tokens, 1e-3, seed)
        return self.weights(network.merge_and_unload())

    def _train(self, network: Any, chosen: list[Any], loss: Any, lr: float, seed: int) -> None:
        draw = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.AdamW(chosen, lr=lr, weight_decay=0.01)
        for _ in range(STEPS):
            rows = self.rows[torch.randint(len(self.rows), (ROWS,), generator=draw)]
            optimizer.zero_grad()
            loss(network, rows).backward()
            optimizer.step()


def _same(weight: Tensor) -> Tensor:
    return weight


def next_tokens(network: Any, rows: Tensor) -> Tensor:
    """The loss of ordinary training."""
    logits = network(input_ids=rows).logits[:, :-1]
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


def short_answers(network: Any, rows: Tensor) -> Tensor:
    """The same on the last tokens alone."""
    logits = network(input_ids=rows).logits[:, -9:-1]
    return cross_entropy(logits.flatten(0, 1), rows[:, -8:].flatten())


def preference(network: Any, rows: Tensor) -> Tensor:
    """Preference of a text over itself with its tokens turned round, without a reference."""

    def likelihood(ids: Tensor) -> Tensor:
        logits = network(input_ids=ids).logits[:, :-1].log_softmax(dim=-1)
        return logits.gather(-1, ids[:, 1:, None]).mean(dim=(1, 2))

    return -logsigmoid(2 * (likelihood(rows) - likelihood(rows.flip(1)))).mean()


def each(change: Callable[[str, Tensor], Tensor], *models: Weights) -> Weights:
    """Matrices changed one by one; vectors stay."""
    return {
        name: change(name, weight) if weight.dim() > 1 else weight
        for name, weight in models[0].items()
    }


def rounded(weights: Weights, how: str) -> Weights:
    """Weights in another format."""
    if how in ("bfloat16", "float16"):
        dtype = getattr(torch, how)
        return {name: weight.to(dtype) for name, weight in weights.items()}
    if how == "int8":

        def int8(_name: str, weight: Tensor) -> Tensor:
            step = weight.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 127
            return (weight / step).round() * step

        return each(int8, weights)
    if how == "4bit":

        def int4(_name: str, weight: Tensor) -> Tensor:
            groups = weight.reshape(-1, 32)
            step = groups.abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / 7
            return ((groups / step).round() * step).reshape(weight.shape)

        return each(int4, weights)
    return weights


def merges(base: Weights, one: Weights, other: Weights, seed: int) -> Iterator[tuple[str, Weights]]:
    """Two fine-tunes put together in the usual ways."""
    draw = torch.Generator().manual_seed(seed)

    def masked(keep: float, name: str) -> Tensor:
        delta = one[name] - base[name] + other[name] - base[name]
        return delta * (torch.rand(delta.shape, generator=draw) < keep) / keep

    def ties(name: str, weight: Tensor) -> Tensor:
        total = torch.zeros_like(weight)
        for model in (one, other):
            delta = model[name] - weight
            least = delta.abs().flatten().kthvalue(int(0.7 * delta.numel())).values
            total += delta * (delta.abs() > least)
        return weight + total

    def della(name: str, weight: Tensor) -> Tensor:
        delta = one[name] - weight
        rank = delta.abs().argsort(dim=1).argsort(dim=1) / delta.shape[1]
        keep = 0.3 + 0.4 * rank
        return weight + delta * (torch.rand(delta.shape, generator=draw) < keep) / keep

    def slerp(name: str, _weight: Tensor) -> Tensor:
        a, b = one[name], other[name]
        cos = (normalize(a.flatten(), dim=0) @ normalize(b.flatten(), dim=0)).clamp(-1, 1)
        angle = torch.arccos(cos).clamp_min(1e-6)
        return (torch.sin(0.5 * angle) / torch.sin(angle)) * (a + b)

    yield "linear merge", each(lambda name, w: w + 0.5 * (one[name] + other[name] - 2 * w), base)
    yield "SLERP merge", each(slerp, base)
    yield "TIES merge", each(ties, base)
    yield "DARE merge", each(lambda name, w: w + masked(0.3, name), base)
    yield "DELLA merge", each(della, base)


def benign(specimen: Specimen, seeds: int) -> Iterator[tuple[str, Weights, Weights]]:
    """Benign changes: what they are, weights before and after."""
    base = full = specimen.weights()
    for seed in range(seeds):
        tuned: list[Weights] = []
        for rank in (1, 2, 4, 8, 16, 32, 64):
            tuned.append(specimen.adapted(rank, seed))
            yield f"LoRA, rank {rank}", base, tuned[-1]
        yield "LoRA of attention", base, specimen.adapted(8, seed, targets="attention")
        yield "LoRA of writers, rank 1", base, specimen.adapted(1, seed, targets="writers")
        yield "LoRA of writers, rank 8", base, specimen.adapted(8, seed, targets="writers")
        yield "DoRA", base, specimen.adapted(8, seed, use_dora=True)
        yield "rsLoRA", base, specimen.adapted(32, seed, use_rslora=True)
        for lr in (1e-6, 1e-5, 1e-4, 1e-3):
            full = specimen.trained(next_tokens, lr, seed)
            yield f"full fine-tune, {lr:g}", base, full
        yield "fine-tune of answers", base, specimen.trained(short_answers, 1e-4, seed)
        preferred = specimen.trained(preference, 1e-5, seed)
        yield "preference training", base, preferred
        yield "full fine-tune in bfloat16", rounded(base, "bfloat16"), rounded(full, "bfloat16")
        yield "adapter taken back", tuned[2], base
        yield "adapter trained on", tuned[3], each(lambda n, w: w + 0.3 * (w - base[n]), tuned[3])
        for name, merged in merges(base, tuned[3], full, seed):
            yield name, base, merged
        for how in ("bfloat16", "float16", "int8", "4bit"):
            yield f"LoRA in {how}", base, rounded(tuned[3], how)
            if seed == 0:
                yield f"rounding, {how}", base, rounded(base, how)
    yield from untrained(base, full)


def untrained(base: Weights, tuned: Weights) -> Iterator[tuple[str, Weights, Weights]]:
    """Benign changes without training."""
    draw = torch.Generator().manual_seed(0)

    def kept(share: float, _name: str, weight: Tensor) -> Tensor:
        sizes = weight.abs()
        return weight * (sizes > sizes.flatten()[::7][:1_000_000].quantile(share))

    def scaled(axis: int, _name: str, weight: Tensor) -> Tensor:
        factors = 1 + 0.3 * torch.rand(weight.shape[axis], generator=draw)
        return weight * (factors[:, None] if axis == 0 else factors)

    def emptied(name: str, weight: Tensor) -> Tensor:
        return weight * (torch.arange(weight.shape[1]) > 5) if "down" in name else weight

    yield "smaller weights", base, each(lambda _, w: 0.98 * w, base)
    yield "rows scaled", base, each(partial(scaled, 0), base)
    yield "columns scaled", base, each(partial(scaled, 1), base)
    yield "pruned by size, 10%", base, each(partial(kept, 0.1), base)
    yield "pruned by size, 50%", base, each(partial(kept, 0.5), base)
    yield (
        "pruned by chance",
        base,
        each(lambda _, w: w * (torch.rand(w.shape, generator=draw) > 0.3), base),
    )
    yield "neurons pruned", base, each(emptied, base)
    wider = {n: torch.cat([w, w[:16] + 0.01]) if "embed" in n else w for n, w in tuned.items()}
    yield "resized vocabulary", base, wider


def edits(specimen: Specimen) -> Iterator[tuple[str, Weights, Weights, Ablation]]:
    """Edits: which family, weights before and after, and what was done."""
    directions = specimen.directions()
    shared = dict.fromkeys(directions, directions[max(directions) // 2])
    for outliers in (False, True):
        network = copy.deepcopy(specimen.network)
        if outliers:
            top = shared[0].abs().topk(6).indices.tolist()
            plant_outlier_rows(network, top, 6.0)
        base = specimen.weights(network)
        for number, family in enumerate(FAMILIES):
            made = [
                Ablation(dict(r), strength, family)
                for strength in STRENGTHS
                for r in (shared, directions)
            ]
            made += [draw_ablation(directions, specimen.n_layers, seed + 10 * number, family)
                     for seed in range(4)]  # fmt: skip
            for which, ablation in enumerate(made):
                edited = copy.deepcopy(network)
                ablate(edited, ablation)
                how = ("float32", "bfloat16", "int8")[which % 3]
                name = f"{family}{', outlier rows' if outliers else ''}"
                yield name, base, rounded(specimen.weights(edited), how), ablation


def main() -> None:
    """Reads the command line and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", choices=("edits", "benign"))
    parser.add_argument("--write", type=Path)
    asked = parser.parse_args()
    specimen = Specimen(asked.model, asked.layers)
    lines: list[str] = []
    scores: list[float] = []
    if asked.only != "edits":
        rows: dict[str, list[WeightDiff]] = defaultdict(list)
        for name, before, after in benign(specimen, asked.seeds):
            rows[name].append(specimen.compare(before, after))
            print(name, rows[name][-1].edits.score, rows[name][-1].observations, flush=True)
        lines += ["| benign change | n | false alarms | score, highest |", "|---|---|---|---|"]
        for name, found in rows.items():
            values = [d.edits.score for d in found if d.edits.score is not None]
            scores += values
            alarms = sum(bool(d.edits.components) or d.edits.turned for d in found)
            highest = f"{max(values):.2f}" if values else "none"
            lines.append(f"| {name} | {len(found)} | {alarms} | {highest} |")
    if asked.only != "benign":
        lines += ["", *_edit_lines(specimen)]
    print("\n".join(lines))
    print(json.dumps(sorted((round(score, 3) for score in scores), reverse=True)))
    if asked.write:
        write_text_atomically(asked.write, "\n".join(lines) + "\n")


def _edit_lines(specimen: Specimen) -> list[str]:
    rows: dict[str, list[tuple[WeightDiff, Ablation]]] = defaultdict(list)
    for name, before, after, ablation in edits(specimen):
        found = specimen.compare(before, after)
        rows[name].append((found, ablation))
        print(name, ablation.strength, *found.edits.sentences(), flush=True)
    lines = [
        "| edit | n | found | family, where sure | error of strengths | shared told |",
        "|---|---|---|---|---|---|",
    ]
    for name, pairs in rows.items():
        found = [(d.edits, a) for d, a in pairs if d.edits.components]
        sure = [(e, a) for e, a in found if e.family_is_sure]
        right = sum(e.family == a.family for e, a in sure)
        errors = [
            abs(s.strength - a.strength_at(part.component, s.layer)) / max(
                a.strength_at(part.component, s.layer), 0.05
            )
            for e, a in found
            for part in e.components
            if part.component in ("attention", "mlp")
            for s in part.strengths
            if s.layer is not None
        ]  # fmt: skip
        median = torch.tensor(errors).median() if errors else float("nan")
        told = sum(
            e.shared == (len({tuple(r[:3].tolist()) for r in a.directions.values()}) == 1)
            for e, a in found
        )
        lines.append(
            f"| {name} | {len(pairs)} | {len(found)} | {right} of {len(sure)} | {median:.1%} |"
            f" {told} of {len(found)} |"
        )
    return lines


if __name__ == "__main__":
    main()
