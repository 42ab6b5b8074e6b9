"""Load a causal language model safely and find its decoder blocks."""

from modelassay.models.embedded import EMBEDDED_ID, ensure_embedded
from modelassay.models.identity import ModelInfo
from modelassay.models.layers import find_layers
from modelassay.models.loading import LoadedModel, load

__all__ = ["EMBEDDED_ID", "LoadedModel", "ModelInfo", "ensure_embedded", "find_layers", "load"]
