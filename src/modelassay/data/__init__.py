"""Texts that models are read on or learn from: concepts, exchanges, public data sets."""
