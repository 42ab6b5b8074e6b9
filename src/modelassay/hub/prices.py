"""What an endpoint takes for tokens, and what may be spent there; endpoints do not say either."""

from __future__ import annotations

import math
from dataclasses import dataclass

from modelassay.errors import InputError


@dataclass(frozen=True)
class Prices:
    """Of a million tokens, in any currency, and what may be spent in all."""

    sent: float | None = None
    received: float | None = None
    most: float | None = None
    """Over all runs together; None for no bound."""

    def __post_init__(self) -> None:
        """Refuses what cannot be counted.

        Raises:
            InputError: says which option.
        """
        for value in (self.sent, self.received):
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError("--price-in and --price-out must be numbers of 0 or more.")
        if self.most is not None and not (math.isfinite(self.most) and self.most > 0):
            raise InputError(f"--max-cost must be more than 0, got {self.most:g}.")
        if (self.sent is None) != (self.received is None):
            raise InputError("Give both prices: --price-in and --price-out, for a million tokens.")
        if self.most is not None and self.sent is None:
            raise InputError(
                "--max-cost needs prices, which an endpoint does not say: --price-in and"
                " --price-out, for a million tokens."
            )

    def cost(self, sent: int, received: int) -> float | None:
        """Of so many tokens, in the currency of the prices; None without prices."""
        if self.sent is None or self.received is None:
            return None
        return (sent * self.sent + received * self.received) / 1e6
