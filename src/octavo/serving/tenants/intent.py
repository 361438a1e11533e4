"""A customer's intent classifier over a shared embedding model, with a gate for what is out of scope.

Two classifiers vote: a logistic regression on the embedding beside hashed n-grams (names, numbers, spelling), and a
perceptron on the embedding alone. The mean of their probabilities is better than either.
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
from octavo.serving.tenants.logistic import Floats, fit_logistic, logits, softmax
from octavo.serving.tenants.ngrams import BUCKETS, WIDTH, count_ngrams, features, fit_frequencies
from octavo.serving.tenants.perceptron import HIDDEN, Perceptron, fit_perceptron

DELTA_FILE: Final = "intent.safetensors"

_NGRAM_SHARE: Final = np.float32(0.6)
_STRENGTH: Final = 30.0
_GATE_STRENGTH: Final = 20.0
_FOLDS: Final = 3
_LOST: Final = 0.005  # share of rightly classified texts that the gate may turn away
_LOST_BLIND: Final = 0.005  # the same where nobody gave an example of what is out of scope

Labels = NDArray[np.int64]
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
        gate: [d + 1, categories + 1], the last column for out of scope; empty [0, 0] where no such example was given.
        threshold: the least margin (with a gate) or best score of the linear part (without) that is in scope.
    """

    categories: tuple[str, ...]
    frequencies: NDArray[np.uint8]
    linear: NDArray[Any]
    perceptron: Perceptron
    gate: NDArray[Any]
    threshold: float

    @property
    def dimensions(self) -> int:
        """Of the embeddings it takes."""
        return int(self.perceptron.hidden.shape[0])

    def predict(self, embeddings: Floats, texts: Sequence[str]) -> Prediction:
        """Classify texts by their embeddings [n, d], of unit length."""
        linear = logits(_wide(self.linear), self._inputs(embeddings, texts))
        hidden = Perceptron(*(_wide(each) for each in self.perceptron))
        probabilities = (softmax(linear) + softmax(hidden.logits(embeddings))) / np.float32(2)
        margin = _margin(logits(_wide(self.gate), embeddings)) if self.gate.size else linear.max(axis=1)
        best = probabilities.argmax(axis=1)
        labels = [
            self.categories[column] if inside else OUT_OF_SCOPE
            for column, inside in zip(best, margin >= self.threshold, strict=True)
        ]
        return Prediction(labels, probabilities.max(axis=1), probabilities)

    def _inputs(self, embeddings: Floats, texts: Sequence[str]) -> Floats:
        return np.concatenate([embeddings, _NGRAM_SHARE * features(count_ngrams(texts), self.frequencies)], axis=1)

    def save(self, file: Path) -> None:
        """Write it; the same head, the same bytes."""
        arrays = {"frequencies": self.frequencies, "linear": self.linear, "gate": self.gate}
        arrays |= self.perceptron._asdict()
        write_delta(file, arrays, {"categories": list(self.categories), "threshold": self.threshold})

    @classmethod
    def load(cls, file: Path) -> IntentHead:
        """Map one from its file.

        Raises:
            Invalid: broken, or its parts do not fit one another.
        """
        arrays, note = read_delta(file)
        try:
            parts = Perceptron(*(arrays[name] for name in Perceptron._fields))
            categories = tuple(str(name) for name in note["categories"])
            threshold = float(note["threshold"])
            head = cls(categories, arrays["frequencies"], arrays["linear"], parts, arrays["gate"], threshold)
            head._check()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise Invalid(f"not a tenant's intent model: {error}", str(file), "Train the tenant again.") from None
        return head

    def _check(self) -> None:
        wide, count = self.dimensions, len(self.categories)
        expected = {
            "frequencies": (self.frequencies, (BUCKETS,)),
            "linear": (self.linear, (wide + WIDTH + 1, count)),
            "hidden": (self.perceptron.hidden, (wide, HIDDEN)),
            "hidden_bias": (self.perceptron.hidden_bias, (HIDDEN,)),
            "output": (self.perceptron.output, (HIDDEN, count)),
            "output_bias": (self.perceptron.output_bias, (count,)),
            "gate": (self.gate, (wide + 1, count + 1) if self.gate.size else (0, 0)),
        }
        for name, (array, shape) in expected.items():
            if array.shape != shape:
                raise ValueError(f"{name} has shape {list(array.shape)}, not {list(shape)}")


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
        Invalid: fewer than two categories beside `oos`.
    """
    names = sorted(set(categories) - {OUT_OF_SCOPE})
    if len(names) < 2:
        raise Invalid(f"the examples have {len(names)} category", "category", "Give examples of at least two.")
    column = {name: at for at, name in enumerate(names)} | {OUT_OF_SCOPE: len(names)}
    classes = np.array([column[name] for name in categories], np.int64)
    inside = classes < len(names)
    report = progress or (lambda _: None)
    kept = [text for text, keep in zip(texts, inside, strict=True) if keep]
    ngrams = count_ngrams(kept)
    frequencies = fit_frequencies(ngrams)
    inputs = np.concatenate([embeddings[inside], _NGRAM_SHARE * features(ngrams, frequencies)], axis=1)
    linear = fit_logistic(inputs, classes[inside], len(names), _STRENGTH, lambda done: report(0.4 * done))
    perceptron = fit_perceptron(embeddings[inside], classes[inside], len(names), lambda done: report(0.4 + 0.3 * done))
    if inside.all():
        gate, threshold = np.zeros((0, 0), np.float16), _blind_threshold(inputs, classes, len(names))
    else:
        gate, threshold = _fit_gate(embeddings, classes, len(names))
    report(1.0)
    return IntentHead(
        tuple(names), frequencies, _narrow(linear), Perceptron(*(_narrow(each) for each in perceptron)), gate, threshold
    )


def _fit_gate(embeddings: Floats, classes: Labels, count: int) -> tuple[NDArray[Any], float]:
    """A classifier with out of scope as one more class, and the margin that keeps nearly all texts in scope."""
    scores = _held_out(embeddings, classes, count + 1, _GATE_STRENGTH)
    right = (classes < count) & (scores[:, :count].argmax(axis=1) == classes)
    threshold = float(np.quantile(_margin(scores)[right], _LOST)) if right.any() else 0.0
    return _narrow(fit_logistic(embeddings, classes, count + 1, _GATE_STRENGTH)), threshold


def _blind_threshold(inputs: Floats, classes: Labels, count: int) -> float:
    """The best score that nearly all rightly classified texts reach, without examples of what is out of scope."""
    scores = _held_out(inputs, classes, count, _STRENGTH)
    right = scores.argmax(axis=1) == classes
    return float(np.quantile(scores.max(axis=1)[right], _LOST_BLIND)) if right.any() else float("-inf")


def _held_out(inputs: Floats, classes: Labels, count: int, strength: float) -> Floats:
    """Scores [n, count] of each text by a classifier that has not seen it."""
    folds = _folds(classes)
    scores = np.zeros((len(inputs), count), np.float32)
    for fold in range(_FOLDS):
        held = folds == fold
        if held.any() and not held.all():
            scores[held] = logits(fit_logistic(inputs[~held], classes[~held], count, strength), inputs[held])
    return scores


def _folds(classes: Labels) -> Labels:
    """The fold of each text: every class is spread evenly over them."""
    rng = np.random.default_rng(0)
    folds = np.zeros(len(classes), np.int64)
    for each in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == each))
        folds[members] = (np.arange(len(members)) + rng.integers(_FOLDS)) % _FOLDS
    return folds


def _margin(scores: Floats) -> Floats:
    """By how much the best category beats out of scope, the last column; [n]."""
    margin: Floats = scores[:, :-1].max(axis=1) - scores[:, -1]
    return margin


def _wide(array: NDArray[Any]) -> Floats:
    return np.asarray(array, np.float32)


def _narrow(array: Floats) -> NDArray[Any]:
    return array.astype(np.float16)
