"""What the names of a tenant's categories say: `lost_or_stolen_card` is an example of its category by itself.

Where examples are few, one more of each tells. Names such as `topic_17` say nothing and would only confuse; whether
they do is seen in the examples.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from octavo.serving.tenants.logistic import Floats

_MOST_WRONG = 0.5
_BETWEEN_WORDS = re.compile(r"[\W_]+|(?<=[a-z])(?=[A-Z])")


def name_texts(categories: Sequence[str]) -> list[str]:
    """The names as texts: `LostCard`, `lost_card` and `lost-card` are `lost card`."""
    return [" ".join(word for word in _BETWEEN_WORDS.split(name) if word).lower() or name for name in categories]


def names_tell(names: Floats, embeddings: Floats, classes: NDArray[np.int64]) -> bool:
    """Whether most names lie nearest to the mean of their own category's examples.

    Args:
        names: [categories, d], embeddings of the names.
        embeddings: [n, d], of the examples.
        classes: [n], their categories; each has one at least.
    """
    sums = np.zeros_like(names)
    np.add.at(sums, classes, embeddings)
    means = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    nearest = (names @ means.T).argmax(axis=1)
    return float((nearest != np.arange(len(names))).mean()) < _MOST_WRONG
