"""Baselines: measured models that others are compared with, and where they are kept."""
