from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from octavo.errors import Invalid
from octavo.serving.tenants.adapter import ADAPTER_FILE, Adapter, train_adapter


def noisy(each: int, seed: int, categories: int = 5) -> tuple[np.ndarray, list[str]]:
    """Categories told apart by small parts of the vectors, beside larger parts that say nothing."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat(np.arange(categories), each)
    vectors = np.concatenate([0.4 * np.eye(categories)[kinds], rng.normal(0, 0.4, (len(kinds), 20))], axis=1)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors.astype(np.float32), [f"c{kind}" for kind in kinds]


def nearest_is_alike(embeddings: np.ndarray, categories: list[str]) -> float:
    near = embeddings @ embeddings.T - 9 * np.eye(len(embeddings))
    return float(np.mean([categories[at] == own for at, own in zip(near.argmax(axis=1), categories, strict=True)]))


def test_other_texts_find_their_likes_more_often() -> None:
    adapter = train_adapter(*noisy(30, seed=1))
    embeddings, categories = noisy(30, seed=2)
    moved = adapter.apply(embeddings)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), 1, rtol=1e-5)
    assert nearest_is_alike(moved, categories) > nearest_is_alike(embeddings, categories) + 0.1
    assert adapter.down.shape == (25, 4)


def test_the_same_examples_give_the_same_file_and_the_file_the_same_adapter(tmp_path: Path) -> None:
    embeddings, categories = noisy(5, seed=1)
    for name in ("one", "two"):
        train_adapter(embeddings, categories).save(tmp_path / name)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    adapter = train_adapter(embeddings, categories)
    np.testing.assert_array_equal(Adapter.load(tmp_path / "one").apply(embeddings), adapter.apply(embeddings))


@pytest.mark.parametrize(
    ("categories", "rank", "what"),
    [(["a"] * 4, 2, "two categories"), (list("abcd"), 2, "two texts"), (["a", "a", "oos", "oos"], 2, "two categories"),
     (["a", "a", "b"], 2, "do not fit"), (list("aabb"), 0, "rank 0")],
)  # fmt: skip
def test_what_cannot_be_learnt_is_refused(categories: list[str], rank: int, what: str) -> None:
    with pytest.raises(Invalid, match=what):
        train_adapter(np.eye(4, 8, dtype=np.float32), categories, rank)


def test_a_file_of_another_kind_and_other_widths_are_refused(tmp_path: Path) -> None:
    from octavo.serving.tenants.delta_file import write_delta

    write_delta(tmp_path / ADAPTER_FILE, {"down": np.ones((4, 2), np.float16), "up": np.ones((4, 2), np.float16)}, {})
    with pytest.raises(Invalid, match="do not fit"):
        Adapter.load(tmp_path / ADAPTER_FILE)
    write_delta(tmp_path / ADAPTER_FILE, {"down": np.ones((4, 2), np.float32), "up": np.ones((2, 4), np.float32)}, {})
    with pytest.raises(Invalid, match="not float16"):
        Adapter.load(tmp_path / ADAPTER_FILE)
    with pytest.raises(Invalid, match="width 25"):
        train_adapter(*noisy(5, seed=1)).apply(np.ones((1, 3), np.float32))
