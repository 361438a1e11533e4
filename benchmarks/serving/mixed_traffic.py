"""Mixed traffic of all clients while everything changes: every answer is checked, no request may fail.

Four processes, one per client (boto3, tritonclient HTTP and gRPC, openai), ask models of every kind under a budget that
cannot hold them all, while this process loads, unloads, pins, publishes, rolls back, deploys, rolls out, promotes,
moves traffic between variants and kills workers of Python models. An int8 model's answer depends a little on what it
is batched with (its activations are scaled together), so it is compared by cosine, all others number by number.

    python benchmarks/serving/mixed_traffic.py [--minutes 10]
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from clients import BUSY, CLIENTS, Array, Doors
from conformance import TEXTS, aws_credentials
from contenders import TOKEN, octavo_server, octavo_workspace
from harness import CACHE, CannotRun, Report, free_port, octavo_command, own_versions, percentile, run
from tenants import publish_tenants

WIDTH = 64
MODELS = 60
VERSIONS = 8
"""Weights are made for this many versions of each model; so many are published at most."""
THREADS = 2
PAUSE = 0.02
MIB = 2**20
BUDGET = 150 * MIB
LEAST_COSINE = 0.97

PYTHON_MODEL = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("y", np.float32(3) * r.inputs()[0].as_numpy())])
            for r in requests
        ]
"""
TENSORS = f"""max_batch_size: 16
input {{ name: "x" data_type: TYPE_FP32 dims: {WIDTH} }}
output {{ name: "y" data_type: TYPE_FP32 dims: {WIDTH} }}
"""


def weights(model: str, version: int) -> Array:
    """`w` of a version: `y = x @ w`."""
    seed = zlib.crc32(f"{model}/{version}".encode())
    return np.random.default_rng(seed).standard_normal((WIDTH, WIDTH), dtype=np.float32)


def model_names() -> list[str]:
    """The models whose versions change."""
    return [f"m-{number:02d}" for number in range(MODELS)]


@dataclass
class Told:
    """What one client saw; `problems` are the first of each kind, in words."""

    client: str
    answers: int = 0
    wrong: int = 0
    failed: int = 0
    refused: int = 0
    seconds: list[float] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    asked: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Question:
    """One kind of request: how it is asked and whether its answer is right."""

    name: str
    ask: Callable[[Any, random.Random], tuple[Array, bool]]
    tensors: bool = True


def questions(expected: dict[str, Array]) -> tuple[Question, ...]:
    """Every kind of request; `expected` holds the embeddings of `TEXTS` by model."""
    known = {model: np.stack([weights(model, version + 1) for version in range(VERSIONS)]) for model in model_names()}

    def numbers(client: Any, dice: random.Random) -> tuple[Array, bool]:
        model = f"m-{min(MODELS - 1, int(dice.paretovariate(0.7)) - 1):02d}"
        return _one_of(client, model, dice, known[model])

    def split(client: Any, dice: random.Random) -> tuple[Array, bool]:
        return _one_of(client, "split", dice, np.concatenate([known["m-00"], known["m-01"]]))

    def deployed(client: Any, dice: random.Random) -> tuple[Array, bool]:
        return _one_of(client, "deployed", dice, np.stack([weights("deployed", 1), weights("deployed", 2)]))

    def python(client: Any, dice: random.Random) -> tuple[Array, bool]:
        x = _numbers(dice)
        y = client.compute("python", x)
        return y, np.array_equal(y, 3 * x)

    def embed(model: str) -> Callable[[Any, random.Random], tuple[Array, bool]]:
        def ask(client: Any, dice: random.Random) -> tuple[Array, bool]:
            chosen = [dice.randrange(len(TEXTS)) for _ in range(dice.randint(1, 3))]
            y = client.embed(model, [TEXTS[at] for at in chosen])
            right = expected[model][chosen]
            if model.endswith("int8"):
                return y, y.shape == right.shape and bool(((y * right).sum(axis=1) >= LEAST_COSINE).all())
            return y, y.shape == right.shape and np.allclose(y, right, atol=1e-4)

        return ask

    embedders = tuple(Question(model, embed(model), tensors=False) for model in expected)
    return (
        *(Question("models", numbers),) * 3,
        Question("endpoint", split),
        Question("deployment", deployed),
        Question("python", python),
        *embedders,
    )


