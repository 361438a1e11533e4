"""A customer's intent classifier over a shared embedding model, with a gate for what is out of scope.

Two classifiers vote: a logistic regression on the embedding beside hashed n-grams (names, numbers, spelling), and a
perceptron on the embedding alone. The mean of their scores is better than either; the more examples, the more the
perceptron has to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.serving.tenants.delta_file import read_delta, write_delta
from octavo.serving.tenants.examples import OUT_OF_SCOPE
from octavo.serving.tenants.gate import fit_gate, margins
from octavo.serving.tenants.logistic import Floats, fit_logistic, softmax
from octavo.serving.tenants.ngrams import BUCKETS, WIDTH, count_ngrams, features, fit_frequencies
from octavo.serving.tenants.perceptron import HIDDEN, Perceptron, fit_perceptron

DELTA_FILE: Final = "intent.safetensors"
MOST_SCORES: Final = 50_000_000
"""Examples times categories: training keeps several matrices of that many numbers."""

_NGRAM_SHARE: Final = np.float32(0.6)
_STRENGTH: Final = 30.0
_SHARE: Final = 0.5  # of the perceptron in the mean
_SHARE_MANY: Final = 2 / 3  # the same from so many examples on
_MANY: Final = 2000
_CHUNK: Final = 256  # texts classified at once: the n-grams of each take 8 KiB

Progress = Callable[[float], None]


@dataclass(frozen=True)
class Prediction:
    """What a head says of n texts.

    Attributes:
        labels: one per text; `oos` where the gate says that it is out of scope.
        confidence: FP32 [n], the probability of the best category.
        probabilities: FP32 [n, categories].
    """

    labels: list[str]
    confidence: Floats
    probabilities: Floats


@dataclass(frozen=True)
class IntentHead:
    """Weights in float16: some 0.7 MB for 77 categories.

    Attributes:
        categories: in the order of the columns.
        frequencies: uint8 [BUCKETS], of the n-grams.
        linear: [d + WIDTH + 1, categories].
        perceptron: its four arrays.
        gate: [d + 1, categories] or, with a last column for out of scope, [d + 1, categories + 1]; empty [0, 0] where
            nothing is turned away.
        threshold: the least margin of the gate that is in scope.
        share: of the perceptron in the mean of the scores, 0 to 1.
    """

    categories: tuple[str, ...]
    frequencies: NDArray[np.uint8]
    linear: NDArray[Any]
    perceptron: Perceptron
    gate: NDArray[Any]
    threshold: float
    share: float

    @property
    def dimensions(self) -> int:
        """Of the embeddings it takes."""
        return int(self.perceptron.hidden.shape[0])

    def predict(self, embeddings: Floats, texts: Sequence[str]) -> Prediction:
        """Classify texts by their embeddings [n, d], of unit length."""
        probabilities = np.zeros((len(texts), len(self.categories)), np.float32)
        for start in range(0, len(texts), _CHUNK):
            part = slice(start, start + _CHUNK)
            probabilities[part] = self._probabilities(embeddings[part], texts[part])
        best = probabilities.argmax(axis=1)
        labels = [
            self.categories[column] if inside else OUT_OF_SCOPE
            for column, inside in zip(best, self._inside(embeddings), strict=True)
        ]
        return Prediction(labels, probabilities.max(axis=1, initial=0), probabilities)

    def _probabilities(self, embeddings: Floats, texts: Sequence[str]) -> Floats:
        grams = features(count_ngrams(texts), self.frequencies)
        used = np.flatnonzero(grams.any(axis=0))  # of one text, some fifty: the other rows are not even read from disk
        linear = embeddings @ _wide(self.linear[: self.dimensions]) + _wide(self.linear[-1])
        linear += (_NGRAM_SHARE * grams[:, used]) @ _wide(self.linear[self.dimensions + used])
        hidden = Perceptron(*(_wide(each) for each in self.perceptron))
        share = np.float32(self.share)
        return softmax((1 - share) * linear + share * hidden.logits(embeddings))

    def _inside(self, embeddings: Floats) -> NDArray[np.bool_]:
        if not self.gate.size:
            return np.ones(len(embeddings), bool)
        found: NDArray[np.bool_] = margins(self.gate, embeddings, len(self.categories)) >= self.threshold
        return found

    def save(self, file: Path) -> None:
        """Write it; the same head, the same bytes."""
        arrays = {"frequencies": self.frequencies, "linear": self.linear, "gate": self.gate}
        arrays |= self.perceptron._asdict()
        numbers = {"threshold": self.threshold, "share": self.share}
        write_delta(file, arrays, {"categories": list(self.categories), **numbers})

    @classmethod
    def load(cls, file: Path) -> IntentHead:
        """Map one from its file.

        Raises:
            Invalid: broken, or its parts do not fit one another.
        """
        arrays, note = read_delta(file)
        try:
            parts = Perceptron(*(arrays[name] for name in Perceptron._fields))
            categories = tuple(str(name) for name in _listed(note["categories"]))
            numbers = float(note["threshold"]), float(note["share"])
            head = cls(categories, arrays["frequencies"], arrays["linear"], parts, arrays["gate"], *numbers)
            head._check()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Invalid(f"not a tenant's intent model: {error}", str(file), "Train the tenant again.") from None
        return head

    def _check(self) -> None:
        """Raise `ValueError` where the arrays are not those of `save`."""
        wide, count = self.dimensions, len(self.categories)
        if count < 2:
            raise ValueError(f"it has {count} categories")
        if not np.isfinite(self.threshold):
            raise ValueError("its threshold is not finite")
        if not 0 <= self.share <= 1:
            raise ValueError("its share is not one between 0 and 1")
        known = self.gate.shape == (wide + 1, count + 1)
        expected = {
            "frequencies": (self.frequencies, np.uint8, (BUCKETS,)),
            "linear": (self.linear, np.float16, (wide + WIDTH + 1, count)),
            "hidden": (self.perceptron.hidden, np.float16, (wide, HIDDEN)),
            "hidden_bias": (self.perceptron.hidden_bias, np.float16, (HIDDEN,)),
            "output": (self.perceptron.output, np.float16, (HIDDEN, count)),
            "output_bias": (self.perceptron.output_bias, np.float16, (count,)),
            "gate": (self.gate, np.float16, (wide + 1, count + known) if self.gate.size else (0, 0)),
        }
        for name, (array, dtype, shape) in expected.items():
            if array.shape != shape or array.dtype != dtype:
                wanted = f"{np.dtype(dtype)} {list(shape)}"
                raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, not {wanted}")


def check_size(categories: int, examples: int) -> None:
    """Raise `Invalid` for fewer than two categories, or for more examples and categories than are learnt at once."""
    if categories < 2:
        told = f"{categories} category" if categories else "no category"
        raise Invalid(f"the examples have {told} beside {OUT_OF_SCOPE!r}", "category", "Give examples of at least two.")
    if categories * examples > MOST_SCORES:
        raise Invalid(
            f"{examples:,} examples of {categories:,} categories are more than can be learnt at once",
            "category",
            f"Keep examples times categories below {MOST_SCORES:,}; is the right column named category?",
        )


def train_intents(
    embeddings: Floats, texts: Sequence[str], categories: Sequence[str], progress: Progress | None = None
) -> IntentHead:
    """Learn the categories of texts; the same input gives the same head.

    Args:
        embeddings: [n, d], of unit length.
        texts: n of them.
        categories: of each text; `oos` marks what is out of scope.
        progress: told the share of the work done.

    Raises:
        Invalid: fewer than two categories beside `oos`, more than can be learnt at once, or embeddings not finite.
    """
    names = in_scope(categories)
    check_size(len(names), len(texts))
    if not np.isfinite(embeddings).all():
        raise Invalid("there are embeddings that are not finite", "embeddings", "Check the base model's answers.")
    column = {name: at for at, name in enumerate(names)} | {OUT_OF_SCOPE: len(names)}
    classes = np.array([column[name] for name in categories], np.int64)
    inside = classes < len(names)
    report = progress or (lambda _: None)
    kept = [text for text, keep in zip(texts, inside, strict=True) if keep]
    ngrams = count_ngrams(kept)
    frequencies = fit_frequencies(ngrams)
    inputs = np.concatenate([embeddings[inside], _NGRAM_SHARE * features(ngrams, frequencies)], axis=1)
    linear = fit_logistic(inputs, classes[inside], len(names), _STRENGTH, lambda done: report(0.5 * done))
    perceptron = fit_perceptron(embeddings[inside], classes[inside], len(names), lambda done: report(0.5 + 0.3 * done))
    gate, threshold = fit_gate(embeddings, classes, len(names))
    report(1.0)
    parts = Perceptron(*(_narrow(each) for each in perceptron))
    share = _SHARE_MANY if len(kept) >= _MANY else _SHARE
    return IntentHead(tuple(names), frequencies, _narrow(linear), parts, _narrow(gate), threshold, share)


def in_scope(categories: Sequence[str]) -> list[str]:
    """The categories of examples without out of scope, in the order of a head's columns."""
    return sorted(set(categories) - {OUT_OF_SCOPE})


def _listed(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError("its categories are no list")
    return value


def _wide(array: NDArray[Any]) -> Floats:
    return np.asarray(array, np.float32)


def _narrow(array: Floats) -> NDArray[Any]:
    return array.astype(np.float16)
