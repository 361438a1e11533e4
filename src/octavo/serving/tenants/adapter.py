"""A low-rank adapter of a tenant: moves embeddings so that texts of one of the tenant's categories lie close.

e' = normalise(e + e A B) with A [d, r] and B [r, d]. A and B stretch the directions in which categories differ most
beside what texts of one category differ by: linear discriminant analysis, the scatter within categories shrunk towards
a sphere. It is a closed form and takes milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.serving.tenants.delta_file import read_delta, write_delta
from octavo.serving.tenants.examples import OUT_OF_SCOPE
from octavo.serving.tenants.logistic import Floats, Progress

Halves = NDArray[Any]

ADAPTER_FILE: Final = "adapter.safetensors"

_STRETCH: Final = 5.0
_SHRINKAGE: Final = 0.3  # of the scatter within categories, in mean eigenvalues
_FLOOR: Final = 1e-6  # where all texts of each category are the same


@dataclass(frozen=True)
class Adapter:
    """What was learnt: `down` [d, r] and `up` [r, d]."""

    down: Halves
    up: Halves

    @property
    def width(self) -> int:
        """Of the embeddings it takes and gives."""
        return int(self.down.shape[0])

    def apply(self, embeddings: Floats) -> Floats:
        """Embeddings [n, d] moved, each of length 1 again.

        Raises:
            Invalid: embeddings of another width.
        """
        given = np.asarray(embeddings, np.float32)
        if given.ndim != 2 or given.shape[1] != self.width:
            raise Invalid(
                f"embeddings of shape {list(given.shape)} do not fit an adapter of width {self.width}",
                "embeddings",
                "Use the base model the tenant was trained on.",
            )
        moved = given + (given @ self.down.astype(np.float32)) @ self.up.astype(np.float32)
        lengths = np.linalg.norm(moved, axis=1, keepdims=True).astype(np.float32)
        unit: Floats = moved / np.maximum(lengths, np.float32(1e-9))
        return unit

    def save(self, file: Path) -> None:
        """Write it as safetensors; the same adapter, the same bytes."""
        write_delta(file, {"down": self.down, "up": self.up}, {})

    @classmethod
    def load(cls, file: Path) -> Adapter:
        """Map a file that `save` wrote.

        Raises:
            Invalid: not such a file, or damaged.
        """
        arrays, _ = read_delta(file)
        down, up = arrays.get("down"), arrays.get("up")
        if down is None or up is None or down.ndim != 2 or down.shape != up.shape[::-1]:
            raise Invalid("not a tenant's adapter: its two factors do not fit", str(file), "Train the tenant again.")
        if down.dtype != np.float16 or up.dtype != np.float16:
            raise Invalid(
                f"not a tenant's adapter: its factors are {down.dtype} and {up.dtype}, not float16",
                str(file),
                "Train the tenant again.",
            )
        return cls(down, up)


def train_adapter(
    embeddings: Floats, categories: Sequence[str], rank: int = 128, progress: Progress | None = None
) -> Adapter:
    """Learn an adapter from a tenant's examples; the same examples give the same adapter.

    Args:
        embeddings: of unit length, [n, d].
        categories: [n]; rows of category `oos` are left aside, since they need not be alike.
        rank: r, at most; d and one less than the number of categories are limits too.
        progress: told the share done, 0 to 1.

    Raises:
        Invalid: fewer than two categories, none with two texts, or a rank or sides that do not fit.
    """
    given = np.asarray(embeddings, np.float32)
    if given.ndim != 2 or len(given) != len(categories):
        raise Invalid(f"embeddings of shape {list(given.shape)} do not fit {len(categories)} categories", "embeddings")
    if rank < 1:
        raise Invalid(f"rank {rank} is not positive", "rank")
    if not np.isfinite(given).all():
        raise Invalid("there are embeddings that are not finite", "embeddings", "Check the base model's answers.")
    inside = np.array([category != OUT_OF_SCOPE for category in categories], bool)
    names, classes = np.unique(np.array(categories, np.str_)[inside], return_inverse=True)
    if len(names) < 2 or np.bincount(classes).max() < 2:
        raise Invalid(
            f"an adapter needs two categories beside {OUT_OF_SCOPE!r}, one of them with two texts",
            "examples",
            "Add examples.",
        )
    directions = _discriminants(given[inside].astype(np.float64), classes, min(rank, given.shape[1], len(names) - 1))
    if progress:
        progress(1.0)
    return Adapter((_STRETCH * directions).astype(np.float16), directions.T.astype(np.float16))


def _discriminants(embeddings: NDArray[np.float64], classes: NDArray[np.int64], rank: int) -> NDArray[np.float64]:
    """An orthonormal basis [d, rank] of the directions with the largest scatter between over within categories."""
    counts = np.bincount(classes)
    means = np.zeros((len(counts), embeddings.shape[1]))
    np.add.at(means, classes, embeddings)
    means /= counts[:, None]
    apart = embeddings - means[classes]
    within = apart.T @ apart / len(embeddings)
    within += np.eye(len(within)) * (_SHRINKAGE * np.trace(within) / len(within) + _FLOOR)
    values, vectors = np.linalg.eigh(within)
    whitening = (vectors / np.sqrt(values)) @ vectors.T
    spread = (means - means.mean(axis=0)) @ whitening
    _, found = np.linalg.eigh(spread.T @ spread)
    basis, _ = np.linalg.qr(whitening @ found[:, -rank:])
    return basis
