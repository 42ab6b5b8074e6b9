"""Tiny tokenizers of the kinds that models have, each with tokens that are awkward to stream."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<unk>", "<s>", "</s>"]
BYTES = [f"<0x{b:02X}>" for b in range(256)]
WORDS = ["hello", "world", "do", "n", "'", "t", "s", "it", ".", ",", "!", "?", "m", "ve", "re"]
SENTENCEPIECE = ["▁", "▁▁", "▁▁▁▁", *WORDS, *(f"▁{word}" for word in WORDS), "你", "é", "\n", "👩"]


def _whole(backend: Tokenizer, decoder: Any, **options: Any) -> PreTrainedTokenizerFast:
    if decoder is not None:
        backend.decoder = decoder
    backend.add_special_tokens(["<|turn|>"])  # one that no setting of the tokenizer names
    backend.add_tokens(
        [
            AddedToken("<tool>", lstrip=True, rstrip=True, normalized=False),
            AddedToken(" spaced ", normalized=True),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>", **options
    )


def _bpe(pieces: list[str], **options: Any) -> Tokenizer:
    vocabulary = {piece: i for i, piece in enumerate([*SPECIAL, *pieces])}
    return Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", **options))


def byte_level(**options: Any) -> PreTrainedTokenizerFast:
    """As GPT-2, Llama 3 and Qwen: single bytes, and pieces of characters joined."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    of_byte = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    texts = ["👩‍👩‍👧", "👍🏽", "🇩🇪", "é", " hello", " .", " n", "'t", " ", "\n\n"]
    joined = [of_byte.pre_tokenize_str(text)[0][0] for text in texts]
    halves = [piece[: len(piece) // 2 + 1] for piece in joined if len(piece) > 2]
    pieces = list(dict.fromkeys([*alphabet, *joined, *halves]))
    return _whole(_bpe(pieces), decoders.ByteLevel(), **options)


def llama_2() -> PreTrainedTokenizerFast:
    """SentencePiece BPE whose first word loses its space."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend = _bpe([*BYTES, *SENTENCEPIECE], byte_fallback=True)
    return _whole(backend, decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)]))


def gemma() -> PreTrainedTokenizerFast:
    """SentencePiece BPE that keeps every space."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return _whole(_bpe([*BYTES, *SENTENCEPIECE], byte_fallback=True), decoders.Sequence(steps))


def unigram(scheme: str = "always", **options: Any) -> PreTrainedTokenizerFast:
    """As T5 and XLM-R."""
    pieces = [(piece, -1.0) for piece in [*SPECIAL, *SENTENCEPIECE]]
    decoder = decoders.Metaspace(prepend_scheme=scheme)
    return _whole(Tokenizer(models.Unigram(pieces, 0)), decoder, **options)


def wordpiece(*, cleanup: bool, **options: Any) -> PreTrainedTokenizerFast:
    """As BERT; the clean-up of the decoder and that of transformers are two things."""
    pieces = [*SPECIAL, *WORDS, *(f"##{word}" for word in WORDS), "你", "👩"]
    backend = Tokenizer(models.WordPiece({p: i for i, p in enumerate(pieces)}, unk_token="<unk>"))
    return _whole(backend, decoders.WordPiece(cleanup=cleanup), **options)


def word_ends() -> PreTrainedTokenizerFast:
    """As GPT-1 and CLIP: the end of a word is marked, and the last one's space is not shown."""
    pieces = [*WORDS, *(f"{word}</w>" for word in WORDS)]
    return _whole(_bpe(pieces, end_of_word_suffix="</w>"), decoders.BPEDecoder("</w>"))


def without_decoder() -> PreTrainedTokenizerFast:
    """Tokens that are joined by spaces."""
    return _whole(_bpe(WORDS), None)


CLEANED: dict[str, Any] = {"clean_up_tokenization_spaces": True}
KINDS: dict[str, Callable[[], Any]] = {
    "byte-level BPE": byte_level,
    "byte-level BPE, clean-up asked for": lambda: byte_level(**CLEANED),
    "byte-level BPE, clean-up forced": lambda: byte_level(
        **CLEANED, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True
    ),
    "SentencePiece BPE, prefix space": llama_2,
    "SentencePiece BPE": gemma,
    "Unigram": unigram,
    "Unigram, first": lambda: unigram("first"),
    "Unigram, never": lambda: unigram("never"),
    "Unigram, cleaned up": lambda: unigram(**CLEANED),
    "WordPiece": lambda: wordpiece(cleanup=False),
    "WordPiece, decoder cleans up": lambda: wordpiece(cleanup=True),
    "WordPiece, cleaned up": lambda: wordpiece(cleanup=False, **CLEANED),
    "WordPiece, cleaned up twice": lambda: wordpiece(cleanup=True, **CLEANED),
    "ends of words": word_ends,
    "no decoder": without_decoder,
}


def sentencepiece_in_python(folder: Path) -> Any:
    """transformers' own SentencePiece tokenizer, over a model that is trained here."""
    import sentencepiece
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    texts = [f"hello world {i} it isn't so , is it ? naïve 你好 café" for i in range(60)]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts),
        model_prefix=str(folder / "spm"),
        vocab_size=320,
        byte_fallback=True,
        model_type="bpe",
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return SentencePieceBackend(
        vocab_file=str(folder / "spm.model"), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
