"""Measures: numbers about a model, each with its interval or null, and no verdict."""
