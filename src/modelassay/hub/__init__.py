"""The one door to the Hugging Face Hub.

Everything is fetched as files into the Hub's own cache before it is opened, so that a model from
the Hub and a local folder take the same way from there on. Errors of the Hub become one line each.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
