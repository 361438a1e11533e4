"""Words, word pairs and character n-grams of texts, hashed into a fixed width and weighed by TF-IDF.

What an embedding blurs (product names, numbers, spelling) these features keep. A document frequency is kept for each
of 65,536 buckets in one byte; the features themselves are signed sums of buckets, `WIDTH` wide.
"""

from __future__ import annotations

import itertools
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

BUCKETS: Final = 1 << 16
WIDTH: Final = 2048

_WORD: Final = re.compile(r"[a-z0-9']+")
_SIZES: Final = (3, 4, 5)
_STEPS: Final = 16.0  # of an inverse document frequency in its byte
_MULTIPLIER: Final = 2654435761  # Knuth's, for hashing a bucket once more

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class GramCounts:
    """One kind of n-gram in a batch of texts, as triples sorted by text: bucket `buckets[i]` is in text `rows[i]`,
    with weight `weights[i]` = 1 + log(count).
    """

    rows: Ints
    buckets: Ints
    weights: NDArray[np.float64]


@dataclass(frozen=True)
class Ngrams:
    """The n-grams of `texts` texts: words with word pairs, and character n-grams within words."""

    texts: int
    kinds: tuple[GramCounts, GramCounts]


def count_ngrams(texts: Sequence[str]) -> Ngrams:
    """Count the n-grams of each text, in lower case; a text without letters or digits has none."""
    seen: dict[str, int] = {}
    words = [_WORD.findall(text.lower()) for text in texts]
    by_word = _counted([_hashed(_word_grams(each), seen) for each in words])
    by_character = _counted([_hashed(_character_grams(each), seen) for each in words])
    return Ngrams(len(texts), (by_word, by_character))


def fit_frequencies(ngrams: Ngrams) -> NDArray[np.uint8]:
    """The inverse document frequency of each bucket over these texts, in sixteenths, [BUCKETS]."""
    texts = ngrams.texts
    found = sum(np.bincount(kind.buckets, minlength=BUCKETS) for kind in ngrams.kinds)
    inverse = np.log((1 + texts) / (1 + np.minimum(found, texts))) + 1
    steps: NDArray[np.uint8] = np.minimum(np.round(inverse * _STEPS), 255).astype(np.uint8)
    return steps


def features(ngrams: Ngrams, frequencies: NDArray[np.uint8]) -> NDArray[np.float32]:
    """TF-IDF of the n-grams, both kinds of equal length, hashed to [texts, WIDTH]; about unit length each."""
    out = np.zeros((ngrams.texts, WIDTH), np.float32)
    for number, kind in enumerate(ngrams.kinds):
        weights = kind.weights * (frequencies[kind.buckets] / _STEPS)
        lengths = np.sqrt(np.bincount(kind.rows, weights * weights, minlength=ngrams.texts))
        weights /= np.maximum(lengths, 1e-9)[kind.rows]
        mixed = (kind.buckets * _MULTIPLIER + number * 97) & 0xFFFFFFFF
        signed = np.where(mixed >> 31, weights, -weights).astype(np.float32)
        np.add.at(out, (kind.rows, (mixed >> 7) % WIDTH), signed)
    return out / np.float32(np.sqrt(len(ngrams.kinds)))


def _word_grams(words: Sequence[str]) -> list[str]:
    return [f"w{word}" for word in words] + [f"b{one} {two}" for one, two in itertools.pairwise(words)]


def _character_grams(words: Sequence[str]) -> list[str]:
    padded = [f" {word} " for word in words]
    return [f"c{word[at : at + size]}" for word in padded for size in _SIZES for at in range(len(word) - size + 1)]


def _hashed(grams: Iterable[str], seen: dict[str, int]) -> list[int]:
    """The bucket of each, remembered in `seen`: texts of one customer share most of their n-grams."""
    for gram in grams:
        if gram not in seen:
            seen[gram] = zlib.crc32(gram.encode()) % BUCKETS
    return [seen[gram] for gram in grams]


def _counted(buckets: Sequence[Sequence[int]]) -> GramCounts:
    rows = np.repeat(np.arange(len(buckets)), [len(each) for each in buckets])
    flat = np.fromiter((bucket for each in buckets for bucket in each), np.int64, len(rows))
    keys, counts = np.unique(rows * BUCKETS + flat, return_counts=True)
    return GramCounts(keys // BUCKETS, keys % BUCKETS, 1 + np.log(counts))
