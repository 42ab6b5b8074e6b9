"""The tokenizer of a GGUF file: how text is split before tokens are made, and all its templates."""

from __future__ import annotations

from typing import Any

from modelassay.models.gguf import GgufFile

TEMPLATE = "tokenizer.chat_template"
PLAIN = (
    *("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais", "trillion", "granite-docling"),
    *("roberta-bpe", "jina-es", "jina-de", "jina-v1-en", "jina-v2-es", "jina-v2-de"),
)
"""Names of GPT-2's own way to split text."""
SINGLE_DIGITS = (
    *("starcoder", "refact", "command-r", "smollm", "codeshell", "exaone", "minerva-7b"),
)
"""The same, and each digit by itself."""
LIKE = {"stablelm2": "qwen2", "hunyuan": "qwen2"}
"""Names of a way that transformers knows by another one."""
WHOLE_WORDS = (
    *("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
    "tekken",
)
"""Where a word that is a token is taken whole, whatever its merges say."""
BEGUN = ("llama3", "llama-v3", "llama-bpe", "pixtral", "tekken")
"""Where a text begins with the token for it unless the file says that it does not."""
BY_ARCHITECTURE = {
    **dict.fromkeys(("qwen2", "qwen2moe", "qwen3", "qwen3moe", "stablelm"), "qwen2"),
    **{"gpt2": "gpt-2", "starcoder2": "starcoder", "bloom": "bloom", "falcon": "falcon"},
}
"""How older files, which do not say so, split their text."""
BLOOM_SPLIT = r" ?[^(\s|[.,!?…。，、।۔،])]+"


def complete_tokenizer(file: GgufFile, tokenizer: Any) -> None:
    """Changes a tokenizer that transformers made from a file into what the file says.

    Raises:
        InputError: the file splits text in a way that is not known.
    """
    kind = file.values.get("tokenizer.ggml.model")
    if kind == "gpt2":
        _split(file, tokenizer)
    elif kind == "llama" and file.values.get("tokenizer.ggml.add_space_prefix") is False:
        _leave_out_the_first_space(tokenizer)
    start = f"{TEMPLATE}."
    named = {k.removeprefix(start): v for k, v in file.values.items() if k.startswith(start)}
    if named:
        default = file.values.get(TEMPLATE)
        named |= {"default": default} if default is not None else {}
        tokenizer.chat_template = named


def _split(file: GgufFile, tokenizer: Any) -> None:
    from tokenizers import Regex, pre_tokenizers
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    stated = file.values.get("tokenizer.ggml.pre")
    name = stated if stated not in (None, "default") else BY_ARCHITECTURE.get(file.architecture)
    name = LIKE.get(name or "", name)
    backend = tokenizer.backend_tokenizer
    if name in WHOLE_WORDS:
        backend.model.ignore_merges = True
    if name in BEGUN and "tokenizer.ggml.add_bos_token" not in file.values:
        tokenizer.add_bos_token = True
    plain = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if name in PLAIN or (name in GGUF_PRE_TOKENIZER_SPLITS and name == stated):
        return
    if name in SINGLE_DIGITS:
        steps = [pre_tokenizers.Digits(individual_digits=True), plain]
    elif name in GGUF_PRE_TOKENIZER_SPLITS:
        steps = [pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[name]), "isolated"), raw]
    elif name == "bloom":
        steps = [pre_tokenizers.Split(Regex(BLOOM_SPLIT), "isolated"), raw]
    elif name == "falcon":
        threes = pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")
        digits = pre_tokenizers.Digits(individual_digits=False)
        steps = [pre_tokenizers.Punctuation("contiguous"), plain, digits, threes]
    else:
        raise file.refused(f"how it splits text is not known (tokenizer.ggml.pre is {stated!r})")
    backend.pre_tokenizer = pre_tokenizers.Sequence(steps)


def _leave_out_the_first_space(tokenizer: Any) -> None:
    """A SentencePiece tokenizer that puts no space before a text."""
    from tokenizers import decoders, normalizers, pre_tokenizers

    backend = tokenizer.backend_tokenizer
    if type(backend.pre_tokenizer) is pre_tokenizers.Metaspace:
        backend.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="never", split=False)
    elif type(backend.normalizer) is normalizers.Sequence:
        backend.normalizer = normalizers.Replace(" ", "▁")
    else:  # Gemma's puts none in any case
        return
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps)
