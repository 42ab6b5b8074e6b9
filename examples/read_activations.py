"""Read the residual stream and measure a contrast of your own.

python examples/read_activations.py [MODEL]
"""

import sys

import modelassay

model = modelassay.load(sys.argv[1] if len(sys.argv) > 1 else "embedded")
animals = ["cat", "dog", "horse", "eagle", "trout", "spider", "lizard", "whale"]
tools = ["saw", "drill", "hammer", "chisel", "wrench", "shovel", "pliers", "needle"]
layers = range(len(model.layers) // 3, 2 * len(model.layers) // 3)


def read(words: list[str]) -> modelassay.Activations:
    prompts = modelassay.encode_prompts(model, [f"Write a line about a {word}." for word in words])
    return modelassay.read_activations(model, prompts, layers)


separation = modelassay.measure_separation(
    read(animals).values, read(tools).values, layers, keys=animals
)
low, high = separation.interval
print(f"animals against tools: {separation.separation:.1f}σ ({low:.1f} to {high:.1f})")
print(f"p {separation.p_value:.4f}, layer {separation.layer}, {separation.n_pairs} pairs")
