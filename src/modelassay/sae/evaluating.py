"""How good an SAE is, on text that it was not trained on.

Four numbers, none of which can stand for another: the variance that its reconstruction explains,
how many features are active on a token, how many never are, and what it costs the model in
next-token loss when the reconstruction takes the place of what the layer wrote.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import ConfigDict, Field, computed_field
from pydantic.dataclasses import dataclass
from torch import Tensor

from modelassay.errors import InputError
from modelassay.files.records import Count, Share
from modelassay.models import LoadedModel
from modelassay.models.components import Component, blocks_of
from modelassay.progress import OnProgress
from modelassay.reading.activations import read_activations
from modelassay.reading.batching import pad
from modelassay.reading.interventions import intervene
from modelassay.reading.prompts import Encoded
from modelassay.report.base import Report
from modelassay.report.charts import PALETTE, new_figure
from modelassay.report.sections import Section, Table, columns
from modelassay.sae.stream import encode_contexts

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

LOSS_BATCH = 8
"""Contexts whose logits are in memory together."""
LEAST_DAMAGE = 1e-4
"""Nats a token that the mean in a layer's place must cost, for a share of it to mean anything."""


@dataclass(frozen=True, config=ConfigDict(allow_inf_nan=False))
class SaeMetrics(Report):
    """Of an SAE on held-out text; the first token of a context is left out throughout."""

    explained_variance: Annotated[float, Field(le=1)]
    """1 - Σ‖x - x̂‖² / Σ‖x - mean x‖²; a poor SAE explains less than nothing."""
    l0: Annotated[float, Field(ge=0)]
    """Features active on a token, on average."""
    dead_share: Share
    """Of the features, those that fire on none of the tokens."""
    loss: float
    """Next-token loss of the model, in nats."""
    loss_spliced: float
    """The same with the layer's output replaced by the reconstruction."""
    loss_mean: float
    """The same with the layer's output replaced by its mean: what no SAE at all would do."""
    n_tokens: Count

    @computed_field
    @property
    def loss_added(self) -> float:
        """What the reconstruction costs, in nats a token."""
        return self.loss_spliced - self.loss

    @computed_field
    @property
    def loss_recovered(self) -> float | None:
        """Share of the damage of `loss_mean` that the reconstruction undoes; 1 is all of it.

        None where the mean does hardly any: the layer is then of no use to these texts.
        """
        damage = self.loss_mean - self.loss
        return 1 - self.loss_added / damage if damage > LEAST_DAMAGE else None

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        derived = {"loss_added": self.loss_added, "loss_recovered": self.loss_recovered}
        return {**asdict(self), **derived}

    def sections(self) -> list[Section]:
        """What it explains, and what the model loses by it."""
        losses = {
            "the model": self.loss,
            "with the reconstruction": self.loss_spliced,
            "with the mean": self.loss_mean,
        }
        undone = self.loss_recovered
        note = (
            "The layer's absence costs next to nothing on these texts."
            if undone is None
            else f"The reconstruction undoes {undone:.1%} of the damage of the layer's absence."
        )
        return [
            Section(
                "metrics",
                facts=[
                    ("tokens", f"{self.n_tokens}, held out"),
                    ("variance explained", f"{self.explained_variance:.1%}"),
                    ("features a token", f"{self.l0:.1f}"),
                    ("never fire", f"{self.dead_share:.1%} of the features"),
                ],
            ),
            Section(
                "losses",
                "next-token loss",
                table=Table(
                    columns("layer's output", "nats a token", right=(1,)),
                    [(name, f"{loss:.3f}") for name, loss in losses.items()],
                    records=lambda: [{"output": n, "loss": loss} for n, loss in losses.items()],
                ),
                chart=partial(_losses, losses),
                note=note,
            ),
        ]


def _losses(losses: Mapping[str, float]) -> Figure:
    figure = new_figure("Next-token loss by what the layer writes", "", "nats a token")
    figure.add_bar(x=list(losses), y=list(losses.values()), marker_color=PALETTE[0])
    return figure


@torch.inference_mode()
def evaluate_sae(
    model: LoadedModel,
    sae: Any,
    layer: int,
    texts: Sequence[str],
    *,
    context: int = 128,
    on_progress: OnProgress | None = None,
) -> SaeMetrics:
    """Scores an SAE on texts.

    Args:
        model: The model it belongs to.
        sae: A sae-lens SAE with `encode` and `decode`.
        layer: The layer whose output it takes apart.
        texts: Not among those it was trained on.
        context: Tokens that are read together.
        on_progress: Told (contexts done, contexts in all) of the splicing.

    Raises:
        InputError: no text makes two tokens, or the SAE has another width.
    """
    contexts = encode_contexts(model, texts, context)
    if not contexts:
        raise InputError("The texts to score the SAE on are empty.")
    values = read_activations(model, contexts, [layer], position="all").values[:, 0]
    if values.shape[1] != sae.cfg.d_in:
        raise InputError(
            f"The SAE reads {sae.cfg.d_in} dimensions, {model.info.id} has"
            f" {values.shape[1]}; it belongs to another model."
        )
    mean = values.mean(dim=0)
    error, active, fired = 0.0, 0, torch.zeros(sae.cfg.d_sae, dtype=torch.bool)
    for rows in values.split(1024):
        features = sae.encode(rows.to(sae.device))
        error += float((sae.decode(features).cpu() - rows).double().square().sum())
        active += int((features > 0).sum())
        fired |= (features > 0).any(dim=0).cpu()

    def spliced(hidden: Tensor) -> Tensor:
        rebuilt = sae.decode(sae.encode(hidden.to(sae.device, torch.float32)))
        return _from_second(hidden, rebuilt.to(hidden))

    def averaged(hidden: Tensor) -> Tensor:
        return _from_second(hidden, mean.to(hidden).expand_as(hidden))

    blocks, block = blocks_of(model.layers), Component(layer, "block")
    losses, counted = [0.0, 0.0, 0.0], 0
    for start in range(0, len(contexts), LOSS_BATCH):
        if on_progress:
            on_progress(start, len(contexts))
        batch = contexts[start : start + LOSS_BATCH]
        for i, edit in enumerate((None, spliced, averaged)):
            with intervene(blocks, {} if edit is None else {block: edit}):
                losses[i] += _loss(model, batch)
        counted += sum(len(context.ids) - 2 for context in batch)
    if on_progress:
        on_progress(len(contexts), len(contexts))
    plain, with_sae, with_mean = (total / max(counted, 1) for total in losses)
    return SaeMetrics(
        explained_variance=1 - error / float((values - mean).double().square().sum()),
        l0=active / len(values),
        dead_share=float((~fired).double().mean()),
        loss=plain,
        loss_spliced=with_sae,
        loss_mean=with_mean,
        n_tokens=len(values),
    )


def _from_second(hidden: Tensor, instead: Tensor) -> Tensor:
    """[batch, token, hidden] with `instead` from the second token on."""
    return torch.cat([hidden[:, :1], instead[:, 1:]], dim=1)


def _loss(model: LoadedModel, contexts: Sequence[Encoded]) -> float:
    """Summed next-token loss in nats, of every token but the first two."""
    rows = [context.ids for context in contexts]
    # Right padding: no real token sees it, and what it predicts is not counted. The token that
    # follows the first one is predicted from it alone, and it is never replaced.
    ids, targets = pad(rows), pad(rows, -100)[:, 2:]
    logits = model.network(input_ids=ids.to(model.device), use_cache=False).logits[:, 1:-1].float()
    total = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), targets.to(logits.device).flatten(), reduction="sum"
    )
    return float(total)
