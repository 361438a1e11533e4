"""What is asked: texts of exact token lengths, and the vectors that must come back.

The mixed traffic ("mixed 12-512") has the lengths of `tenant_trace.csv`: 12, 30, 60, 120, 250 and 512 tokens in the
shares 25.5, 35.0, 19.6, 11.8, 5.9 and 2.1 %, every sample holding them in exactly these proportions (rounded, at least
one of each), in shuffled order. "uniform" has the same lengths in equal shares.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from peers.sentence_encoder import SentenceEncoder
from tokenizers import Tokenizer

TRACE_SHARES = {12: 0.255, 30: 0.350, 60: 0.196, 120: 0.118, 250: 0.059, 512: 0.021}
_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


@dataclass(frozen=True)
class Workload:
    """A named list of texts with their lengths in tokens and reference vectors (float32, unit length)."""

    name: str
    texts: tuple[str, ...]
    lengths: tuple[int, ...]
    references: np.ndarray

    def shuffled(self, seed: int) -> list[int]:
        """The indices of all texts in an order that depends on the seed alone."""
        order = list(range(len(self.texts)))
        random.Random(seed).shuffle(order)
        return order


class TextMaker:
    """Makes texts of exact lengths from the tokenizer's own whole words, and their references."""

    def __init__(self, onnx_file: Path, tokenizer_file: Path, seed: int = 20) -> None:
        self._encoder = SentenceEncoder(onnx_file, tokenizer_file)
        self._tokenizer: Tokenizer = self._encoder.tokenizer
        self._random = random.Random(seed)
        vocabulary = self._tokenizer.get_vocab()
        self._words = sorted(word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2)

    def text(self, tokens: int) -> str:
        """A text that is `tokens` long, [CLS] and [SEP] included."""
        text = " ".join(self._random.choice(self._words) for _ in range(tokens - _SPECIAL_TOKENS))
        length = len(self._tokenizer.encode(text).ids)
        if length != tokens:
            raise ValueError(f"made a text of {length} tokens where {tokens} were wanted")
        return text

    def workload(self, name: str, lengths: list[int]) -> Workload:
        """One text per length, encoded alone by plain onnxruntime for reference."""
        texts = tuple(self.text(length) for length in lengths)
        references = np.concatenate([self._encoder.encode([text]) for text in texts])
        return Workload(name, texts, tuple(lengths), references)


def trace_lengths(count: int) -> list[int]:
    """`count` lengths (about) in the trace's proportions."""
    return [length for length, share in TRACE_SHARES.items() for _ in range(max(1, round(share * count)))]


def uniform_lengths(count: int) -> list[int]:
    """`count` lengths (about), each of the trace's lengths equally often."""
    return [length for length in TRACE_SHARES for _ in range(count // len(TRACE_SHARES))]


def cosines(vectors: np.ndarray, references: np.ndarray) -> np.ndarray:
    """Row by row."""
    products = (vectors * references).sum(axis=1)
    return products / np.linalg.norm(vectors, axis=1) / np.linalg.norm(references, axis=1)
