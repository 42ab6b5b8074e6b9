"""Reads a tiny model of every family and says how it went: the table in docs/models.md.

`python tests/support/family_sweep.py` writes that page.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from families import NOT_BUILT, TYPES, save_family
from modelassay.errors import InputError
from modelassay.models import LoadedModel, load
from modelassay.models.watching import stream_of
from modelassay.reading.activations import read_activations
from modelassay.reading.generation import end_tokens, generate_greedy
from modelassay.reading.prompts import encode_prompts

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
TEXTS = ["Why is the sky blue?", "Hi", "Tell me how to bake bread at home, in a few steps.", "So?"]
NEW_TOKENS = 4
HEAD = """# Which models are read

A model is read if its layers form one residual stream from left to right. This page lists every
model type of transformers {version} with a class that continues text, or text and images. A tiny
model of each, with random weights, is saved, loaded, read and compared with a plain forward pass
of each prompt by itself. `python tests/support/family_sweep.py` writes the page.

Whether prompts may share a batch is found out with each model when it is first read: *equal
lengths* means that padding changes values in this family, so that only prompts of equal length are
read or answered together.

| Model type | Outcome | Remarks |
|---|---|---|
"""


def outcome(model_type: str, folder: Path) -> tuple[str, str]:
    """What becomes of this family: `read` or `refused`, and remarks.

    Raises:
        AssertionError: a value is not that of a plain pass.
    """
    if reason := NOT_BUILT.get(model_type):
        return "not tried", f"Not made tiny: {reason}."
    save_family(folder, model_type)
    try:
        model = load(str(folder), device="cpu")
    except InputError as error:
        return "refused", _plain(str(error), folder)
    prompts = encode_prompts(model, TEXTS)
    n = len(model.layers)
    read = read_activations(model, prompts, range(n), readout=lambda logits: logits)
    for i, prompt in enumerate(prompts):
        states, logits = reference(model, prompt.ids)
        assert _close(read.values[i], states), (model_type, "activations")
        assert read.readout is not None
        assert _close(read.readout[i], logits), (model_type, "logits")
    remarks = []
    if skipped := [i for i in range(1, n) if model.layers[i] is model.layers[i - 1]]:
        remarks.append(
            "cross-attention to images does not run on text: such layers"
            f" ({', '.join(map(str, skipped))} of the tiny model) leave the stream as it is"
        )
    if len(_batches(model, prompts)) > 1:
        remarks.append("batches of equal lengths")
    responses = generate_greedy(model, prompts, max_new_tokens=NEW_TOKENS)
    alone = [generate_greedy(model, [p], max_new_tokens=NEW_TOKENS)[0] for p in prompts]
    assert responses == alone, (model_type, "responses")
    if any(_argmax(model, p.ids) != r.text for p, r in zip(prompts, responses, strict=True)):
        remarks.append("with its own cache it answers otherwise than without")
    return "read", "; ".join(remarks).capitalize() + "." * bool(remarks)


def reference(model: LoadedModel, ids: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Outputs of all layers [layer, hidden] and logits at the last token of one prompt."""
    kept: dict[int, torch.Tensor] = {}

    def keep(layer: int, output: Any) -> None:
        kept[layer] = stream_of(output)[0, -1].float()

    handles = [
        layer.register_forward_hook(lambda _m, _a, output, i=i: keep(i, output))
        for i, layer in enumerate(model.layers)
    ]
    try:
        with torch.inference_mode():
            out = model.network(input_ids=torch.tensor([list(ids)]), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack([kept[i] for i in range(len(model.layers))]), out.logits[0, -1].float()


def _batches(model: LoadedModel, prompts: Sequence[Any]) -> set[object]:
    """Kinds of batches among prompts of several lengths."""
    from modelassay.reading.batching import Batching, batching_of

    def never(_batch: Sequence[Sequence[int]]) -> torch.Tensor:
        raise AssertionError("the model has been tried")

    short, long = (min(prompts, key=lambda p: len(p.ids)), max(prompts, key=lambda p: len(p.ids)))
    way: Batching = batching_of(model, "activations", never, short.ids, long.ids)
    return {way.key(prompt.ids) for prompt in prompts}


def _argmax(model: LoadedModel, ids: Sequence[int]) -> str:
    """A greedy response without a cache."""
    said: list[int] = []
    for _ in range(NEW_TOKENS):
        said.append(int(reference(model, [*ids, *said])[1].argmax()))
        if said[-1] in end_tokens(model):
            break
    return model.tokenizer.decode(said, skip_special_tokens=True)


def _close(a: torch.Tensor, b: torch.Tensor) -> bool:
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1).clamp_min(1e-9)).max()) < 1e-4


def _plain(message: str, folder: Path) -> str:
    """The reason in one sentence, without the folder of this run."""
    first = re.split(r"; modelassay|\. Choose|\. The checkpoint", message)[0]
    return first.replace(str(folder), "The checkpoint").replace("|", "/").rstrip(".") + "."


def row(model_type: str, found: tuple[str, str]) -> str:
    """One line of the table."""
    return f"| `{model_type}` | {found[0]} | {found[1]} |"


def main() -> None:
    import transformers

    rows = []
    for model_type in TYPES:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row(model_type, outcome(model_type, Path(folder))))
    PAGE.write_text(HEAD.format(version=transformers.__version__) + "\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
