"""Is this the model it claims to be? Comparison of a model with a baseline."""
