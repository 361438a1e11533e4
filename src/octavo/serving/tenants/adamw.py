"""AdamW, in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

_MEAN: Final = 0.9
_SQUARE: Final = 0.999
_EPSILON: Final = np.float32(1e-8)


class AdamW:
    """Adam with decoupled weight decay and a learning rate that rises linearly, then falls as a cosine.

    Args:
        parameters: changed in place.
        rate: the highest learning rate.
        decay: share of a parameter taken away per step, times the learning rate.
        steps: how many will be taken.
        warm_up: share of the steps in which the rate rises.
    """

    def __init__(self, parameters: Sequence[Floats], rate: float, decay: float, steps: int, warm_up: float = 0.3):
        self._parameters = parameters
        self._means = [np.zeros_like(each) for each in parameters]
        self._squares = [np.zeros_like(each) for each in parameters]
        self._rate, self._decay, self._steps, self._warm_up = rate, decay, steps, warm_up
        self._taken = 0

    def step(self, gradients: Sequence[Floats]) -> None:
        """Take one step against the gradients, one per parameter."""
        self._taken += 1
        rate = self._rate * self._schedule()
        slow = np.float32(1 - _SQUARE**self._taken)
        size = np.float32(rate / (1 - _MEAN**self._taken))
        for parameter, mean, square, gradient in zip(
            self._parameters, self._means, self._squares, gradients, strict=True
        ):
            mean *= np.float32(_MEAN)
            mean += np.float32(1 - _MEAN) * gradient
            square *= np.float32(_SQUARE)
            square += np.float32(1 - _SQUARE) * gradient * gradient
            parameter *= np.float32(1 - rate * self._decay)
            parameter -= size * mean / (np.sqrt(square / slow) + _EPSILON)

    def _schedule(self) -> float:
        done = self._taken / self._steps
        if done < self._warm_up:
            return done / self._warm_up
        return 0.5 * (1 + float(np.cos(np.pi * (done - self._warm_up) / (1 - self._warm_up))))
