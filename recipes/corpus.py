"""Tokenizer, token stream and training windows of the language model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS = "<s>"
PAD = "<pad>"


def train_tokenizer(texts: list[str], vocab_size: int) -> Tokenizer:
    """Train a byte-level BPE whose encoder puts ``<s>`` first (id 0; ``<pad>`` is id 1)."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, PAD],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def encode(tokenizer: Tokenizer, texts: list[str]) -> NDArray[np.uint16]:
    """Encode all texts without special tokens into one stream of token ids."""
    encoded = tokenizer.encode_batch(texts, add_special_tokens=False)
    return np.concatenate([np.asarray(e.ids, dtype=np.uint16) for e in encoded])


def windows(
    stream: NDArray[np.uint16],
    batch: int,
    length: int,
    rng: np.random.Generator,
    repeat_share: float = 0.0,
    bos: bool = True,
) -> NDArray[np.int64]:
    """Draw random windows ``[<s>, tokens]`` of ``length`` tokens in all.

    Args:
        stream: Token ids of the corpus.
        batch: Number of windows.
        length: Tokens of a window, ``<s>`` included.
        rng: Source of the draw.
        repeat_share: Probability that a window says its last part twice: a span of 8 tokens to half the window is
            drawn, and the window goes through that span again and again. Copying heads are then needed on these
            windows and idle on plain text.
        bos: Whether windows start with ``<s>``; without it they are text from the first token on.
    """
    lead_in = int(bos)
    body = length - lead_in
    out = np.zeros((batch, length), dtype=np.int64)
    starts = rng.integers(0, len(stream) - body, size=batch)
    repeated = rng.random(batch) < repeat_share
    spans = rng.integers(8, max(body // 2, 9), size=batch)
    prefixes = rng.integers(0, max(body // 2, 1), size=batch)
    for i in range(batch):
        text = stream[starts[i] : starts[i] + body].astype(np.int64)
        if repeated[i]:
            lead = int(prefixes[i])
            text[lead:] = np.resize(text[lead : lead + int(spans[i])], body - lead)
        out[i, lead_in:] = text
    return out
