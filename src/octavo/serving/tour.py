"""Serving's chapter of the tour: a real embedding model and many customers' models under one memory budget."""

from __future__ import annotations

import io
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from octavo.report import Chapter, Picture
from octavo.serving.client import Client
from octavo.serving.minilm import add_embedding_model
from octavo.serving.onnx_runtime import OnnxRuntimeBackend
from octavo.serving.repository import Repository
from octavo.settings import Settings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CUSTOMERS = 100
BUDGET = 96 * 2**20
REQUESTS = 600
CALLERS = 8
SETTLE_LOOKS = 10
_INK = "#010203"  # stands for the page's own text colour, light or dark
_INKED: Final = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")

TEXTS = [
    "Where is my order?",
    "My parcel has not arrived yet.",
    "I want my money back.",
    "How do I get a refund?",
    "The app crashes when I log in.",
    "I cannot sign in on my phone.",
]

Say = Callable[[str], None]


def settings_for_tour() -> dict[str, Any]:
    """The `[serving]` settings of the sample workspace: a budget that does not hold all customers' models."""
    return {"memory_budget": BUDGET}


def prepare(settings: Settings, say: Say) -> None:
    """Fill the sample workspace's repository: the default model and a copy of it for every customer."""
    repository = Repository.open(settings.repository_url, settings)
    have = set(repository.names())
    for name, precision in (("minilm", "fp32"), ("minilm-int8", "int8")):
        if name not in have:
            say(f"building {name} ({precision})")
            version = add_embedding_model(repository, name, "minilm", precision=precision)
            OnnxRuntimeBackend(settings).prepare(repository.resolve(name, version))
    for name in customers():
        if name not in have:
            repository.copy("minilm", name)
    say(f"{CUSTOMERS} customers have a model each")


def customers() -> list[str]:
    """Names of the customers' models."""
    return [f"customer-{number:03d}" for number in range(1, CUSTOMERS + 1)]


def visit(client: Client, say: Say) -> Chapter:
    """Ask the running server what its users would ask, and check every answer."""
    chapter = Chapter(
        "Serving",
        f"One server, {CUSTOMERS + 2} models, {BUDGET // 2**20} MiB. Models come in when they are asked for and leave "
        "when others are worth more.",
    )
    say("embedding six sentences")
    vectors = _visit_model(client, chapter)
    say(f"{REQUESTS} requests to {CUSTOMERS} customers' models")
    _visit_customers(client, chapter, vectors)
    return chapter


def _visit_model(client: Client, chapter: Chapter) -> NDArray[np.float32]:
    start = time.perf_counter()
    vectors: NDArray[np.float32] = client.embed(TEXTS, model="minilm")
    cold = time.perf_counter() - start
    cached = []
    for _ in range(20):
        start = time.perf_counter()
        client.embed(TEXTS[:1], model="minilm")
        cached.append(time.perf_counter() - start)
    likeness = vectors @ vectors.T
    pairs = [likeness[i, i + 1] for i in (0, 2, 4)]
    others = likeness[np.triu_indices(len(TEXTS), 1)].mean()
    chapter.check(min(pairs) > others, "sentences of one meaning should be more alike than others")
    small = client.embed(TEXTS, model="minilm-int8")
    agreement = float((vectors * small).sum(axis=1).min())
    chapter.check(agreement > 0.93, f"int8 and fp32 should agree, their worst cosine is {agreement:.3f}")
    chapter.add("Cold start to first answer", f"{cold * 1e3:.0f} ms", "six sentences, model not in memory")
    chapter.add("Cached call", f"{np.median(cached) * 1e3:.1f} ms", "one sentence, over HTTP")
    chapter.add("int8 against fp32", f"{agreement:.3f}", "worst cosine of six sentences")
    chapter.pictures.append(Picture(_draw_likeness(likeness), "How alike six sentences are to minilm (cosine)."))
    return vectors


