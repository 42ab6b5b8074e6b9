"""Activations are what the model computes, whatever the batching around them."""

from __future__ import annotations

import threading

import pytest
import torch

from modelassay.errors import InputError, UnavailableError
from modelassay.reading import activations as module
from modelassay.reading.activations import read_activations
from modelassay.reading.prompts import encode_exchanges, encode_prompts
from tiny import FAMILIES

TEXTS = [
    "Why is the sky blue?",
    "Name three rivers that flow through more than one country in Europe.",
    "Hi",
    "Write a short note to my landlord about the heating, please.",
    "Why is the sky blue?",
    "Ünïcödé, 日本語 and 🙂.",
]


def reference(model, prompt, layer):
    """The layer's output at the last token, read by a plain hook, one prompt at a time."""
    kept = {}
    handle = model.layers[layer].register_forward_hook(
        lambda _m, _a, out: kept.update(h=out[0] if isinstance(out, tuple) else out)
    )
    with torch.inference_mode():
        out = model.network(torch.tensor([prompt.ids]), output_hidden_states=True)
    handle.remove()
    return kept["h"][0, -1], out


def close(a, b, tolerance=1e-4):
    return float((a - b).norm() / b.norm().clamp_min(1e-9)) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_agrees_with_output_hidden_states(tiny, family):
    model = tiny(family)
    assert len(model.layers) == 5
    prompts = encode_prompts(model, TEXTS)
    layers = [1, 2, 4]
    read = read_activations(model, prompts, layers, batch_tokens=200)
    assert read.values.shape == (len(TEXTS), 3, 32)
    for i, prompt in enumerate(prompts):
        for j, layer in enumerate(layers):
            hooked, out = reference(model, prompt, layer)
            assert close(read.values[i, j], hooked), (family, i, layer)
            if layer < 4:  # the last entry comes after the final norm
                hidden_states = out.hidden_states
                assert close(read.values[i, j], hidden_states[layer + 1][0, -1]), (family, layer)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_last_position(tiny, family):
    model = tiny(family)
    prompts = encode_prompts(model, TEXTS)
    read = read_activations(model, prompts, [2], readout=lambda logits: logits, batch_tokens=200)
    for i, prompt in enumerate(prompts):
        _, out = reference(model, prompt, 2)
        assert torch.allclose(read.readout[i], out.logits[0, -1].float(), atol=1e-4), family


def test_scores_do_not_depend_on_batching_order_padding_or_prefix(tiny):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    one_by_one = read_activations(model, prompts, [1, 3], batch_tokens=1, share_prefix=False)
    for batch_tokens in (64, 150, 10_000):
        for share in (True, False):
            read = read_activations(
                model, prompts, [1, 3], batch_tokens=batch_tokens, share_prefix=share
            )
            assert close(read.values, one_by_one.values)
    order = [3, 5, 0, 2, 4, 1]
    shuffled = read_activations(model, [prompts[i] for i in order], [3, 1])
    assert close(shuffled.values.flip(1), one_by_one.values[order])
    model.tokenizer.padding_side = "left"
    assert close(read_activations(model, prompts, [1, 3]).values, one_by_one.values)
    model.tokenizer.padding_side = "right"


def test_nothing_above_the_last_block_runs(tiny):
    model = tiny()
    ran = set()
    handles = [
        layer.register_forward_hook(lambda *_, i=i: ran.add(i))
        for i, layer in enumerate(model.layers)
    ]
    handles.append(model.network.lm_head.register_forward_hook(lambda *_: ran.add("head")))
    read_activations(model, encode_prompts(model, TEXTS), [1, 2])
    for handle in handles:
        handle.remove()
    assert ran == {0, 1, 2}


def test_each_distinct_prompt_is_read_once_and_the_head_sees_one_position(tiny):
    model = tiny()
    rows, positions = [], []
    handles = [
        model.layers[0].register_forward_pre_hook(lambda _m, args: rows.append(args[0].shape[:2])),
        model.network.lm_head.register_forward_hook(
            lambda _m, a, _o: positions.append(a[0].shape[1])
        ),
    ]
    read_activations(
        model, encode_prompts(model, TEXTS * 3), [1], readout=lambda x: x, share_prefix=False
    )
    for handle in handles:
        handle.remove()
    assert sum(count for count, _ in rows) == 5
    assert set(positions) == {1}


def test_the_shared_prefix_is_computed_once(tiny):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    tokens = []
    read_activations(model, prompts, [1])  # tries once whether batches change values
    handle = model.layers[0].register_forward_pre_hook(
        lambda _m, args: tokens.append(args[0].shape[0] * args[0].shape[1])
    )
    read_activations(model, prompts, [1], batch_tokens=1)
    shared = sum(tokens)
    tokens.clear()
    read_activations(model, prompts, [1], batch_tokens=1, share_prefix=False)
    handle.remove()
    assert shared < 0.75 * sum(tokens)  # of five prompts; the shortest is read thrice to check


def test_a_prefix_that_is_not_exact_is_given_up(tiny, monkeypatch):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    plain = read_activations(model, prompts, [1], share_prefix=False)
    import transformers

    repeat = transformers.DynamicCache.batch_repeat_interleave

    def spoil(self, count):
        repeat(self, count)
        self.layers[0].values.mul_(2)

    monkeypatch.setattr(transformers.DynamicCache, "batch_repeat_interleave", spoil)
    assert close(read_activations(model, prompts, [1]).values, plain.values)