def _numbers(dice: random.Random) -> Array:
    generator = np.random.default_rng(dice.getrandbits(32))
    return generator.standard_normal((dice.randint(1, 3), WIDTH), dtype=np.float32)


def _one_of(client: Any, model: str, dice: random.Random, known: Array) -> tuple[Array, bool]:
    """Whether the whole answer is that of one version that was ever published."""
    x = _numbers(dice)
    y = client.compute(model, x)
    return y, y.shape == x.shape and any(np.allclose(y, x @ w, rtol=1e-3, atol=1e-3) for w in known)


def ask_until(kind: type[Any], doors: Doors, expected: dict[str, Array], until: float, told: Any) -> None:
    """One client's process: threads that ask until the time is over; puts a `Told` into the queue `told`."""
    found = Told(kind.name)
    lock = threading.Lock()
    able = [one for one in questions(expected) if not one.tensors or hasattr(kind, "compute")]

    def work(seed: int) -> None:
        client, dice = kind(doors), random.Random(seed)
        while time.time() < until:
            _ask_one(client, dice, dice.choice(able), found, lock)
            time.sleep(PAUSE)
        client.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told.put(found)


def _ask_one(client: Any, dice: random.Random, question: Question, found: Told, lock: threading.Lock) -> None:
    start = time.perf_counter()
    problem, refused = "", False
    try:
        answer, right = question.ask(client, dice)
        problem = "" if right else f"wrong answer of {question.name}: {str(answer)[:100]}"
        wrong = not right
    except Exception as error:
        wrong, refused = False, client.refusal(error) == BUSY
        problem = f"{question.name}: {client.words(error)}: {error}"[:300]
    with lock:
        found.asked[question.name] += 1
        found.seconds.append(time.perf_counter() - start)
        found.answers += not problem
        found.wrong += wrong
        found.refused += refused
        found.failed += bool(problem) and not wrong and not refused
        if problem and len(found.problems) < 20:
            found.problems.append(f"{time.strftime('%H:%M:%S')} {problem}")


