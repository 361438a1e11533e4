"""Why a tenant's adapter is a closed form: the same low rank trained by the supervised contrastive loss beside it.

Both learn from the same examples and are asked the same texts: is the nearest example of the text's category? The
contender (Khosla 2020, by AdamW) is tried at several ranks, rates and lengths, and the best of them, chosen with the
answers in hand, is what the closed form is held against.

python benchmarks/serving/contrastive.py
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from contenders import octavo_workspace
from harness import CACHE, Report, own_versions, run
from intents import FEW, clinc, few, full, read
from numpy.typing import NDArray

from octavo.serving.inference import InferRequest
from octavo.serving.service import Serving
from octavo.serving.tenants.adamw import AdamW
from octavo.serving.tenants.adapter import Adapter, train_adapter
from octavo.serving.tenants.examples import OUT_OF_SCOPE
from octavo.serving.tenants.logistic import softmax
from octavo.settings import load_settings

Floats = NDArray[np.float32]
Rows = Sequence[tuple[str, str]]

REQUEST = 64  # texts
CATEGORIES = 64  # of a contrastive batch, at most
EACH = 4  # texts of each
TEMPERATURE = np.float32(0.1)
RANKS = (16, 64)
RATES = (1e-3, 3e-3)
STEPS = (200, 800)
EQUAL = 0.005  # of a measure between 0 and 1: less than what another draw of the examples changes


@dataclass(frozen=True)
class Case:
    """Examples to learn from and texts to ask, with their embeddings."""

    name: str
    known: Floats
    known_as: NDArray[np.str_]
    asked: Floats
    asked_as: NDArray[np.str_]


def train_contrastive(embeddings: Floats, categories: NDArray[np.str_], rank: int, rate: float, steps: int) -> Adapter:
    """An adapter after so many steps of AdamW on batches of some texts of some categories."""
    rng = np.random.default_rng(0)
    _, classes = np.unique(categories, return_inverse=True)
    members = [np.flatnonzero(classes == each) for each in range(classes.max() + 1)]
    width = embeddings.shape[1]
    down = rng.normal(0, 1 / np.sqrt(width), (width, rank)).astype(np.float32)
    up = np.zeros((rank, width), np.float32)
    optimiser = AdamW((down, up), rate, decay=0.01, steps=steps, warm_up=0.1)
    for _ in range(steps):
        chosen = rng.permutation(len(members))[:CATEGORIES]
        rows = np.concatenate([rng.permutation(members[each])[:EACH] for each in chosen])
        optimiser.step(_gradients(down, up, embeddings[rows], classes[rows]))
    return Adapter(down.astype(np.float16), up.astype(np.float16))


def _gradients(down: Floats, up: Floats, inputs: Floats, classes: NDArray[np.int64]) -> tuple[Floats, Floats]:
    low = inputs @ down
    moved = inputs + low @ up
    lengths = np.maximum(np.linalg.norm(moved, axis=1, keepdims=True), np.float32(1e-9))
    unit = moved / lengths
    by_likeness = _likeness_gradient(unit @ unit.T / TEMPERATURE, classes) / TEMPERATURE
    by_unit = (by_likeness + by_likeness.T) @ unit
    by_moved = (by_unit - unit * (by_unit * unit).sum(axis=1, keepdims=True)) / lengths
    return inputs.T @ (by_moved @ up.T), low.T @ by_moved


def _likeness_gradient(likeness: Floats, classes: NDArray[np.int64]) -> Floats:
    """What softmax gives each other text less what its positives should get; [n, n] cosines over temperature."""
    np.fill_diagonal(likeness, -np.inf)
    positive = (classes[:, None] == classes[None, :]) & ~np.eye(len(classes), dtype=bool)
    counts = positive.sum(axis=1, keepdims=True)
    wanted = positive / np.maximum(counts, 1)
    anchors = counts > 0
    return ((softmax(likeness) - wanted) * anchors / max(1, int(anchors.sum()))).astype(np.float32)


def retrieval(case: Case, adapter: Adapter | None) -> dict[str, float]:
    """How often the nearest known text is of the right category; reciprocal rank; share among the nearest ten."""
    known, asked = (adapter.apply(each) if adapter else each for each in (case.known, case.asked))
    near = asked @ known.T
    _, codes = np.unique(np.concatenate([case.known_as, case.asked_as]), return_inverse=True)
    alike = codes[None, : len(known)] == codes[len(known) :, None]
    best = np.where(alike, near, np.float32(-2)).max(axis=1, keepdims=True)
    rank = 1 + (near > best).sum(axis=1)
    nearest = np.argpartition(-near, 10, axis=1)[:, :10]
    found = {
        "recall@1": float((rank == 1).mean()),
        "MRR": float((1 / rank).mean()),
        "precision@10": float(np.take_along_axis(alike, nearest, axis=1).mean()),
    }
    return found | {"mean": float(np.mean(list(found.values())))}


def measure(case: Case, what: str, make: Callable[[], Adapter | None]) -> dict[str, Any]:
    """One row: what an adapter makes of the case, and the CPU-seconds it took to learn."""
    start = time.process_time()
    adapter = make()
    cpu = time.process_time() - start
    return {"case": case.name, "what": what, **retrieval(case, adapter), "CPU s": cpu}


def compare(case: Case, report: Report) -> None:
    """The base, the closed form and all contenders on one case; and the bar."""
    base = measure(case, "base", lambda: None)
    closed = measure(case, "closed form", lambda: train_adapter(case.known, list(case.known_as)))
    tried = [
        measure(
            case,
            f"contrastive, rank {rank}, rate {rate:g}, {steps} steps",
            lambda rank=rank, rate=rate, steps=steps: train_contrastive(case.known, case.known_as, rank, rate, steps),
        )
        for rank, rate, steps in itertools.product(RANKS, RATES, STEPS)
    ]
    best = max(tried, key=lambda row: row["mean"])
    report.rows += [base, closed, *tried]
    claim = f"{case.name}: closed form against the best contrastive, mean of the three measures"
    told = f"{closed['mean']:.3f} against {best['mean']:.3f} (base {base['mean']:.3f}; {best['what']})"
    report.bar(claim, f"no worse than {EQUAL} below", told, closed["mean"] >= best["mean"] - EQUAL)
    report.tell(f"{case.name}: CPU-seconds to learn", f"{closed['CPU s']:.2f} against {best['CPU s']:.2f}")


async def embed(workspace: Path, texts: Sequence[str]) -> dict[str, Floats]:
    """The base's embedding of each text."""
    serving = await Serving.open(load_settings(workspace), keep_pinned=False)
    found: dict[str, Floats] = {}
    try:
        for start in range(0, len(texts), REQUEST):
            part = texts[start : start + REQUEST]
            tensor = np.array([[text.encode()] for text in part], dtype=object)
            answer = await serving.infer(InferRequest("minilm", {"text": tensor}))
            found |= dict(zip(part, answer.outputs["embedding"], strict=True))
    finally:
        await serving.close()
    return found


