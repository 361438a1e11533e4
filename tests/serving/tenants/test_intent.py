from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.serving.tenants.delta_file import read_delta, write_delta
from octavo.serving.tenants.intent import DELTA_FILE, IntentHead, check_size, train_intents
from octavo.serving.tenants.ngrams import WIDTH, count_ngrams, features, fit_frequencies

DIMENSIONS = 16
WORDS = ("card", "money", "loan")


def sample(each: int, seed: int, outside: int = 0) -> tuple[NDArray[np.float32], list[str], list[str]]:
    """Three categories around three directions, and texts out of scope around a fourth."""
    rng = np.random.default_rng(seed)
    kinds = [kind for kind in range(3) for _ in range(each)] + [3] * outside
    vectors = np.eye(DIMENSIONS)[kinds] + rng.normal(0, 0.1, (len(kinds), DIMENSIONS))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    texts = [f"about my {(*WORDS, 'weather')[kind]} number {at}" for at, kind in enumerate(kinds)]
    return vectors.astype(np.float32), texts, [(*WORDS, "oos")[kind] for kind in kinds]


def test_learns_categories_and_turns_away_what_is_out_of_scope() -> None:
    head = train_intents(*sample(20, seed=1, outside=20))
    embeddings, texts, categories = sample(20, seed=2, outside=20)
    said = head.predict(embeddings, texts)
    right = np.mean([one == wanted for one, wanted in zip(said.labels, categories, strict=True)])
    assert right > 0.95
    assert said.labels.count("oos") >= 18
    assert said.probabilities.shape == (80, 3)
    np.testing.assert_allclose(said.probabilities.sum(axis=1), 1, rtol=1e-5)


def test_learns_without_examples_of_what_is_out_of_scope() -> None:
    head = train_intents(*sample(10, seed=1))
    embeddings, texts, categories = sample(10, seed=2)
    assert np.mean([a == b for a, b in zip(head.predict(embeddings, texts).labels, categories, strict=True)]) > 0.9


@pytest.mark.parametrize(("each", "outside"), [(1, 0), (1, 1), (2, 1)])
def test_learns_from_hardly_any_examples(each: int, outside: int) -> None:
    embeddings, texts, categories = sample(each, seed=1, outside=outside)
    said = train_intents(embeddings, texts, categories).predict(embeddings, texts)
    assert len(said.labels) == len(categories)
    assert np.isfinite(said.probabilities).all()


@pytest.mark.parametrize("categories", [["one"] * 6, ["one", "oos"] * 3, ["oos"] * 6])
def test_needs_two_categories(categories: list[str]) -> None:
    embeddings, texts, _ = sample(2, seed=1)
    with pytest.raises(Invalid, match="category"):
        train_intents(embeddings, texts, categories)


def test_the_same_examples_give_the_same_bytes_and_a_file_answers_as_what_was_saved(tmp_path: Path) -> None:
    given_ = sample(10, seed=1, outside=5)
    head = train_intents(*given_)
    files = [tmp_path / name / DELTA_FILE for name in ("one", "two")]
    head.save(files[0])
    train_intents(*given_).save(files[1])
    assert files[0].read_bytes() == files[1].read_bytes()
    loaded = IntentHead.load(files[0])
    assert isinstance(loaded.linear.base, np.memmap | np.ndarray)
    one, other = head.predict(*given_[:2]), loaded.predict(*given_[:2])
    assert one.labels == other.labels
    np.testing.assert_array_equal(one.probabilities, other.probabilities)


@given(at=st.integers(0, 400), byte=st.integers(0, 255), cut=st.integers(0, 2000))
def test_a_broken_file_is_refused_or_read_never_worse(
    tmp_path_factory: pytest.TempPathFactory, whole: bytes, at: int, byte: int, cut: int
) -> None:
    file = tmp_path_factory.mktemp("broken") / DELTA_FILE
    broken = bytearray(whole)
    broken[at] = byte
    file.write_bytes(bytes(broken[: len(broken) - cut]))
    with suppress(Invalid):
        IntentHead.load(file)


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="missing"):
        read_delta(tmp_path / DELTA_FILE)
    (tmp_path / DELTA_FILE).touch()
    with pytest.raises(Invalid, match="not a readable file"):
        read_delta(tmp_path / DELTA_FILE)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    file = tmp_path_factory.mktemp("whole") / DELTA_FILE
    train_intents(*sample(3, seed=1)).save(file)
    return file.read_bytes()


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_ngrams_of_a_text_do_not_depend_on_the_texts_beside_it(texts: list[str]) -> None:
    frequencies = fit_frequencies(count_ngrams(texts))
    together = features(count_ngrams(texts), frequencies)
    assert together.shape == (len(texts), WIDTH)
    apart = np.concatenate([features(count_ngrams([text]), frequencies) for text in texts])
    np.testing.assert_allclose(together, apart, atol=1e-6)


def test_a_large_request_answers_as_its_texts_do_one_by_one() -> None:
    head = train_intents(*sample(10, seed=1, outside=5))
    embeddings, texts, _ = sample(100, seed=2, outside=20)
    together = head.predict(embeddings, texts)
    apart = [head.predict(embeddings[at : at + 1], texts[at : at + 1]) for at in range(len(texts))]
    assert together.labels == [one.labels[0] for one in apart]
    np.testing.assert_allclose(together.probabilities, np.concatenate([one.probabilities for one in apart]), atol=1e-5)


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"linear": np.zeros((DIMENSIONS + WIDTH + 1, 3), np.float32)}, "linear is float32"),
        ({"frequencies": np.zeros(65_536, np.float16)}, "frequencies is float16"),
        ({"output_bias": np.zeros(4, np.float16)}, r"output_bias is float16 \[4\]"),
        ({"hidden": np.zeros((), np.float16)}, "not a tenant's intent model"),
        ({"gate": np.zeros((5, 5), np.float16)}, "gate is"),
        ({"threshold": float("nan")}, "not finite"),
        ({"share": 2}, "share"),
        ({"categories": ["one"]}, "1 categories"),
        ({"categories": "abc"}, "no list"),
    ],
)
def test_a_file_with_other_arrays_is_refused(tmp_path: Path, changed: dict[str, Any], what: str) -> None:
    train_intents(*sample(3, seed=1, outside=3)).save(tmp_path / DELTA_FILE)
    arrays, note = read_delta(tmp_path / DELTA_FILE)
    for name, value in changed.items():
        (arrays if isinstance(value, np.ndarray) else note)[name] = value
    write_delta(tmp_path / "changed", arrays, note)
    with pytest.raises(Invalid, match=what):
        IntentHead.load(tmp_path / "changed")


def test_more_scores_than_fit_into_memory_and_embeddings_that_are_no_numbers_are_refused() -> None:
    with pytest.raises(Invalid, match="100,000 examples of 50,000 categories"):
        check_size(50_000, 100_000)
    embeddings, texts, categories = sample(2, seed=1)
    embeddings[0, 0] = np.nan
    with pytest.raises(Invalid, match="not finite"):
        train_intents(embeddings, texts, categories)


def test_an_endlessly_nested_header_is_refused(tmp_path: Path) -> None:
    header = b"[" * 200_000
    (tmp_path / DELTA_FILE).write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(Invalid, match="not a readable file"):
        read_delta(tmp_path / DELTA_FILE)
