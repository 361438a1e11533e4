"""Multinomial logistic regression by L-BFGS, in numpy."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Progress = Callable[[float], None]

_STEPS: Final = 60
_MEMORY: Final = 8  # pairs of steps and changes of gradient that stand for the curvature
_SUFFICIENT: Final = 1e-4  # share of the promised descent that a step must keep
_SHRINK: Final = 0.4
_TRIES: Final = 12
_ARRIVED: Final = 1e-5  # relative descent

Curvature = deque[tuple[Floats, Floats]]


def fit_logistic(
    features: Floats, classes: NDArray[np.int64], count: int, strength: float, progress: Progress | None = None
) -> Floats:
    """Weights that minimise mean cross-entropy + |W|^2 / (2 strength n); the bias goes free.

    Args:
        features: [n, d].
        classes: [n], each below `count`; a class without an example is allowed.
        count: number of classes.
        strength: the larger, the closer to the examples (C of liblinear and scikit-learn).
        progress: told the share of steps done.

    Returns:
        [d + 1, count]; the last row is the bias. See `logits`.
    """
    targets = one_hot(classes, count)
    decay = np.float32(1 / (strength * len(features)))

    def loss(weights: Floats) -> tuple[float, Floats]:
        return _loss(weights, features, targets, decay)

    weights = np.zeros((features.shape[1] + 1, count), np.float32)
    value, gradient = loss(weights)
    curvature: Curvature = deque(maxlen=_MEMORY)
    for step in range(_STEPS):
        direction = _direction(gradient, curvature)
        found = _line_search(loss, weights, value, direction, _dot(direction, gradient), 1.0 if curvature else 10.0)
        if found is None:
            break
        moved, lower, changed = found
        if _dot(moved - weights, changed - gradient) > 1e-12:
            curvature.append((moved - weights, changed - gradient))
        descent = value - lower
        weights, value, gradient = moved, lower, changed
        if progress:
            progress((step + 1) / _STEPS)
        if descent < _ARRIVED * abs(value):
            break
    return weights


def logits(weights: Floats, features: Floats) -> Floats:
    """Scores before softmax, [n, classes], of features [n, d] under weights [d + 1, classes]."""
    scores: Floats = features @ weights[:-1] + weights[-1]
    return scores


def one_hot(classes: NDArray[np.int64], count: int, smoothing: float = 0.0) -> Floats:
    """Target distributions, [n, count]: all on the class but `smoothing`, which is spread evenly."""
    out = np.full((len(classes), count), smoothing / count, np.float32)
    out[np.arange(len(classes)), classes] += np.float32(1 - smoothing)
    return out


def softmax(scores: Floats) -> Floats:
    """Probabilities by row, [n, classes]."""
    powers: Floats = np.exp(scores - scores.max(axis=1, keepdims=True))
    probabilities: Floats = powers / powers.sum(axis=1, keepdims=True)
    return probabilities


def _loss(weights: Floats, features: Floats, targets: Floats, decay: np.float32) -> tuple[float, Floats]:
    """Value and gradient."""
    scores = logits(weights, features)
    scores -= scores.max(axis=1, keepdims=True)
    scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
    count = len(features)
    value = -float((targets * scores).sum()) / count + float(decay) / 2 * _dot(weights[:-1], weights[:-1])
    error = (np.exp(scores) - targets) / np.float32(count)
    gradient = np.empty_like(weights)
    gradient[:-1] = features.T @ error + decay * weights[:-1]
    gradient[-1] = error.sum(axis=0)
    return value, gradient


def _direction(gradient: Floats, curvature: Curvature) -> Floats:
    """The gradient times the approximate inverse Hessian: the two-loop recursion of L-BFGS."""
    if not curvature:
        return gradient / np.float32(max(1e-9, _dot(gradient, gradient) ** 0.5))
    out = gradient.copy()
    shares = []
    for step, change in reversed(curvature):
        shares.append(_dot(step, out) / _dot(step, change))
        out -= np.float32(shares[-1]) * change
    step, change = curvature[-1]
    out *= np.float32(_dot(step, change) / _dot(change, change))
    for (step, change), share in zip(curvature, reversed(shares), strict=True):
        out += np.float32(share - _dot(change, out) / _dot(step, change)) * step
    return out


def _line_search(
    loss: Callable[[Floats], tuple[float, Floats]],
    weights: Floats,
    value: float,
    direction: Floats,
    slope: float,
    length: float,
) -> tuple[Floats, float, Floats] | None:
    """Back from `length` until the loss falls enough: (weights, value, gradient) there, or None."""
    for _ in range(_TRIES):
        moved = weights - np.float32(length) * direction
        lower, gradient = loss(moved)
        if lower <= value - _SUFFICIENT * length * slope:
            return moved, lower, gradient
        length *= _SHRINK
    return None


def _dot(one: Floats, two: Floats) -> float:
    return float(np.vdot(one, two))
