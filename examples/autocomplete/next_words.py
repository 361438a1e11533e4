"""The likeliest next words of a text, counted over texts of the same kind: n-grams that back off to shorter ones.

The counts lie in sorted columns of numbers that are memory-mapped; a look-up is a few binary searches. Needs numpy.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

ORDER = 4  # words per n-gram at the most: three that stand before, and the next
BACK_OFF = 0.4  # what a shorter context is worth beside a longer one
CERTAIN = 0.5  # a suggestion goes on to the next word while that has this share of what followed
LONGEST = 4  # words of one suggestion

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_LAST = "\U0010ffff"


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return [word.lower() for word in _WORD.findall(text)]


def _spellings(texts: Iterable[str]) -> dict[str, str]:
    """How each word is mostly written within a text; words that only begin one are in lower case."""
    seen: dict[str, Counter[str]] = {}
    for text in texts:
        for word in _WORD.findall(text)[1:]:
            seen.setdefault(word.lower(), Counter())[word] += 1
    return {word: min(written, key=lambda each: (-written[each], each)) for word, written in seen.items()}


class NextWords:
    """Suggestions from counted n-grams; made by `count`, kept in a folder by `save` and `load`."""

    def __init__(self, words: list[str], shown: list[str], grams: list[np.ndarray], counts: list[np.ndarray]) -> None:
        """Take what `count` made.

        Args:
            words: sorted; a word's place is its number. The two numbers after them are a text's start and end.
            shown: how each is written.
            grams: for each n from 1 the n-grams as columns, int32 [n, how many], sorted by the first word first.
            counts: how often each was seen, int32 [how many].
        """
        self._words, self._shown, self._grams, self._counts = words, shown, grams, counts
        self._start, self._end = len(words), len(words) + 1

    @classmethod
    def count(cls, texts: Iterable[str]) -> NextWords:
        """Count the n-grams of texts, a text's start and end among them."""
        texts = list(texts)
        spelled = _spellings(texts)
        tokens = [found for text in texts if (found := words_of(text))]
        words = sorted({word for each in tokens for word in each})
        number = {word: at for at, word in enumerate(words)}
        seen: list[Counter[tuple[int, ...]]] = [Counter() for _ in range(ORDER)]
        for each in tokens:
            numbers = [len(words), *(number[word] for word in each), len(words) + 1]
            for n, counter in enumerate(seen, 1):
                counter.update(zip(*(numbers[at:] for at in range(n)), strict=False))
        ordered = [sorted(counter.items()) for counter in seen]
        grams = [np.array([gram for gram, _ in each], np.int32).reshape(-1, n).T for n, each in enumerate(ordered, 1)]
        counts = [np.array([times for _, times in each], np.int32) for each in ordered]
        shown = [spelled.get(word, word) for word in words]
        return cls(words, shown, [np.ascontiguousarray(each) for each in grams], counts)

    def save(self, folder: Path) -> None:
        """Write the words and the counts into a folder; the same texts give the same files."""
        (folder / "words.txt").write_text("\n".join(self._words), encoding="utf-8")
        (folder / "shown.txt").write_text("\n".join(self._shown), encoding="utf-8")
        for n, (grams, counts) in enumerate(zip(self._grams, self._counts, strict=True), 1):
            np.save(folder / f"grams{n}.npy", grams, allow_pickle=False)
            np.save(folder / f"counts{n}.npy", counts, allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> NextWords:
        """Map what `save` wrote."""
        words, shown = ((folder / name).read_text(encoding="utf-8").split("\n") for name in ("words.txt", "shown.txt"))
        numbers = range(1, ORDER + 1)
        grams = [np.load(folder / f"grams{n}.npy", mmap_mode="r", allow_pickle=False) for n in numbers]
        counts = [np.load(folder / f"counts{n}.npy", mmap_mode="r", allow_pickle=False) for n in numbers]
        return cls(words, shown, grams, counts)

    def suggest(self, text: str, most: int) -> list[tuple[str, float]]:
        """The text as it may go on, likeliest first, each with a score from 0 to 1; fewer where nothing is known."""
        typed = "" if not text or text[-1].isspace() else text.split()[-1]
        before = text[: len(text) - len(typed)]
        context = self._context(before)
        found: list[tuple[str, float]] = []
        for word, score in self._candidates(context, typed.lower(), most):
            if self._words[word] != typed.lower():
                found.append((before + self._phrase(context, word), score))
                continue
            onward = [*context, word]  # the word is whole already: what comes after it
            for following, share in self._candidates(onward, "", most):
                found.append((f"{text} {self._phrase(onward, following)}", score * share))
        return sorted(found, key=lambda each: -each[1])[:most]

    def _phrase(self, context: list[int], word: int) -> str:
        """A word, and what follows it nearly always."""
        return " ".join(self._shown[each] for each in [word, *self._onward([*context, word])])

    def _context(self, before: str) -> list[int]:
        """The numbers of the words before, from the last unknown one on."""
        known = [self._start]
        for word in words_of(before):
            at = bisect_left(self._words, word)
            known = [*known, at] if at < len(self._words) and self._words[at] == word else []
        return known

    def _candidates(self, context: list[int], partial: str, most: int) -> Iterator[tuple[int, float]]:
        """Next words that begin with what is typed, from the longest context that has been seen on."""
        first, last = bisect_left(self._words, partial), bisect_left(self._words, partial + _LAST)
        given: set[int] = set()
        weight = 1.0
        for before in range(min(ORDER - 1, len(context)), -1, -1):
            low, high = self._seen(context[len(context) - before :])
            if not before and given:
                return  # a word that was never seen after these is no suggestion beside those that were
            if low == high:
                continue  # such a context was never seen: what is shorter loses nothing for it
            total = int(self._counts[before][low:high].sum())
            column = self._grams[before][before, low:high]
            low, high = low + int(np.searchsorted(column, first)), low + int(np.searchsorted(column, last))
            counts = self._counts[before][low:high]
            for at in np.argsort(-counts, kind="stable")[: most + len(given)]:
                word = int(self._grams[before][before, low + at])
                if word not in given:
                    given.add(word)
                    yield word, weight * int(counts[at]) / total
                if len(given) >= most:
                    return
            weight *= BACK_OFF

    def _onward(self, context: list[int]) -> Iterator[int]:
        """The words that follow nearly always."""
        for _ in range(LONGEST - 1):
            before = min(ORDER - 1, len(context))
            low, high = self._seen(context[len(context) - before :])
            counts = self._counts[before][low:high]
            if not len(counts) or counts.sum() < 2 or counts.max() < CERTAIN * counts.sum():
                return
            word = int(self._grams[before][before, low + int(counts.argmax())])
            if word == self._end:
                return
            context = [*context, word]
            yield word

    def _seen(self, context: list[int]) -> tuple[int, int]:
        """Where the n-grams that go on from a context begin and end."""
        grams = self._grams[len(context)]
        low, high = 0, grams.shape[1]
        for column, word in zip(grams, context, strict=False):
            inside = column[low:high]
            low, high = low + int(np.searchsorted(inside, word)), low + int(np.searchsorted(inside, word, "right"))
        return low, high
