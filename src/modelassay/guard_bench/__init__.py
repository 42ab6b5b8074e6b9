"""Benchmarks of a guard: what it stops, what it stops wrongly, and what it costs."""
