"""Texts and settings to train tiny SAEs on."""

from __future__ import annotations

from modelassay.sae import Settings

TEXTS = [f"Line {i}: the quick brown fox jumps over {i * 7 % 13} lazy dogs." for i in range(120)]
HELD_OUT = [f"Note {i}: a slow red hen walks under {i * 5 % 11} tall trees." for i in range(8)]
SETTINGS = Settings(
    layer=2,
    width=96,
    k=8,
    tokens=6000,
    passes=8,
    batch=256,
    learning_rate=5e-3,
    window_tokens=2000,
    context=32,
)