class Changes:
    """What is done to the server meanwhile, one after the other; `counts` by kind, `problems` in words."""

    def __init__(self, own: Any, settings: Any, pid: int, staged: Sequence[str]) -> None:
        from octavo.serving.repository import Repository

        self._own, self._settings, self._pid = own, settings, pid
        self._repository = Repository.open(settings.repository_url, settings)
        self._dice = random.Random(1)
        self._packages = itertools.cycle(staged)
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []
        self._kinds: tuple[Callable[[], str], ...] = (
            self._load, self._unload, self._pin, self._publish, self._roll_back, self._roll_forward, self._weights,
            self._deploy, self._kill, self._unload, self._load, self._kill,
        )  # fmt: skip

    def run(self, until: float) -> None:
        """Change something about every second."""
        for change in itertools.cycle(self._kinds):
            if time.time() >= until:
                return
            try:
                self.counts[change()] += 1
            except Exception as error:
                self.problems.append(f"{time.strftime('%H:%M:%S')} {change.__name__}: {error!r}"[:300])
            time.sleep(self._dice.uniform(0.5, 1.5))

    def _any(self) -> str:
        return self._dice.choice(model_names())

    def _load(self) -> str:
        self._own.load(self._any())
        return "load"

    def _unload(self) -> str:
        self._own.unload(self._dice.choice([*model_names(), "minilm", "python"]))
        return "unload"

    def _pin(self) -> str:
        model = self._any()
        self._own.pin(model)
        self._own.pin(model, False)
        return "pin and unpin"

    def _publish(self) -> str:
        model = self._any()
        version = len(self._repository.versions(model)) + 1
        if version > VERSIONS:
            return self._roll_back()
        publish(self._repository, model, version)
        return "publish"

    def _roll_back(self) -> str:
        model = self._dice.choice([name for name in model_names() if len(self._repository.versions(name)) > 1])
        self._repository.use_version(model, self._repository.versions(model)[0])
        return "roll back"

    def _roll_forward(self) -> str:
        self._repository.use_version(self._any(), "newest")
        return "roll forward"

    def _weights(self) -> str:
        share = self._dice.random()
        self._own.set_endpoint("split", split_between(share))
        return "weights of an endpoint"

    def _deploy(self) -> str:
        own = self._own
        if own.deploy("deployed", {"package": next(self._packages), "share": 0.3})["candidate"] is None:
            return "deploy of what is deployed"
        own.roll_out("deployed", 0.7)
        (own.promote if self._dice.random() < 0.5 else own.roll_back)("deployed")
        return "deploy, roll out, end"

    def _kill(self) -> str:
        workers = [
            child
            for child in psutil.Process(self._pid).children(recursive=True)
            if any("python_worker" in word for word in child.cmdline())
        ]
        if not workers:
            return "kill (nobody there)"
        os.kill(self._dice.choice(workers).pid, signal.SIGKILL)
        return "kill of a worker"


def split_between(share: float) -> dict[str, Any]:
    """An endpoint onto two models."""
    return {
        "variants": [
            {"name": "a", "model": "m-00", "weight": 1 - share},
            {"name": "b", "model": "m-01", "weight": share},
        ]
    }


def write_model(folder: Path, w: Array) -> Path:
    """A folder that can be published or deployed: `y = x @ w`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder.mkdir(parents=True)
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", WIDTH]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = helper.make_graph(nodes, "g", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "model.onnx")
    (folder / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{TENSORS}')
    return folder


def publish(repository: Any, model: str, version: int) -> None:
    """The next version of a model."""
    with tempfile.TemporaryDirectory() as scratch:
        repository.publish(model, write_model(Path(scratch, "made"), weights(model, version)))


def make_workspace(folder: Path) -> tuple[Path, list[str]]:
    """A workspace with all models, and the digests of the two packages that are deployed in turn."""
    from octavo.serving.packaging.artifact import open_artifact, stage
    from octavo.serving.repository import Repository
    from octavo.settings import load_settings

    base = octavo_workspace(CACHE / "workspace")
    workspace = folder / "workspace"
    publish_tenants(base, workspace, [("minilm", "minilm"), ("minilm-int8", "minilm-int8")])
    settings = load_settings(workspace)
    repository = Repository.open(settings.repository_url, settings)
    for name in model_names():
        publish(repository, name, 1)
    python = folder / "python"
    python.mkdir()
    (python / "model.py").write_text(PYTHON_MODEL)
    (python / "config.pbtxt").write_text(f'backend: "python"\ninstance_group {{ count: 2 }}\n{TENSORS}')
    repository.publish("python", python)
    staged = []
    for version in (1, 2):
        source = write_model(folder / f"deployed-{version}", weights("deployed", version))
        with open_artifact(str(source), settings, "deployed") as (_, files):
            staged.append(stage(files, settings))
    train_tenant(workspace, folder / "acme.csv")
    return workspace, staged


def train_tenant(workspace: Path, file: Path) -> None:
    """A customer's model on MiniLM, from some texts of two kinds."""
    rows = [(f"{verb} my {thing}", verb) for verb in ("cancel", "track") for thing in ("order", "parcel", "refund")]
    with file.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([("text", "category"), *rows])
    words = ["tenants", "train", "acme", "--base", "minilm", "--examples", str(file), "--workspace", str(workspace)]
    done = subprocess.run([*octavo_command(), *words], capture_output=True, text=True)
    if done.returncode:
        raise CannotRun(done.stderr.strip()[-500:])


