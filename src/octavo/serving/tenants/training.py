"""Train a tenant's model on its examples and publish it; ask it about others and count what it gets right."""

from __future__ import annotations

import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from octavo.errors import Invalid
from octavo.serving.inference import InferRequest
from octavo.serving.tenants.adapter import ADAPTER_FILE, train_adapter
from octavo.serving.tenants.backend import EMBEDDING, INTENT
from octavo.serving.tenants.evaluation import Asked, Evaluation, remember_evaluation
from octavo.serving.tenants.examples import OUT_OF_SCOPE, Examples
from octavo.serving.tenants.intent import DELTA_FILE, IntentHead, check_size, in_scope, train_intents
from octavo.serving.tenants.metadata import TenantMetadata, origin, tenant_model
from octavo.serving.tenants.naming import name_texts, names_tell

if TYPE_CHECKING:
    from octavo.serving.repository import Repository
    from octavo.serving.service import Serving
    from octavo.serving.tensors import Tensors

Progress = Callable[[float, str], None]
"""Told the share of the work that is done, and what is being done."""

_AT_ONCE: Final = 256  # texts per request: below the queue's limit, many times what fills the cores


@dataclass(frozen=True)
class Trained:
    """A tenant's version; `new` is false when the same examples had made it before."""

    model: str
    version: str
    categories: int
    examples: int
    new: bool


async def train_tenant(
    serving: Serving, tenant: str, base: str, examples: Examples, progress: Progress
) -> list[Trained]:
    """Learn a tenant's intents and its embedding adapter over a base, and publish each as a version.

    Training again on the same examples and base gives back the versions there are.

    Raises:
        NotFound: no such base.
        Invalid: one category only, too many, a base that gives no embeddings, or a name that cannot be a model's.
    """
    categories = check_examples(tenant, examples)
    found = await asyncio.to_thread(serving.repository.resolve, base)
    embeddings: Any = None
    done = []
    for kind, learn in _LEARN.items():
        made_from = origin(tenant, kind, found, examples)
        version = await asyncio.to_thread(_existing, serving.repository, made_from)
        new = not version
        if new:
            if embeddings is None:
                texts = [*examples.texts, *name_texts(in_scope(examples.categories))]
                embeddings = await _embed(serving, made_from, texts, _part(progress, 0.0, _READING))
            version = await asyncio.to_thread(
                _learn_and_publish,
                serving.repository,
                made_from,
                learn,
                embeddings,
                examples,
                _part(progress, *_SHARES[kind]),
            )
        done.append(Trained(made_from.model, version, categories, len(examples.texts), new))
    return done


def check_examples(tenant: str, examples: Examples) -> int:
    """Whether a tenant can be trained on them; gives the number of categories.

    Raises:
        Invalid: one category only, too many, or a name that cannot be a model's.
    """
    for kind in _LEARN:
        tenant_model(tenant, kind)
    counts = Counter(name for name in examples.categories if name != OUT_OF_SCOPE)
    categories = len(counts)
    check_size(categories, len(examples.texts))
    if max(counts.values()) < 2:
        raise Invalid("no category has two texts", "text", "Give at least two texts of one category; ten do well.")
    return categories


def _learn_and_publish(
    repository: Repository,
    made_from: TenantMetadata,
    learn: Learn,
    embeddings: Any,
    examples: Examples,
    progress: Progress,
) -> str:
    """The version published."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as scratch:
        folder = Path(scratch)
        learn(folder, embeddings, examples, lambda done: progress(done, f"training {made_from.model}"))
        return repository.publish(made_from.model, folder, made_from.config(examples))


def _learn_intents(folder: Path, embeddings: Any, examples: Examples, progress: Callable[[float], None]) -> None:
    """`embeddings` are those of the examples, and after them those of the categories' names."""
    texts, categories, count = examples.texts, examples.categories, len(examples.texts)
    named = in_scope(categories)
    column = {name: at for at, name in enumerate(named)}
    inside = np.array([name in column for name in categories])
    classes = np.array([column[name] for name in categories if name in column], np.int64)
    if names_tell(embeddings[count:], embeddings[:count][inside], classes):
        texts, categories = (*texts, *name_texts(named)), (*categories, *named)
    train_intents(embeddings[: len(texts)], texts, categories, progress).save(folder / DELTA_FILE)


