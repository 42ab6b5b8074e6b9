"""Training a sparse autoencoder on a model's activations: sae-lens's trainer, fed and kept by us.

What is ours: a stream of activations in bounded memory (`stream`), a state that is kept after every
window and taken up again (safetensors and JSON; sae-lens's own checkpoints are pickles), and a
threshold that is set on activations rather than by a moving average, which a short run leaves far
from the sparsity that was asked for.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from modelassay.errors import InputError
from modelassay.models import LoadedModel
from modelassay.models.layers import resolve_layers
from modelassay.models.training_state import (
    load_state,
    moments_of,
    restore_moments,
    save_state,
)
from modelassay.progress import OnProgress
from modelassay.sae.stream import Window, read_windows, shuffled_batches

Kind = Literal["batchtopk", "topk", "jumprelu", "matryoshka"]
OWN_COUNTS = ("tokens", "windows", "texts_read")
TRAINER_COUNTS = {
    "steps": "n_training_steps",
    "samples": "n_training_samples",
    "counted": "n_frac_active_samples",
}
"""How far a run has come: fields of the run, and of sae-lens's trainer by their name on disk."""


@dataclass(frozen=True)
class Settings:
    """How an SAE is trained."""

    layer: int
    """The layer whose output it takes apart; a negative one is counted from the end."""
    width: int
    """Features."""
    k: int = 48
    """Features active on a token: on average for `batchtopk` and `matryoshka`, exactly for `topk`,
    aimed at by `jumprelu`."""
    kind: Kind = "batchtopk"
    tokens: int = 1_000_000
    """Activations read; each is used `passes` times."""
    passes: int = 1
    batch: int = 2048
    """Activations in a step."""
    learning_rate: float = 4e-4
    window_tokens: int = 100_000
    """Activations in memory together: 2 bytes × hidden size each."""
    context: int = 128
    seed: int = 0

    def of(self, model: LoadedModel) -> Settings:
        """The same settings with the layer counted from 0.

        Raises:
            InputError: they cannot be trained with on this model; says which one.
        """
        hidden = model.info.hidden_size
        self.check()
        if self.width < hidden // 8:
            raise InputError(f"A width of {self.width} is too small for {hidden} dimensions.")
        return replace(self, layer=resolve_layers([self.layer], len(model.layers))[0])

    def check(self) -> None:
        """Refuses settings that cannot be trained with on any model.

        Raises:
            InputError: says which one.
        """
        if not 0 < self.k < self.width:
            raise InputError(
                f"k must be at least 1 and below the width, got {self.k} of {self.width}."
            )
        for name in ("tokens", "passes", "batch", "window_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1.")
        if not 0 < self.learning_rate < 1:
            raise InputError("The learning rate must lie between 0 and 1.")
        if self.context < 2:
            raise InputError("A context needs at least two tokens; the first one is not read.")
        if self.batch > min(self.window_tokens, self.tokens):
            raise InputError("A batch cannot be larger than a window or than all tokens.")


def train_sae(
    model: LoadedModel,
    open_texts: Callable[[], Iterable[str]],
    settings: Settings,
    *,
    state: Path | None = None,
    on_progress: OnProgress | None = None,
) -> Any:
    """Trains an SAE.

    Args:
        model: Whose activations are read; it is not changed.
        open_texts: Opens the text stream at its beginning, in the same order every time. A stream
            that ends before enough tokens are read begins again.
        settings: How.
        state: Folder in which the state is kept after every window; one of the same model and
            settings is taken up.
        on_progress: Told (activations read, activations in all).

    Returns:
        A trained sae-lens SAE in training form, on the model's scale.

    Raises:
        InputError: settings that cannot be, an empty stream, or a state of another run.
    """
    settings = settings.of(model)
    run = _Run(model, settings, state)
    windows = read_windows(
        model,
        open_texts,
        settings.layer,
        window_tokens=settings.window_tokens,
        context=settings.context,
        first_window=run.windows,
        texts_read=run.texts_read,
    )
    window: Window | None = None
    while run.tokens < settings.tokens:
        if on_progress:
            on_progress(run.tokens, settings.tokens)
        window = next(windows)
        run.train_on(window)
        run.save()
    if on_progress:
        on_progress(settings.tokens, settings.tokens)
    return run.finish(window or next(windows))


