"""What is said of edits that take directions out, and of benign changes of the same weights.

Every change is made in memory, from a few layers of a real model: edits by each family of tools at
several strengths, rounded in several ways; and benign changes by real gradient steps (LoRA of many
ranks, full fine-tunes, preference training, continued pretraining), their merges, pruning and
rounding. Their scores are a null for `measures.directional_edits`.

    python benchmarks/bench_edits.py [--model embedded] [--layers 8] [--seeds 2]

What is measured is written to `edits.jsonl` beside this file as it comes, so that a run that was
stopped goes on; `edits.md` holds the tables of all that is there.
"""

from __future__ import annotations

import argparse
import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, normalize

from modelassay.diff.weights import WeightDiff, diff_weights
from modelassay.files.atomic import write_text_atomically
from modelassay.measures.erased_directions import plain_name
from modelassay.models import load
from modelassay.models.ablation import (
    Ablation,
    Family,
    ablate,
    plant_outlier_rows,
    ridge_directions,
)
from modelassay.models.kernels import draw_ablation
from modelassay.models.layers import text_config
from modelassay.models.writers import OUTPUTS, Kind, find_writers

Weights = dict[str, Tensor]
Pair = tuple[Weights, Weights]
"""Before and after."""
RESULTS, TABLES = (Path(__file__).parent / name for name in ("edits.jsonl", "edits.md"))
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
    if how in ("Q8_0", "Q4_0"):
        return each(partial(_as_gguf, how), weights)
    return weights


def _as_gguf(how: str, _name: str, weight: Tensor) -> Tensor:
    from gguf import GGMLQuantizationType, dequantize, quantize

    kind = GGMLQuantizationType[how]
    return torch.from_numpy(dequantize(quantize(weight.numpy(), kind), kind))


MERGES = ("linear merge", "SLERP merge", "TIES merge", "DARE merge", "DELLA merge")


def merged(kind: str, base: Weights, one: Weights, other: Weights, seed: int) -> Weights:
    """Two fine-tunes put together in one of the usual ways."""
    draw = torch.Generator().manual_seed(seed)

    def dare(name: str, weight: Tensor) -> Tensor:
        delta = one[name] - weight + other[name] - weight
        return weight + delta * (torch.rand(delta.shape, generator=draw) < 0.3) / 0.3

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

    def linear(name: str, weight: Tensor) -> Tensor:
        return weight + 0.5 * (one[name] + other[name] - 2 * weight)

    ways: dict[str, Callable[[str, Tensor], Tensor]] = dict(
        zip(MERGES, (linear, slerp, ties, dare, della), strict=True)
    )
    return each(ways[kind], base)


def benign(specimen: Specimen, seeds: int) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """Benign changes: what they are, and what makes the weights before and after."""
    base = specimen.weights()
    for seed in range(seeds):
        yield from _trained(specimen, base, seed)
    yield from _untrained(base)


def _trained(
    specimen: Specimen, base: Weights, seed: int
) -> Iterator[tuple[str, Callable[[], Pair]]]:
    @cache
    def adapter(rank: int) -> Weights:
        return specimen.adapted(rank, seed)

    @cache
    def full(lr: float = 1e-3) -> Weights:
        return specimen.trained(next_tokens, lr, seed)

    def adapted(rank: int, **settings: Any) -> Callable[[], Pair]:
        return lambda: (base, specimen.adapted(rank, seed, **settings))

    def rounding(how: str, after: Callable[[], Weights]) -> Callable[[], Pair]:
        return lambda: (base, rounded(after(), how))

    for rank in (1, 2, 4, 8, 16, 32, 64):
        yield f"LoRA, rank {rank}", partial(lambda rank: (base, adapter(rank)), rank)
    yield "LoRA of attention", adapted(8, targets="attention")
    yield "LoRA of writers, rank 1", adapted(1, targets="writers")
    yield "LoRA of writers, rank 8", adapted(8, targets="writers")
    yield "DoRA", adapted(8, use_dora=True)
    yield "rsLoRA", adapted(32, use_rslora=True)
    for lr in (1e-6, 1e-5, 1e-4, 1e-3):
        yield f"full fine-tune, {lr:g}", partial(lambda lr: (base, full(lr)), lr)
    yield "fine-tune of answers", lambda: (base, specimen.trained(short_answers, 1e-4, seed))
    yield "preference training", lambda: (base, specimen.trained(preference, 1e-5, seed))
    yield (
        "full fine-tune in bfloat16",
        lambda: (rounded(base, "bfloat16"), rounded(full(), "bfloat16")),
    )
    yield "adapter taken back", lambda: (adapter(4), base)
    yield (
        "adapter trained on",
        lambda: (adapter(8), each(lambda n, w: w + 0.3 * (w - base[n]), adapter(8))),
    )
    for kind in MERGES:
        yield kind, partial(lambda kind: (base, merged(kind, base, adapter(8), full(), seed)), kind)
    for how in ("bfloat16", "float16", "int8", "4bit", "Q8_0", "Q4_0"):
        yield f"LoRA in {how}", rounding(how, lambda: adapter(8))
        if seed == 0:
            yield f"rounding, {how}", rounding(how, lambda: base)
    yield (
        "resized vocabulary",
        lambda: (
            base,
            {n: torch.cat([w, w[:16] + 0.01]) if "embed" in n else w for n, w in full().items()},
        ),
    )


