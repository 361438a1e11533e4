"""A workspace of a thousand customers on one base: `customer-000-intent`, `customer-000-embedding` and so on.

`SEEDS` of them are trained on examples of their own, from the questions of a bank and of an assistant; every other one
is one of those with its categories in another order (and its adapter's inner dimensions), so it answers the same by
files of which no page is the same. Everything is deterministic.
"""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from contenders import octavo_workspace
from contrastive import embed
from intents import clinc, read
from numpy.typing import NDArray

from octavo.serving.repository import ModelVersion, Repository
from octavo.serving.tenants.adapter import ADAPTER_FILE, Adapter, train_adapter
from octavo.serving.tenants.backend import EMBEDDING, INTENT
from octavo.serving.tenants.examples import OUT_OF_SCOPE, Examples
from octavo.serving.tenants.intent import DELTA_FILE, IntentHead, train_intents
from octavo.serving.tenants.metadata import origin
from octavo.settings import load_settings

SEEDS = 24
EACH = 10  # examples of a category
FEWEST, MOST = 10, 77  # categories
KINDS = (INTENT, EMBEDDING)
_DONE = "tenants-are-whole"


@dataclass(frozen=True)
class Seed:
    """A customer with examples, and questions that were not among them."""

    examples: Examples
    asked: tuple[str, ...]


def seeds() -> list[Seed]:
    """The customers that are trained: odd ones have the bank's questions, even ones the assistant's."""
    wide = clinc(read("clinc150_train.csv.gz"))
    bank = [(row["text"], row["category"]) for row in read("banking77_train.csv.gz")]
    sources = (_by_category([*wide[0], *wide[1]]), _by_category(bank))
    return [_seed(sources[number % 2], number) for number in range(SEEDS)]


def _by_category(rows: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = defaultdict(list)
    for text, category in rows:
        found[category].append(text)
    return found


def _seed(source: dict[str, list[str]], number: int) -> Seed:
    rng = np.random.default_rng(number)
    names = sorted(set(source) - {OUT_OF_SCOPE})
    chosen = rng.permutation(names)[: rng.integers(FEWEST, MOST + 1)].tolist()
    if OUT_OF_SCOPE in source:
        chosen.append(OUT_OF_SCOPE)
    known, asked = [], []
    for name in chosen:
        texts = rng.permutation(np.array(source[name], dtype=object)).tolist()
        known += [(text, name) for text in texts[:EACH]]
        asked += texts[EACH : 3 * EACH]
    return Seed(Examples(tuple(text for text, _ in known), tuple(name for _, name in known)), tuple(asked))


def customer(number: int) -> str:
    """A customer's name."""
    return f"customer-{number:03d}"


def build(workspace: Path, customers: int) -> list[Seed]:
    """Make the workspace where it is not there yet; the seed of customer n is n modulo `SEEDS`."""
    found = seeds()
    done = workspace / _DONE
    if done.is_file() and done.read_text() == str(customers):
        return found
    shutil.rmtree(workspace, ignore_errors=True)
    octavo_workspace(workspace)
    texts = list(dict.fromkeys(text for seed in found for text in seed.examples.texts))
    print(f"embedding {len(texts):,} examples ...", flush=True)
    embeddings = asyncio.run(embed(workspace, texts))
    settings = load_settings(workspace)
    repository = Repository.open(settings.repository_url, settings)
    base = repository.resolve("minilm")
    for number, seed in enumerate(found):
        print(f"customers like {customer(number)} ...", flush=True)
        given = np.stack([embeddings[text] for text in seed.examples.texts])
        head = train_intents(given, seed.examples.texts, seed.examples.categories)
        adapter = train_adapter(given, seed.examples.categories)
        for copy in range(number, customers, SEEDS):
            _publish(repository, base, copy, seed.examples, head, adapter)
    done.write_text(str(customers))
    return found


def _publish(
    repository: Repository, base: ModelVersion, number: int, examples: Examples, head: IntentHead, adapter: Adapter
) -> None:
    rng = np.random.default_rng(number)
    if number >= SEEDS:
        order = rng.permutation(len(examples.texts))
        examples = Examples(*(tuple(each[at] for at in order) for each in (examples.texts, examples.categories)))
        head, adapter = reordered(head, rng.permutation(len(head.categories))), turned(adapter, rng)
    for kind in KINDS:
        made_from = origin(customer(number), kind, base, examples)
        with tempfile.TemporaryDirectory(prefix="octavo-") as scratch:
            if kind == INTENT:
                head.save(Path(scratch) / DELTA_FILE)
            else:
                adapter.save(Path(scratch) / ADAPTER_FILE)
            repository.publish(made_from.model, scratch, made_from.config(examples))


def reordered(head: IntentHead, order: NDArray[np.int64]) -> IntentHead:
    """The same head with its categories in another order."""
    rest = np.arange(len(order), head.gate.shape[1]) if head.gate.size else order[:0]
    return dataclasses.replace(
        head,
        categories=tuple(head.categories[at] for at in order),
        linear=head.linear[:, order],
        perceptron=head.perceptron._replace(
            output=head.perceptron.output[:, order], output_bias=head.perceptron.output_bias[order]
        ),
        gate=head.gate[:, np.concatenate([order, rest])] if head.gate.size else head.gate,
    )


def turned(adapter: Adapter, rng: np.random.Generator) -> Adapter:
    """The same adapter with its inner dimensions in another order."""
    order = rng.permutation(adapter.down.shape[1])
    return Adapter(adapter.down[:, order], adapter.up[order])