class _Run:
    """A training run: sae-lens's trainer and how far it has come."""

    def __init__(self, model: LoadedModel, settings: Settings, state: Path | None) -> None:
        from sae_lens.config import SAETrainerConfig
        from sae_lens.training.sae_trainer import SAETrainer

        self.settings = settings
        self.state = state
        self.tokens = self.windows = self.texts_read = 0
        self.identity = hashlib.sha256(
            json.dumps([model.info.weights_sha256, asdict(settings)]).encode()
        ).hexdigest()
        steps = max(settings.tokens * settings.passes // settings.batch, 1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.sae = _new_sae(settings, model.info.hidden_size, str(model.device), steps)
        self.trainer: Any = SAETrainer(
            SAETrainerConfig(
                total_training_samples=steps * settings.batch,
                train_batch_size_samples=settings.batch,
                lr=settings.learning_rate,
                lr_end=settings.learning_rate / 10,
                lr_warm_up_steps=min(200, steps // 10),
                lr_decay_steps=steps // 5,
                device=str(model.device),
                # A feature that stays silent for a twentieth of the run gets the auxiliary loss.
                dead_feature_window=max(steps // 20, 20),
            ),
            self.sae,
            iter(()),  # batches are handed to it
        )
        if state is not None:
            self._load(state)

    def train_on(self, window: Window) -> None:
        """Passes over the window's activations."""
        trainer, settings = self.trainer, self.settings
        if trainer.activation_scaler.scaling_factor is None:
            self._set_scale(window.values.float())
        for batch in shuffled_batches(window, settings.batch, settings.passes, settings.seed):
            trainer.step(batch)
            trainer.n_training_steps += 1
        self.tokens += len(window.values)
        self.windows, self.texts_read = window.number + 1, window.texts_read

    def _set_scale(self, values: Tensor) -> None:
        """Scales activations to an expected norm of √hidden, and begins at their mean."""
        scale = float(values.shape[1] ** 0.5 / values.norm(dim=1).mean())
        self.trainer.activation_scaler.scaling_factor = scale
        with torch.no_grad():
            self.sae.b_dec.copy_(values.mean(dim=0).to(self.sae.b_dec) * scale)

    def finish(self, window: Window) -> Any:
        """The SAE on the model's own scale, as sparse as was asked for."""
        scaler = self.trainer.activation_scaler
        if hasattr(self.sae, "topk_threshold"):
            self._set_threshold(window.values)
        self.sae.fold_activation_norm_scaling_factor(scaler.scaling_factor)
        scaler.scaling_factor = None
        self.sae.eval()
        return self.sae

    @torch.no_grad()
    def _set_threshold(self, values: Tensor) -> None:
        """The activation that k features a token exceed on average."""
        n = min(len(values), 8192)
        largest = []
        for rows in values[:n].split(1024):
            scaled = self.trainer.activation_scaler(rows.float().to(self.sae.device))
            _, before = self.sae.encode_with_hidden_pre(scaled)
            # No token needs many times k, and all of them would not fit.
            kept = min(before.shape[1], 16 * self.settings.k)
            largest.append(before.relu().topk(kept, dim=1).values.flatten().cpu())
        together = torch.cat(largest)
        wanted = min(self.settings.k * n, len(together))
        threshold = together.topk(wanted).values[-1]
        self.sae.topk_threshold = threshold.to(self.sae.topk_threshold)

    def save(self) -> None:
        """Keeps the state, whole or not at all."""
        if self.state is None:
            return
        trainer = self.trainer
        tensors = {f"sae.{name}": value for name, value in self.sae.state_dict().items()}
        tensors |= moments_of(trainer.optimizer)
        tensors["frequency"] = trainer.act_freq_scores
        tensors["since_fired"] = trainer.n_forward_passes_since_fired
        progress = {
            **{name: getattr(self, name) for name in OWN_COUNTS},
            **{name: getattr(trainer, counted) for name, counted in TRAINER_COUNTS.items()},
            "scale": trainer.activation_scaler.scaling_factor,
        }
        save_state(self.state, self.identity, tensors, progress)

    def _load(self, state: Path) -> None:
        if (found := load_state(state, self.identity)) is None:
            return
        tensors, progress = found
        trainer = self.trainer
        self.sae.load_state_dict(
            {n.removeprefix("sae."): v for n, v in tensors.items() if n.startswith("sae.")}
        )
        restore_moments(trainer.optimizer, tensors)
        trainer.act_freq_scores = tensors["frequency"].to(trainer.act_freq_scores)
        trainer.n_forward_passes_since_fired = tensors["since_fired"].to(trainer.act_freq_scores)
        for name, counted in TRAINER_COUNTS.items():
            setattr(trainer, counted, progress[name])
        for name in OWN_COUNTS:
            setattr(self, name, progress[name])
        trainer.activation_scaler.scaling_factor = progress["scale"]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of steps without the optimizer's, which it has taken
            for _ in range(progress["steps"]):
                trainer.lr_scheduler.step()


def _new_sae(settings: Settings, d_in: int, device: str, steps: int) -> Any:
    from sae_lens.registry import get_sae_training_class

    logging.getLogger("sae_lens").setLevel(logging.ERROR)
    kind = "matryoshka_batchtopk" if settings.kind == "matryoshka" else settings.kind
    own: dict[str, Any] = {"k": settings.k}
    if settings.kind == "matryoshka":
        own["matryoshka_widths"] = [settings.width // 8, settings.width // 2, settings.width]
    elif settings.kind == "jumprelu":
        own = {
            "jumprelu_sparsity_loss_mode": "quadratic",
            "target_l0": float(settings.k),
            "l0_warm_up_steps": steps // 5,
            "jumprelu_bandwidth": 0.5,
            "pre_act_loss_coefficient": 3e-6,
        }
    sae_class, config_class = get_sae_training_class(kind)
    config = config_class(
        d_in=d_in,
        d_sae=settings.width,
        device=device,
        normalize_activations="expected_average_only_in",
        apply_b_dec_to_input=True,
        **own,
    )
    return sae_class(config)
