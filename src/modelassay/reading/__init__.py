"""Reading a model: prompts in, activations, probabilities and short responses out."""
