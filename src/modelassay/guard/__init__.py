"""The guard: a response that is watched from inside, and shown no faster than it is cleared."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