def _learn_adapter(folder: Path, embeddings: Any, examples: Examples, progress: Callable[[float], None]) -> None:
    learnt = embeddings[: len(examples.texts)]
    train_adapter(learnt, examples.categories, progress=progress).save(folder / ADAPTER_FILE)


_READING: Final = 0.4
"""The part of the work that reading the examples takes, and from where to where each kind's learning goes."""
_SHARES: Final = {INTENT: (_READING, 0.9), EMBEDDING: (0.9, 1.0)}


def _part(progress: Progress, start: float, stop: float) -> Progress:
    """The progress of a part of the work, as one of the whole."""
    return lambda done, text: progress(start + (stop - start) * done, text)


Learn = Callable[[Path, Any, Examples, Callable[[float], None]], None]
_LEARN: Final[dict[str, Learn]] = {INTENT: _learn_intents, EMBEDDING: _learn_adapter}


async def evaluate_tenant(serving: Serving, tenant: str, examples: Examples, progress: Progress) -> Evaluation:
    """Ask a tenant's model about examples, as any client would, and compare; what was found is remembered.

    Raises:
        NotFound: the tenant has no model.
    """
    model = tenant_model(tenant)
    resolved = await asyncio.to_thread(serving.repository.resolve, model)
    version = resolved.version
    known = {OUT_OF_SCOPE, *(await asyncio.to_thread(IntentHead.load, resolved.folder / DELTA_FILE)).categories}
    said: list[str] = []
    for texts in _chunks(examples.texts):
        answer = await serving.infer(InferRequest(model, _tensors(texts), version=version, outputs=("label",)))
        said += [label.decode() for label in answer.outputs["label"].ravel().tolist()]
        progress(len(said) / len(examples.texts), f"asked {len(said):,} of {len(examples.texts):,}")
    pairs = list(zip(said, examples.categories, strict=True))
    inside = [one == wanted for one, wanted in pairs if wanted != OUT_OF_SCOPE]
    outside = [one == wanted for one, wanted in pairs if wanted == OUT_OF_SCOPE]
    unknown = tuple(sorted(set(examples.categories) - known))
    found = Evaluation(_share(inside), _share(outside), len(inside), len(outside), unknown)
    asked = Asked(model, version, resolved.config.parameters.get("examples", ""))
    await asyncio.to_thread(remember_evaluation, serving.documents, asked, found)
    return found


async def _embed(serving: Serving, made_from: TenantMetadata, texts: Sequence[str], progress: Progress) -> Any:
    """FP32 [n, d]: the base's embeddings."""
    rows = []
    done = 0
    for chunk in _chunks(texts):
        answer = await serving.infer(InferRequest(made_from.base, _tensors(chunk), version=made_from.base_version))
        embedding = answer.outputs.get("embedding")
        if embedding is None or embedding.ndim != 2:
            raise Invalid("the base gives no embedding", made_from.base, "Take a text-embedding model, as minilm.")
        rows.append(embedding)
        done += len(chunk)
        progress(done / len(texts), f"reading the examples, {done:,} of {len(texts):,}")
    return np.concatenate(rows)


def _existing(repository: Repository, made_from: TenantMetadata) -> str:
    """The newest version if it was made from the same; else empty."""
    name = made_from.model
    if name not in repository.names():
        return ""
    version = repository.choose(name)
    return version if made_from.made(repository.config(name, version).parameters) else ""


def _chunks(texts: Sequence[str]) -> list[Sequence[str]]:
    return [texts[start : start + _AT_ONCE] for start in range(0, len(texts), _AT_ONCE)]


def _tensors(texts: Sequence[str]) -> Tensors:
    return {"text": np.array([[text.encode()] for text in texts], dtype=object)}


def _share(right: Sequence[bool]) -> float | None:
    return round(sum(right) / len(right), 6) if right else None
