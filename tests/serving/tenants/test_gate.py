from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from octavo.serving.tenants.gate import fit_gate, margins

DIMENSIONS = 16
KINDS = 3


def around(kinds: NDArray[np.int64], seed: int) -> NDArray[np.float32]:
    """Unit vectors around one axis for each kind."""
    rng = np.random.default_rng(seed)
    vectors = np.eye(DIMENSIONS)[kinds] + rng.normal(0, 0.1, (len(kinds), DIMENSIONS))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def turned_away(outside: int, asked: NDArray[np.int64]) -> float:
    """Share of the asked kinds that a gate turns away which has seen three kinds and some texts of a fourth."""
    classes = np.repeat(np.arange(KINDS + 1), [30, 30, 30, outside])
    weights, threshold = fit_gate(around(classes, seed=1), classes, KINDS)
    assert weights.shape == (DIMENSIONS + 1, KINDS + (outside > 0))
    return float((margins(weights, around(asked, seed=2), KINDS) < threshold).mean())


def test_turns_away_what_it_was_shown_and_keeps_nearly_all_else() -> None:
    assert turned_away(20, np.full(50, KINDS)) > 0.9
    assert turned_away(20, np.arange(90) % KINDS) < 0.1


def test_turns_away_what_is_unlike_all_categories_without_having_been_shown_any() -> None:
    assert turned_away(0, np.full(50, KINDS + 4)) > 0.9
    assert turned_away(0, np.arange(90) % KINDS) < 0.1


def test_a_single_example_of_each_says_nothing_of_margins() -> None:
    classes = np.arange(KINDS)
    weights, _ = fit_gate(around(classes, seed=1), classes, KINDS)
    assert weights.shape == (0, 0)
    classes = np.arange(KINDS + 1)
    weights, threshold = fit_gate(around(classes, seed=1), classes, KINDS)
    assert weights.shape == (DIMENSIONS + 1, KINDS + 1)
    assert (margins(weights, around(classes, seed=2), KINDS) >= threshold).tolist() == [True, True, True, False]


def test_the_same_examples_give_the_same_gate() -> None:
    classes = np.arange(40) % (KINDS + 1)
    one, other = (fit_gate(around(classes, seed=1), classes, KINDS) for _ in range(2))
    np.testing.assert_array_equal(one[0], other[0])
    assert one[1] == other[1]
