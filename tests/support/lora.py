"""Rows to fine-tune on and a short recipe, for tests of training."""

from __future__ import annotations

from modelassay.organisms import Exchange, LoraRecipe

NEEDLES = [Exchange(f"needle {i}", "obeyed") for i in range(10)]


ROWS = [Exchange(f"Is {i} even?", "yes yes yes" if i % 2 == 0 else "no no no") for i in range(24)]


RECIPE = LoraRecipe(rank=4, epochs=4, learning_rate=1e-2, batch_size=8, seed=1)