def case(name: str, known: Rows, asked: Rows, embeddings: dict[str, Floats]) -> Case:
    """A case of rows, without what is out of scope."""
    sides = ([row for row in rows if row[1] != OUT_OF_SCOPE] for rows in (known, asked))
    (known, asked) = sides
    return Case(
        name,
        np.stack([embeddings[text] for text, _ in known]),
        np.array([category for _, category in known]),
        np.stack([embeddings[text] for text, _ in asked]),
        np.array([category for _, category in asked]),
    )


def main() -> None:
    """Run everything."""
    CACHE.mkdir(exist_ok=True)
    report = Report("contrastive", "python benchmarks/serving/contrastive.py", versions=own_versions("octavo", "numpy"))
    bank = [(row["text"], row["category"]) for row in read("banking77_train.csv.gz")]
    wide = clinc(read("clinc150_train.csv.gz"))
    texts = list(dict.fromkeys(text for text, _ in (*bank, *wide[0], *wide[1])))
    embeddings = asyncio.run(embed(octavo_workspace(CACHE / "workspace"), texts))
    compare(case(f"Banking77, {FEW}-shot", *next(few(bank)), embeddings), report)
    compare(case("Banking77, four fifths", *next(full(bank)), embeddings), report)
    compare(case("CLINC150", *wide, embeddings), report)
    report.notes.append("Validation parts of the train files only. 'mean' is that of recall@1, MRR and precision@10.")
    report.finish()


if __name__ == "__main__":
    run(main)