def _untrained(base: Weights) -> Iterator[tuple[str, Callable[[], Pair]]]:
    """Benign changes without training."""
    draw = torch.Generator().manual_seed(0)

    def kept(share: float, _name: str, weight: Tensor) -> Tensor:
        sizes = weight.abs()
        return weight * (sizes > sizes.flatten()[::7][:1_000_000].quantile(share))

    def kept_of_rows(share: float, _name: str, weight: Tensor) -> Tensor:
        sizes = weight.abs()
        return weight * (sizes > sizes.quantile(share, dim=1, keepdim=True))

    def two_of_four(_name: str, weight: Tensor) -> Tensor:
        fours = weight.reshape(-1, 4)
        least = fours.abs().sort(dim=1).values[:, 1:2]
        return (fours * (fours.abs() > least)).reshape(weight.shape)

    def cut(name: str, weight: Tensor) -> Tensor:
        if "embed" in name:
            return weight
        u, values, v = torch.linalg.svd(weight, full_matrices=False)
        half = len(values) // 2
        return (u[:, :half] * values[:half]) @ v[:half]

    def scaled(axis: int, _name: str, weight: Tensor) -> Tensor:
        factors = 1 + 0.3 * torch.rand(weight.shape[axis], generator=draw)
        return weight * (factors[:, None] if axis == 0 else factors)

    def emptied(name: str, weight: Tensor) -> Tensor:
        return weight * (torch.arange(weight.shape[1]) > 5) if "down" in name else weight

    def thinned(_name: str, weight: Tensor) -> Tensor:
        return weight * (torch.rand(weight.shape, generator=draw) > 0.3)

    for name, change in (
        ("smaller weights", lambda _, w: 0.98 * w),
        ("rows scaled", partial(scaled, 0)),
        ("columns scaled", partial(scaled, 1)),
        *((f"pruned by size, {share:.0%}", partial(kept, share)) for share in (0.1, 0.3, 0.5, 0.7)),
        ("pruned by size in each row, 70%", partial(kept_of_rows, 0.7)),
        ("pruned, two of four", two_of_four),
        ("cut to half of its rank", cut),
        ("pruned by chance", thinned),
        ("neurons pruned", emptied),
    ):
        yield name, partial(lambda change: (base, each(change, base)), change)


