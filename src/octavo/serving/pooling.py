"""From one vector per token to one vector per text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.serving.tensors import Array

MODES = ("mean", "cls", "max", "mean_sqrt_len")


def pool(hidden: Array, mask: Array, mode: str = "mean", normalise: bool = True) -> NDArray[np.float32]:
    """Pool token vectors as sentence-transformers does.

    Args:
        hidden: [batch, tokens, dimensions].
        mask: [batch, tokens]; 1 for a token, 0 for padding.
        mode: `mean`, `cls` (the first token), `max`, or `mean_sqrt_len` (the sum over the root of the count).
        normalise: divide by the Euclidean length.

    Returns:
        [batch, dimensions], FP32; a row without tokens is all zeros.

    Raises:
        Invalid: another mode.
    """
    states = np.asarray(hidden, dtype=np.float32)
    weights = np.asarray(mask, dtype=np.float32)
    counts = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)
    if mode in ("mean", "mean_sqrt_len"):
        # A product per row, not states * mask: no second array of the size of `hidden`.
        summed = np.matmul(weights[:, None, :], states)[:, 0, :]
        vectors = summed / (counts if mode == "mean" else np.sqrt(counts))
    elif mode == "cls":
        vectors = states[:, 0, :] * (weights[:, :1] > 0)
    elif mode == "max":
        vectors = np.where(weights[:, :, None] > 0, states, -np.inf).max(axis=1)
        vectors = np.where(weights.any(axis=1, keepdims=True), vectors, np.float32(0))
    else:
        raise Invalid(f"unknown pooling {mode!r}", "config.pbtxt", f"Use one of {', '.join(MODES)}.")
    if normalise:
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return np.asarray(vectors, dtype=np.float32)
