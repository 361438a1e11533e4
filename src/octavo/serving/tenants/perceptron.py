"""A perceptron with one hidden layer, trained with dropout and label smoothing, in numpy."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from octavo.serving.tenants.adamw import AdamW
from octavo.serving.tenants.logistic import Floats, Progress, one_hot, softmax

HIDDEN: Final = 256

_DROPOUT: Final = 0.2
_SMOOTHING: Final = 0.1
_RATE: Final = 3e-3
_DECAY: Final = 0.02
_MANY: Final = 2000  # examples from which on larger batches and fewer epochs do


class Perceptron(NamedTuple):
    """Weights of embeddings [n, d] -> ReLU [n, HIDDEN] -> scores [n, classes]."""

    hidden: Floats
    hidden_bias: Floats
    output: Floats
    output_bias: Floats

    def logits(self, embeddings: Floats) -> Floats:
        """Scores before softmax, [n, classes]."""
        active = np.maximum(_scaled(embeddings) @ self.hidden + self.hidden_bias, np.float32(0))
        scores: Floats = active @ self.output + self.output_bias
        return scores


def fit_perceptron(
    embeddings: Floats, classes: NDArray[np.int64], count: int, progress: Progress | None = None
) -> Perceptron:
    """Train on embeddings of unit length [n, d] with classes [n] below `count`; the same input, the same weights."""
    rng = np.random.default_rng(0)
    inputs, targets = _scaled(embeddings), one_hot(classes, count, _SMOOTHING)
    rows = len(inputs)
    batch, epochs = (128, 30) if rows >= _MANY else (64, 60)
    model = _initial(rng, inputs.shape[1], count)
    optimiser = AdamW(model, _RATE, _DECAY, steps=epochs * -(-rows // batch))
    for epoch in range(epochs):
        order = rng.permutation(rows)
        for start in range(0, rows, batch):
            chosen = order[start : start + batch]
            optimiser.step(_gradients(model, inputs[chosen], targets[chosen], rng))
        if progress:
            progress((epoch + 1) / epochs)
    return model


def _initial(rng: np.random.Generator, width: int, count: int) -> Perceptron:
    hidden = rng.uniform(-1, 1, (width, HIDDEN)) / np.sqrt(width)
    output = rng.uniform(-1, 1, (HIDDEN, count)) / np.sqrt(HIDDEN)
    return Perceptron(
        hidden.astype(np.float32), np.zeros(HIDDEN, np.float32), output.astype(np.float32), np.zeros(count, np.float32)
    )


def _gradients(model: Perceptron, inputs: Floats, targets: Floats, rng: np.random.Generator) -> Perceptron:
    """Of the mean cross-entropy, by the weights, under fresh dropout of the inputs and the hidden layer."""
    inputs = inputs * _kept(inputs.shape, rng)
    before: Floats = inputs @ model.hidden + model.hidden_bias
    mask: Floats = (before > 0) * _kept(before.shape, rng)
    active: Floats = before * mask
    error: Floats = (softmax(active @ model.output + model.output_bias) - targets) / np.float32(len(inputs))
    back: Floats = (error @ model.output.T) * mask
    return Perceptron(inputs.T @ back, back.sum(axis=0), active.T @ error, error.sum(axis=0))


def _kept(shape: tuple[int, ...], rng: np.random.Generator) -> Floats:
    """What dropout leaves, scaled so that sums stay as they were."""
    return (rng.random(shape, dtype=np.float32) >= _DROPOUT) * np.float32(1 / (1 - _DROPOUT))


def _scaled(embeddings: Floats) -> Floats:
    """Features of about unit variance, of embeddings of unit length."""
    return embeddings * np.float32(np.sqrt(embeddings.shape[1]))
