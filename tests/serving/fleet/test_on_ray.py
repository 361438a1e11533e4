"""Fleets on a real Ray cluster of two nodes, both on this machine."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from octavo.errors import Invalid, MissingExtra, Unavailable
from octavo.serving.client import Client
from octavo.serving.fleet import address
from octavo.serving.fleet.scaling import Tracker
from octavo.serving.fleet.service import FleetServing
from octavo.serving.inference import InferRequest
from octavo.settings import Settings, load_settings

from ..live import octavo, octavo_up
from ..served_models import BATCHED, publish_tiny_models, put, times

X = np.array([[1, 2, 3, 4]], dtype=np.float32)
STORE = 80 * 2**20
MODELS = 20

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'octavo[ray]'")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without a CPU, and two nodes of one CPU each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # listens on 127.0.0.1 only
        from ray.cluster_utils import Cluster

        given = {"object_store_memory": STORE, "include_dashboard": False}
        found = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **given})
        try:
            for _ in range(2):
                found.add_node(num_cpus=1, object_store_memory=STORE)
            yield found
        finally:
            found.shutdown()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fleet") / "workspace"
    publish_tiny_models(folder / "models")
    for number in range(MODELS):
        put(folder / "models", f"m{number}", times(number), BATCHED)
    return folder


def settings(workspace: Path, cluster: Any, session_folder: Path, **fleet: object) -> Settings:
    given = {"ray": cluster.address, "min_replicas": 2, "report_seconds": 0.2, "lost_seconds": 5} | fleet
    return load_settings(
        workspace, serving={"cache": str(session_folder / "cache"), "memory_budget": 2**29}, fleet=given
    )


@pytest.fixture
async def fleet(workspace: Path, cluster: Any, session_folder: Path) -> AsyncIterator[FleetServing]:
    """A fleet with a replica on each node."""
    serving = await FleetServing.open(settings(workspace, cluster, session_folder))
    try:
        await until(lambda: len(serving.fleet.replicas.ready) == 2)
        yield serving
    finally:
        await serving.close()


async def until(true: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


async def zipf_traffic(serving: FleetServing, requests: int, clients: int, at: dict[int, Callable[[], None]]) -> None:
    """Checks every answer; `at` is what to do when so many were answered."""
    rng = np.random.default_rng(3)
    weights = 1 / np.arange(1, MODELS + 1)
    numbers = iter(rng.choice(MODELS, requests, p=weights / weights.sum()).tolist())
    answered = 0

    async def client() -> None:
        nonlocal answered
        for number in numbers:
            answer = await serving.infer(InferRequest(f"m{number}", {"x": X}))
            assert answer.outputs["y"].tolist() == (X * number).tolist()
            answered += 1
            if answered in at:
                at[answered]()

    await asyncio.gather(*(client() for _ in range(clients)))
    assert answered == requests


@with_ray
async def test_two_nodes_answer_as_one_server_and_a_lost_node_fails_nothing(fleet: FleetServing, cluster: Any) -> None:
    nodes = {member.node for member in fleet.fleet.replicas.ready}
    assert len(nodes) == 2
    texts = np.array([[b"a" * 200_000], ["é".encode()]], dtype=object)
    answer = await fleet.infer(InferRequest("words", {"text": texts}, id="big"))
    assert answer.outputs["same"].tolist() == texts.tolist(), "also what is too large to travel in a message"
    await zipf_traffic(fleet, 600, 6, {})
    routed = fleet.fleet.routed
    assert routed.requests == 601
    assert routed.hit_ratio is not None
    assert routed.hit_ratio >= 0.9
    assert all(member.answered > 100 for member in fleet.fleet.replicas.ready)

    victim = next(iter(cluster.worker_nodes))
    await zipf_traffic(fleet, 600, 6, {200: lambda: cluster.remove_node(victim, allow_graceful=False)})
    await until(lambda: fleet.fleet.replicas.lost == 1)
    assert len(fleet.fleet.replicas.ready) == 1, "no place for another"
    cluster.add_node(num_cpus=1, object_store_memory=STORE)
    await until(lambda: len(fleet.fleet.replicas.ready) == 2)
    await zipf_traffic(fleet, 100, 4, {})


@with_ray
async def test_scaling_launches_and_drains_replicas(workspace: Path, cluster: Any, session_folder: Path) -> None:
    limits = {"min_replicas": 1, "max_replicas": 2, "invocations_per_replica": 10}
    serving = await FleetServing.open(settings(workspace, cluster, session_folder, **limits))
    try:
        replicas, now = serving.fleet.replicas, [0.0]
        replicas.tracker = Tracker(replicas.tracker.policy, lambda: now[0], time.time)
        for minute in range(1, 4):
            await zipf_traffic(serving, 15, 3, {})
            now[0] += 60
            await until(lambda minute=minute: len(replicas.tracker.readings) == minute)
        await until(lambda: len(replicas.ready) == 2)
        going = next(member for member in replicas.members if member.id == "r2")

        async def idle() -> None:
            while replicas.tracker.capacity == 2:
                now[0] += 60
                await asyncio.sleep(0.25)
            await until(lambda: going not in replicas.members)

        await idle()
        await zipf_traffic(serving, 30, 3, {})
        assert [one.capacity for one in replicas.tracker.decisions] == [2, 1]
        assert (replicas.lost, serving.fleet.routed.resent, len(replicas.ready)) == (0, 0, 1)
    finally:
        await serving.close()


@with_ray
def test_octavo_up_answers_from_the_cluster(workspace: Path, cluster: Any, session_folder: Path) -> None:
    environment = {"OCTAVO_SERVING__CACHE": str(session_folder / "cache"), "OCTAVO_FLEET__MIN_REPLICAS": "2"}
    with octavo_up(workspace, "--ray", cluster.address, **environment) as server:
        client = Client(server.url, token=server.token)
        assert client.infer("double", {"x": X})["y"].tolist() == (X * 2).tolist()
        told = octavo("autoscaling", "status", "--json", "--workspace", str(workspace))
        assert '"hit_ratio": 0.0' in told.stdout, told.stderr
        assert "double/1" in told.stdout
        assert "r1" in octavo("autoscaling", "status", "--workspace", str(workspace)).stdout
    assert "Traceback" not in (workspace / "stderr").read_text()


@with_ray
def test_a_cluster_of_its_own_is_for_this_machine_alone_and_ends_with_the_server(
    tiny_repository: Path, session_folder: Path
) -> None:
    environment = {"OCTAVO_SERVING__CACHE": str(session_folder / "cache"), "OCTAVO_FLEET__OBJECT_STORE": str(STORE)}
    with octavo_up(tiny_repository, "--ray", "local", **environment) as server:
        assert Client(server.url, token=server.token).infer("double", {"x": X})["y"].tolist() == (X * 2).tolist()
        processes = [psutil.Process(server.pid), *psutil.Process(server.pid).children(recursive=True)]
        listening = [
            one.laddr.ip
            for process in processes
            for one in process.net_connections("inet")
            if one.status == psutil.CONN_LISTEN
        ]
        assert len(listening) > 4
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    _, alive = psutil.wait_procs(processes, timeout=20)
    assert not alive


@with_ray
async def test_no_cluster_there(workspace: Path, session_folder: Path) -> None:
    os.environ.pop("RAY_ADDRESS", None)
    with pytest.raises(Unavailable, match="no Ray cluster"):
        await FleetServing.open(load_settings(workspace, fleet={"ray": "127.0.0.1:1"}))


@pytest.mark.parametrize("given", ["nowhere", "ray://head:10001", "head:port", ":6379", "[::1]:x"])
def test_a_wrong_address_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda _: object())
    with pytest.raises(Invalid, match="not an address"):
        address.check_address(given)


def test_without_ray_the_command_that_adds_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match=r"pip install 'octavo\[ray\]'"):
        address.check_address("local")