def test_answer_tokens_mean_and_all(tiny):
    model = tiny()
    exchanges = [
        ("Why?", "Because it is so."),
        ("Name a river", "Rhine"),
        ("Hi", "Hello there, you."),
    ]
    encoded = encode_exchanges(model, exchanges)
    everything = read_activations(model, encoded, [0, 2], position="all")
    mean = read_activations(model, encoded, [0, 2], position="mean")
    last = read_activations(model, encoded, [0, 2])
    assert everything.offsets is not None
    for i, item in enumerate(encoded):
        rows = everything.values[everything.offsets[i] : everything.offsets[i + 1]]
        assert len(rows) == len(item.ids) - item.response_start == len(exchanges[i][1].encode())
        assert close(rows.mean(0), mean.values[i])
        assert close(rows[-1], last.values[i])


def test_batches_shrink_when_memory_runs_out(tiny, monkeypatch):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    expected = read_activations(model, prompts, [1])
    read_batch, refused = module._Reader.read_batch, []

    def scarce(self, batch):
        if len(batch) > 1:
            refused.append(len(batch))
            raise RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: tried to allocate 1 byte"
            )
        return read_batch(self, batch)

    monkeypatch.setattr(module._Reader, "read_batch", scarce)
    assert close(read_activations(model, prompts, [1]).values, expected.values)
    assert refused


def test_not_even_one_prompt_fits(tiny, monkeypatch):
    def never(self, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    monkeypatch.setattr(module._Reader, "read_batch", never)
    with pytest.raises(UnavailableError, match="fits into memory"):
        read_activations(model, prompts, [1], share_prefix=False)


def test_nan_names_the_layer(tiny_folder):
    from modelassay.models import load

    model = load(str(tiny_folder()), device="cpu")
    with torch.no_grad():
        model.layers[2].mlp.down_proj.weight[0, 0] = float("nan")
    with pytest.raises(InputError, match="Layer 2 .* NaN"):
        read_activations(model, encode_prompts(model, TEXTS), [1, 2, 3])


def test_threads_do_not_see_each_others_passes(tiny):
    model = tiny()
    prompts = encode_prompts(model, TEXTS)
    expected = {layer: read_activations(model, prompts, [layer]).values for layer in (0, 1, 3)}
    results: dict[tuple[int, int], bool] = {}
    hooks = [len(module._forward_hooks) for module in model.layers]  # transformers keeps its own

    def work(layer):
        for turn in range(5):
            read = read_activations(model, prompts, [layer], batch_tokens=60)
            results[layer, turn] = close(read.values, expected[layer])

    threads = [threading.Thread(target=work, args=(layer,)) for layer in expected]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 15
    assert all(results.values())
    assert [len(module._forward_hooks) for module in model.layers] == hooks


@pytest.mark.parametrize(
    ("layers", "message"),
    [([], "nothing to read"), ([9], "0…4"), ([-6], "-5…-1"), ([1, 1], "twice"), ([4, -1], "twice")],
)
def test_bad_layers(tiny, layers, message):
    model = tiny()
    with pytest.raises(InputError, match=message):
        read_activations(model, encode_prompts(model, TEXTS), layers)


def test_layers_are_counted_from_the_end(tiny):
    model = tiny()
    rows = encode_prompts(model, TEXTS)
    read = read_activations(model, rows, [-1, 0])
    assert read.layers == (4, 0)
    assert torch.equal(read.values, read_activations(model, rows, [4, 0]).values)


def test_no_response_to_read(tiny):
    model = tiny()
    with pytest.raises(InputError, match="has no"):
        read_activations(model, encode_prompts(model, TEXTS), [1], position="mean")


def test_raw_prompts_skip_the_template(tiny):
    model = tiny()
    raw = encode_prompts(model, ["Hi"], chat_template=False)[0]
    chat = encode_prompts(model, ["Hi"])[0]
    assert model.tokenizer.decode(raw.ids) == "Hi"
    assert model.tokenizer.decode(chat.ids).endswith("<|im_start|>assistant\n")
    assert chat.ids.count(model.tokenizer.bos_token_id) == 3  # none doubled


@pytest.mark.parametrize("text", ["", "   ", None, 7, ["a"]])
def test_prompts_must_be_text(tiny, text):
    with pytest.raises(InputError, match="must be text"):
        encode_prompts(tiny(), ["fine", text])


def test_a_prompt_longer_than_the_context_is_named(tiny):
    with pytest.raises(InputError, match="takes 256; shorten it .*begins “blah"):
        encode_prompts(tiny(), ["blah " * 300])


def test_a_broken_chat_template(tiny_folder):
    from modelassay.models import load

    model = load(str(tiny_folder()), device="cpu")
    model.tokenizer.chat_template = "{{ raise_exception('no users here') }}"
    with pytest.raises(InputError, match="no users here.*--no-chat-template"):
        encode_prompts(model, ["Hi"])


def test_a_tokenizer_of_another_model_is_refused(tiny_folder):
    from modelassay.models import load

    model = load(str(tiny_folder()), device="cpu")
    model.network.resize_token_embeddings(100)
    with pytest.raises(InputError, match="do not belong together"):
        encode_prompts(model, ["Hi"])