def edits(specimen: Specimen) -> Iterator[tuple[str, Ablation, Callable[[], Pair]]]:
    """Edits: which kind, what was done, and what makes the weights before and after."""
    own = specimen.directions()
    shared = dict.fromkeys(own, own[max(own) // 2])
    three = dict.fromkeys(own, torch.stack([own[i] for i in (0, max(own) // 2, max(own))]))
    ridge, shares = ridge_directions(three[0], 0.5)
    kinds: list[tuple[str, Ablation]] = []
    for number, family in enumerate(FAMILIES):
        kinds += [(family, Ablation(r, w, family)) for w in STRENGTHS for r in (shared, own)]
        kinds += [
            (family, draw_ablation(own, specimen.n_layers, seed + 10 * number, family))
            for seed in range(4)
        ]
        kinds.append(("three directions", Ablation(three, 1.0, family)))
        kinds.append(("ridge", Ablation(dict.fromkeys(own, ridge), 1.0, family, shares=shares)))
        for kind in OUTPUTS:
            only: dict[Kind, dict[int, float]] = {kind: dict.fromkeys(own, 1.0)}
            kinds.append((f"{kind} only", Ablation(shared, 0.8, family, only)))
    kinds.append(("everything", Ablation(shared, others=frozenset({"readers", "embeddings"}))))
    for outliers in (False, True):
        network = copy.deepcopy(specimen.network)
        if outliers:
            plant_outlier_rows(network, shared[0].abs().topk(6).indices.tolist(), 6.0)
        base = specimen.weights(network)
        for which, (kind, ablation) in enumerate(kinds):
            how = ("float32", "bfloat16", "int8")[which % 3]
            name = f"{kind}{', outlier rows' if outliers else ''}"
            yield name, ablation, partial(_edited, specimen, network, base, ablation, how)


def _edited(specimen: Specimen, network: Any, base: Weights, ablation: Ablation, how: str) -> Pair:
    edited = copy.deepcopy(network)
    ablate(edited, ablation)
    return base, rounded(specimen.weights(edited), how)


def record_of(found: WeightDiff, ablation: Ablation | None) -> dict[str, Any]:
    """What is kept of a comparison."""
    told = found.edits
    record: dict[str, Any] = {
        "score": told.score,
        "found": bool(told.components) or told.turned,
    }
    if ablation is None or not told.components:
        return record
    errors = [
        abs(s.strength - wanted) / max(wanted, 0.05)
        for part in told.components
        if part.component in ("attention", "mlp")
        for s in part.strengths
        if s.layer is not None
        for wanted in [ablation.strength_at(part.component, s.layer)]
    ]
    one = len({tuple(r.flatten()[:3].tolist()) for r in ablation.directions.values()}) == 1
    return record | {
        "sure": told.family_is_sure,
        "family": told.family,
        "right": told.family == ablation.family,
        "shared": told.shared == one,
        "error": float(torch.tensor(errors).median()) if errors else None,
    }


def measure(model: str, n_layers: int, seeds: int) -> Iterator[dict[str, Any]]:
    """Records of all changes of a model that are not in the file yet."""
    known = {(r["model"], r["change"], r["nth"]) for r in read_records()}
    specimen = Specimen(model, n_layers)
    changes: list[tuple[str, Ablation | None, Callable[[], Pair]]] = [
        (name, None, make) for name, make in benign(specimen, seeds)
    ]
    changes += list(edits(specimen))
    seen: Counter[str] = Counter()
    for name, ablation, make in changes:
        nth = seen[name]
        seen[name] += 1
        if (model, name, nth) in known:
            continue
        found = record_of(specimen.compare(*make()), ablation)
        wanted = None if ablation is None else ablation.family
        yield {"model": model, "change": name, "nth": nth, "edit": wanted, **found}


def read_records() -> list[dict[str, Any]]:
    """What was measured so far."""
    if not RESULTS.is_file():
        return []
    return [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]


def tables(records: list[dict[str, Any]]) -> str:
    """Both tables as Markdown, with a group of columns for each model."""
    models = list(dict.fromkeys(r["model"] for r in records))
    rows: dict[bool, dict[str, list[dict[str, Any]]]] = {True: {}, False: {}}
    for record in records:
        rows[record["edit"] is None].setdefault(record["change"], []).append(record)
    columns = "".join(f" {m}: alarms | {m}: highest score |" for m in models)
    lines = [f"| benign change |{columns}", "|---|" + "---|---|" * len(models)]
    for name, of_kind in rows[True].items():
        line = f"| {name} |"
        for own in ([r for r in of_kind if r["model"] == m] for m in models):
            scores = [r["score"] for r in own if r["score"] is not None]
            highest = f"{max(scores):.2f}" if scores else ""
            line += f" {sum(r['found'] for r in own)} of {len(own)} | {highest} |"
        lines.append(line)
    columns = "".join(f" {m}: found | family right, where sure | strength off by |" for m in models)
    lines += ["", f"| edit |{columns}", "|---|" + "---|---|---|" * len(models)]
    for name, of_kind in rows[False].items():
        line = f"| {name} |"
        for own in ([r for r in of_kind if r["model"] == m] for m in models):
            sure = [r for r in own if r.get("sure")]
            errors = [r["error"] for r in own if r.get("error") is not None]
            error = f"{torch.tensor(errors).median():.1%}" if errors else ""
            line += (
                f" {sum(r['found'] for r in own)} of {len(own)} |"
                f" {sum(r['right'] for r in sure)} of {len(sure)} | {error} |"
            )
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Reads the command line, measures, and writes what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    asked = parser.parse_args()
    for record in measure(asked.model, asked.layers, asked.seeds):
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(record["model"], record["change"], record["score"], record["found"], flush=True)
    records = read_records()
    write_text_atomically(TABLES, tables(records))
    scores = sorted((r["score"] for r in records if r["edit"] is None and r["score"]), reverse=True)
    print(json.dumps([round(score, 3) for score in scores]))


if __name__ == "__main__":
    main()
