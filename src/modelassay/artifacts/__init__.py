"""Artifacts: named folders that come with modelassay, lie on this machine, or are on the Hub."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
