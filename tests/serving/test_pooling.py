from __future__ import annotations

import numpy as np
import pytest

from octavo.errors import Invalid
from octavo.serving.pooling import MODES, pool

HIDDEN = np.array([[[3.0, 4.0], [1.0, 0.0], [9.0, 9.0]]], dtype=np.float32)
MASK = np.array([[1, 1, 0]])


@pytest.mark.parametrize(
    ("mode", "vector"),
    [("mean", [2, 2]), ("cls", [3, 4]), ("max", [3, 4]), ("mean_sqrt_len", [4 / 2**0.5, 4 / 2**0.5])],
)
def test_each_mode(mode: str, vector: list[float]) -> None:
    assert np.allclose(pool(HIDDEN, MASK, mode, normalise=False), [vector])
    assert np.allclose(np.linalg.norm(pool(HIDDEN, MASK, mode), axis=1), 1)


@pytest.mark.parametrize("mode", MODES)
def test_a_row_without_tokens_is_zero(mode: str) -> None:
    assert np.array_equal(pool(HIDDEN, np.zeros_like(MASK), mode), np.zeros((1, 2), dtype=np.float32))


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(Invalid, match="'median'"):
        pool(HIDDEN, MASK, "median")
