"""Suspected erasure: a direction that a band of layers writes less than intact models explain."""

from __future__ import annotations

from dataclasses import dataclass

from modelassay.models.writers import OUTPUTS, Kind
from modelassay.report.text import number_runs


@dataclass(frozen=True)
class Suspicion:
    """A direction that a band of layers hardly writes, and how rare that is in intact models."""

    layers: tuple[int, ...]
    kind: Kind | None
    """Whose outputs lack it; None for those of attention and MLP together."""
    p_value: float
    """Chance that an intact model shows as much in any band, kind or scaling that was searched."""
    ratio: float
    """Of the neighbouring eigenvalues at the gap."""
    n_directions: int
    """Eigenvalues below the gap."""
    shared: bool
    """Whether several layers lack the same direction."""
    row_normalised: bool = False
    """Whether it shows once all rows have length one, as in edits that keep the rows' norms."""

    @property
    def text(self) -> str:
        """What is suspected, in one sentence, and how to make sure."""
        what = OUTPUTS[self.kind] if self.kind else "weights"
        layers = " and ".join(number_runs(self.layers, "-"))
        p = f"p = {self.p_value:.3f}" if self.p_value >= 0.001 else "p < 0.001"
        directions = "a direction" if self.n_directions == 1 else f"{self.n_directions} directions"
        return (
            f"Suspected erasure: {directions} may have been weakened in the {what} of"
            f" layer{'s' if len(self.layers) > 1 else ''} {layers} ({p})."
            " The base model would settle it: modelassay diff BASE MODEL."
        )