def measure(seconds: float, report: Report) -> None:
    """Run it and fill the report."""
    from octavo.serving.client import Client
    from octavo.settings import load_settings

    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        workspace, staged = make_workspace(Path(folder))
        keys = aws_credentials(workspace)
        grpc = free_port()
        environment = {
            "OCTAVO_SERVING__GRPC_PORT": str(grpc),
            "OCTAVO_SERVING__ALLOW_CODE": "true",
            "OCTAVO_SERVING__MEMORY_BUDGET": str(BUDGET),
            "OCTAVO_SERVING__WATCH_SECONDS": "0.5",
        }
        with octavo_server(workspace, environment) as (server, port):
            doors = Doors(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc}", TOKEN, *keys)
            with Client(doors.url, token=TOKEN) as own:
                own.set_endpoint("split", split_between(0.5))
                own.deploy("deployed", {"package": staged[0]})
                expected = {
                    model: np.concatenate([own.embed([text], model=model) for text in TEXTS])
                    for model in ("minilm", "minilm-int8", "acme-embedding")
                }
                changes = Changes(own, load_settings(workspace), server.pid, staged)
                before = server.memory()
                told = _traffic(doors, expected, changes, seconds)
                _report(report, told, changes, own.residency()["counters"], seconds)
                report.extra["PSS MiB before and after"] = [before.pss // MIB, server.memory().pss // MIB]


def _traffic(doors: Doors, expected: dict[str, Array], changes: Changes, seconds: float) -> list[Told]:
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    until = time.time() + seconds
    processes = [context.Process(target=ask_until, args=(kind, doors, expected, until, queue)) for kind in CLIENTS]
    for process in processes:
        process.start()
    changes.run(until)
    told = [queue.get(timeout=90) for _ in processes]
    for process in processes:
        process.join()
    return told


def _report(report: Report, told: list[Told], changes: Changes, counters: dict[str, int], seconds: float) -> None:
    for one in sorted(told, key=lambda each: each.client):
        report.rows.append(
            {
                "client": one.client,
                "answers": one.answers,
                "wrong": one.wrong,
                "failed": one.failed,
                "refused by limit": one.refused,
                "p50 ms": 1e3 * percentile(one.seconds, 0.5),
                "p99 ms": 1e3 * percentile(one.seconds, 0.99),
            }
        )
    wrong, failed = sum(one.wrong for one in told), sum(one.failed for one in told)
    answers = sum(one.answers for one in told)
    report.notes.append(f"{seconds / 60:g} minutes; changes: {dict(changes.counts)}; residency: {counters}")
    report.extra |= {
        "changes": dict(changes.counts),
        "changes that were refused": changes.problems,
        "residency": counters,
        "problems": {one.client: one.problems for one in told if one.problems},
        "asked": dict(sum((one.asked for one in told), Counter())),
    }
    for one in told:
        report.notes += one.problems[:5]
    report.notes += changes.problems[:10]
    report.bar("all clients while everything changes: wrong answers", "0", f"{wrong} of {answers:,}", wrong == 0)
    report.bar("the same: failed requests, but those refused by limit", "0", f"{failed} of {answers:,}", failed == 0)


def main() -> None:
    """Read the arguments and run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    minutes = parser.parse_args().minutes
    if minutes <= 0:
        raise CannotRun("--minutes must be over 0")
    report = Report("mixed_traffic", "python benchmarks/serving/mixed_traffic.py")
    report.versions = own_versions("octavo", "boto3", "tritonclient", "openai", "grpcio", "onnxruntime")
    measure(60 * minutes, report)
    report.finish(write=minutes >= 10)


if __name__ == "__main__":
    run(main)
