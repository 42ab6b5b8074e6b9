"""Kept reports: those that come with modelassay, yours, and what others published."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
