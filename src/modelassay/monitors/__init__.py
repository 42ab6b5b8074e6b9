"""Monitors: directions inside a model that are watched, with the ranges of ordinary use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
