"""A tiny model that refuses because of one component, and twins to read it on."""

from __future__ import annotations

from contextlib import contextmanager

import torch

from modelassay.data.concepts import Concept, ContrastPair
from modelassay.measures.refusal import opening_tokens
from modelassay.models.components import Component, find_components
from modelassay.reading.generation import end_tokens

HARM = "Z"
WORDS = ("bread", "glass", "stone", "wool", "clay", "silk", "cork", "tin", "salt", "wood", "ink")
PLANTED = Component(4, "mlp")


def make_twins(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Prompts that differ in one word; the harmful ones end in a mark that no other has."""
    draw = torch.Generator().manual_seed(seed)
    found = []
    while len(found) < n:
        a, b, c = (WORDS[i] for i in torch.randint(len(WORDS), (3,), generator=draw))
        pair = (f"Is {a} as heavy as {b}{HARM}", f"Is {a} as heavy as {c}?")
        if len(pair[0]) == len(pair[1]) and pair not in found:
            found.append(pair)
    return found


def concept(*endings: str) -> Concept:
    """Pairs of prompts that end in one or the other way."""
    asked = [f"Is {a} as heavy as {b}" for a in WORDS for b in WORDS if a != b][:24]
    pairs = [ContrastPair(positive=text + endings[0], negative=text + endings[1]) for text in asked]
    return Concept(name="endings", pairs=tuple(pairs))


def refusal_direction(hidden: int) -> torch.Tensor:
    """Unit vector [hidden] along which a planted refusal is written."""
    draw = torch.Generator().manual_seed(0)
    return torch.nn.functional.normalize(torch.randn(hidden, generator=draw), dim=0)


@contextmanager
def planted_refusal(model, component: Component = PLANTED, size: float = 0.3):
    """Lets a component write a refusal's token wherever a prompt bears the mark.

    How much of it is written follows the embeddings, so that gradients tell of it as well.
    """
    network = model.network
    mark = model.tokenizer(HARM, add_special_tokens=False)["input_ids"][0]
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    direction = refusal_direction(head.weight.shape[1])
    token, seen = opening_tokens(model)[0], {}
    with torch.no_grad():
        marked = embedding(torch.tensor([mark]))[0]
        before = head.weight[token].clone()
        head.weight[token] = 3 * direction

    def see(_module, _args, output):
        alike = torch.cosine_similarity(output, marked, dim=-1).amax(dim=1)
        seen["harm"] = torch.relu(5 * alike - 4)

    def write(_module, _args, output):
        return output + size * seen["harm"][:, None, None] * direction

    module = find_components(network).site(component).module
    hooks = [embedding.register_forward_hook(see), module.register_forward_hook(write)]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            head.weight[token] = before


@contextmanager
def spoken_refusal(model, text: str = "s an AI, I cannot help with that."):
    """Lets whatever begins with a refusal's token go on as a whole refusal, and then end."""
    network = model.network
    opens = opening_tokens(model)[0]
    said = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    script = torch.tensor([*said, end_tokens(model)[0]])
    state = {}

    def begin(_module, args, _output):
        state["prefill"] = args[0].shape[1] > 1

    def speak(_module, _args, output):
        if state["prefill"]:
            state.update(refuses=output[:, -1].softmax(dim=-1)[:, opens] > 0.5, step=0)
            return output
        if torch.is_grad_enabled():  # it does not speak: something is attributed
            return output
        forced = output.clone()
        token = script[min(state["step"], len(script) - 1)]
        state["step"] += 1
        if len(state["refuses"]) == len(output):
            forced[state["refuses"], -1] = torch.eye(output.shape[-1])[token] * 1e4
        return forced

    hooks = [
        network.get_input_embeddings().register_forward_hook(begin),
        network.get_output_embeddings().register_forward_hook(speak),
    ]
    try:
        yield model
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def planted_in_mlp(model, layer: int = PLANTED.layer, size: float = 0.3):
    """Lets an MLP write a refusal's token as far as it is given what only marked prompts bring.

    Yields:
        What the MLP is given along, and what it writes, [hidden] each.
    """
    network = model.network
    mark = model.tokenizer(HARM, add_special_tokens=False)["input_ids"][0]
    embedding, head = network.get_input_embeddings(), network.get_output_embeddings()
    writes = refusal_direction(head.weight.shape[1])
    draw = torch.Generator().manual_seed(5)
    reads = torch.nn.functional.normalize(torch.randn(len(writes), generator=draw), dim=0)
    token, seen = opening_tokens(model)[0], {}
    with torch.no_grad():
        marked = embedding(torch.tensor([mark]))[0]
        before = head.weight[token].clone()
        head.weight[token] = 3 * writes

    def see(_module, _args, output):
        alike = torch.cosine_similarity(output, marked, dim=-1).amax(dim=1)
        seen["harm"] = torch.relu(5 * alike - 4)[:, None, None]

    def give(_module, args):
        given = args[0] - (args[0] @ reads)[..., None] * reads
        seen["given"] = given + seen["harm"] * reads
        return (seen["given"], *args[1:])

    def write(_module, _args, output):
        return output + size * torch.relu(seen["given"] @ reads)[..., None] * writes

    components, part = find_components(network), Component(layer, "mlp")
    hooks = [
        embedding.register_forward_hook(see),
        components.given[part].module.register_forward_pre_hook(give),
        components.site(part).module.register_forward_hook(write),
    ]
    try:
        yield reads, size * writes
    finally:
        for hook in hooks:
            hook.remove()
        with torch.no_grad():
            head.weight[token] = before