def _visit_customers(client: Client, chapter: Chapter, expected: NDArray[np.float32]) -> None:
    rng = random.Random(7)
    names = customers()
    weights = [1 / rank**1.1 for rank in range(1, len(names) + 1)]
    asked = [(name, rng.randrange(len(TEXTS))) for name in rng.choices(names, weights, k=REQUESTS)]
    before = client.residency()

    def ask(question: tuple[str, int]) -> tuple[float, float]:
        name, which = question
        start = time.perf_counter()
        vector = client.embed([TEXTS[which]], model=name)[0]
        return time.perf_counter() - start, float(vector @ expected[which])

    start = time.perf_counter()
    with ThreadPoolExecutor(CALLERS) as callers:
        answers = list(callers.map(ask, asked))
    seconds = time.perf_counter() - start
    after = _at_rest(client)
    latencies = np.array([latency for latency, _ in answers]) * 1e3
    counted = {key: after["counters"][key] - before["counters"][key] for key in ("hits", "colds", "evictions")}
    worst = min(cosine for _, cosine in answers)
    chapter.check(worst > 0.999, f"a customer's model answered wrongly (cosine {worst:.4f})")
    chapter.check(after["charged_bytes"] <= BUDGET, "memory stays over the budget")
    chapter.check(counted["evictions"] > 0, "the budget should have been too small for all customers")
    ratio = counted["hits"] / (counted["hits"] + counted["colds"])
    chapter.add("Requests answered", f"{len(answers)} of {REQUESTS}", f"{len(answers) / seconds:.0f} per second")
    chapter.add("Found in memory", f"{ratio:.0%}", f"{counted['colds']} cold starts, {counted['evictions']} evictions")
    chapter.add("Latency p50 / p99", f"{np.percentile(latencies, 50):.0f} / {np.percentile(latencies, 99):.0f} ms")
    resident = [model for model in after["models"] if model["state"] == "READY"]
    chapter.add(
        "Memory held",
        f"{after['charged_bytes'] / 2**20:.0f} of {BUDGET // 2**20} MiB",
        f"{len(resident)} models in memory, measured",
    )
    chapter.pictures.append(Picture(_draw_budget(after), "The memory budget and what it holds now."))
    chapter.pictures.append(Picture(_draw_latencies(latencies), "Latency of every request, cold starts included."))


def _at_rest(client: Client) -> dict[str, Any]:
    """The memory held once the buffers of the last batches have made others leave, where they had to."""
    for _ in range(SETTLE_LOOKS):
        found = client.residency()
        if found["charged_bytes"] <= BUDGET:
            break
        time.sleep(0.5)
    return found


def _draw_likeness(likeness: NDArray[np.float32]) -> str:
    figure = _figure(6.4, 3.2)
    axes = figure.subplots()
    axes.imshow(likeness, cmap="Blues", vmin=0, vmax=1)
    for (row, column), value in np.ndenumerate(likeness):
        colour = "white" if value > 0.6 else "#333333"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", color=colour, fontsize=8)
    axes.set_yticks(range(len(TEXTS)), TEXTS, fontsize=8)
    axes.set_xticks([])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure)


def _draw_budget(residency: dict[str, Any]) -> str:
    figure = _figure(6.4, 1.5)
    axes = figure.subplots()
    budget, held = (residency[key] / 2**20 for key in ("budget_bytes", "charged_bytes"))
    shared = sum(residency["shared"].values()) / 2**20
    own = sum(model["bytes"] for model in residency["models"]) / 2**20
    parts = [("weights, shared", shared, "#2f6db3"), ("each model alone", own, "#8ab8e0")]
    parts.append(("batches and other", max(0.0, held - shared - own), "#b9a3d6"))
    left = 0.0
    for label, width, colour in parts:
        axes.barh(0, width, left=left, color=colour, label=label)
        left += width
    axes.axvline(budget, color="#c0392b", linewidth=1.5, label="budget")
    axes.set(yticks=[], xlabel="MiB", xlim=(0, budget * 1.05))
    axes.legend(frameon=False, ncols=4, fontsize=8, loc="lower left", bbox_to_anchor=(0, 1), handlelength=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    return _svg(figure)


def _draw_latencies(latencies: NDArray[np.float64]) -> str:
    figure = _figure(6.4, 2.4)
    axes = figure.subplots()
    axes.scatter(range(len(latencies)), latencies, s=6, color="#4f8fd6", alpha=0.8, linewidths=0)
    axes.set(yscale="log", xlabel="request", ylabel="ms")
    axes.spines[["top", "right"]].set_visible(False)
    return _svg(figure)


def _figure(width: float, height: float) -> Figure:
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    for part in _INKED:
        rcParams[part] = _INK
    return Figure(figsize=(width, height), layout="constrained")


def _svg(figure: Figure) -> str:
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True)
    text = out.getvalue().replace(_INK, "currentColor")
    return text[text.index("<svg") :]
