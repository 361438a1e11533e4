"""The gate before a tenant's intents: which texts belong to none of them.

A logistic regression on the embedding alone. With examples of what is out of scope these are one class more, and a
text's margin is the best category's score less theirs. Without, it is the logarithm of the sum of all categories'
exponentiated scores, their free energy (Liu 2020), which tells more than the best score alone. The threshold is what
held-out examples say: a small share of the texts that are classified rightly is given up.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from octavo.serving.tenants.logistic import Floats, fit_logistic, logits

Labels = NDArray[np.int64]

_STRENGTH: Final = 20.0
_LOST: Final = 0.005  # share of rightly classified texts that are turned away
_STRENGTH_BLIND: Final = 5.0  # the same two without examples of what is out of scope
_LOST_BLIND: Final = 0.002
_FOLDS: Final = 3


def fit_gate(embeddings: Floats, classes: Labels, count: int) -> tuple[Floats, float]:
    """Weights and threshold of a gate; the same input gives the same.

    Args:
        embeddings: [n, d].
        classes: [n]; `count` stands for out of scope.
        count: of categories in scope.

    Returns:
        Weights [d + 1, count], or [d + 1, count + 1] where some examples are out of scope, and the least margin (see
        `margins`) that is in scope. Without held-out texts that are classified rightly nothing is known of margins:
        then the threshold is 0 with examples out of scope (their class wins), and without them there is no gate,
        weights [0, 0].
    """
    known = bool((classes == count).any())
    strength, lost = (_STRENGTH, _LOST) if known else (_STRENGTH_BLIND, _LOST_BLIND)
    scores = _held_out(embeddings, classes, count + known, strength)
    right = (classes < count) & (scores[:, :count].argmax(axis=1) == classes)
    if not (known or right.any()):
        return np.zeros((0, 0), np.float32), 0.0
    threshold = float(np.quantile(_margins(scores, count)[right], lost)) if right.any() else 0.0
    return fit_logistic(embeddings, classes, count + known, strength), threshold


def margins(weights: NDArray[Any], embeddings: Floats, count: int) -> Floats:
    """How surely each text is in scope, [n], by a gate's weights."""
    return _margins(logits(np.asarray(weights, np.float32), embeddings), count)


def _margins(scores: Floats, count: int) -> Floats:
    best: Floats = scores[:, :count].max(axis=1)
    if scores.shape[1] > count:
        return best - scores[:, count]
    energy: Floats = best + np.log(np.exp(scores - best[:, None]).sum(axis=1))
    return energy


def _held_out(embeddings: Floats, classes: Labels, count: int, strength: float) -> Floats:
    """Scores [n, count] of each text by a classifier that has not seen it."""
    folds = _folds(classes)
    scores = np.zeros((len(embeddings), count), np.float32)
    for fold in range(_FOLDS):
        held = folds == fold
        if held.any() and not held.all():
            scores[held] = logits(fit_logistic(embeddings[~held], classes[~held], count, strength), embeddings[held])
    return scores


def _folds(classes: Labels) -> Labels:
    """The fold of each text: every class is spread evenly over them."""
    rng = np.random.default_rng(0)
    folds = np.zeros(len(classes), np.int64)
    for each in np.unique(classes):
        members = rng.permutation(np.flatnonzero(classes == each))
        folds[members] = (np.arange(len(members)) + rng.integers(_FOLDS)) % _FOLDS
    return folds
