"""Limits of `[serving]` and `[web]`: each of these fails when the setting is not heeded."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from octavo.errors import DeadlineExceeded
from octavo.jobs import Jobs
from octavo.serving import memory
from octavo.serving.inference import InferRequest
from octavo.serving.loading import batch_limits
from octavo.serving.memory import available_bytes
from octavo.serving.model_config import DynamicBatching, ModelConfig, QueuePolicy
from octavo.settings import ServingSettings, load_settings

from .conftest import Open
from .live import Up, octavo_up
from .served_models import BATCHED, put, times, weights
from .test_tensor_task import rows

MIB = 2**20


# Batches


@pytest.mark.parametrize(
    ("config", "settings", "limit", "value"),
    [
        (ModelConfig(), {"max_batch_rows": 7}, "max_rows", 7),
        (ModelConfig(max_batch_size=5), {"max_batch_rows": 7}, "max_rows", 5),
        (ModelConfig(), {"token_budget": 99}, "token_budget", 99),
        (ModelConfig(parameters={"token_budget": "33"}), {"token_budget": 99}, "token_budget", 33),
        (ModelConfig(), {"length_window": 0.5}, "length_window", 0.5),
        (ModelConfig(), {"length_window": 0.0}, "length_window", 0.0),
        (ModelConfig(), {"max_queue": 3}, "max_queue", 3),
        (ModelConfig(dynamic_batching=DynamicBatching()), {"max_queue": 3}, "max_queue", 3),
        (
            ModelConfig(dynamic_batching=DynamicBatching(default_queue_policy=QueuePolicy(max_queue_size=2))),
            {"max_queue": 3},
            "max_queue",
            2,
        ),
        (ModelConfig(dynamic_batching=DynamicBatching(max_queue_delay_us=250)), {}, "max_delay", 0.00025),
        (ModelConfig(dynamic_batching=DynamicBatching(preferred_batch_size=(4, 8))), {}, "preferred_rows", 8),
        (ModelConfig(), {}, "concurrency", 6),
    ],
)
def test_a_models_batches_are_limited_by_itself_else_by_the_settings(
    config: ModelConfig, settings: dict[str, float], limit: str, value: float
) -> None:
    assert getattr(batch_limits(config, ServingSettings(**settings), concurrency=6), limit) == value


# Memory and disk

OF_VERSION_2, OF_VERSION_1, NONE = "memory.max", "memory.limit_in_bytes", ""


@pytest.fixture
def cgroup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put this process in a cgroup that has these limits, by the name of their file, and no others."""
    folder = tmp_path / "cgroup"
    folder.mkdir()
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(folder / OF_VERSION_2), str(folder / OF_VERSION_1)))

    def limited(name: str, text: str) -> None:
        if name:
            (folder / name).write_text(text)

    return limited


@pytest.mark.parametrize("name", [OF_VERSION_2, OF_VERSION_1])
def test_the_cgroups_limit_is_the_memory_there_is(name: str, cgroup: Callable[..., None]) -> None:
    cgroup(name, f"{64 * MIB}\n")
    assert available_bytes() == 64 * MIB


@pytest.mark.parametrize(
    ("name", "text"),
    [(NONE, ""), (OF_VERSION_2, "max\n"), (OF_VERSION_2, ""), (OF_VERSION_1, "9223372036854771712\n")],
)
def test_a_cgroup_without_a_limit_leaves_the_machines_memory(name: str, text: str, cgroup: Callable[..., None]) -> None:
    cgroup(name, text)
    assert available_bytes() == pytest.approx(psutil.virtual_memory().total, rel=0.05)


async def test_the_budget_is_a_share_of_the_memory_there_is(
    tmp_path: Path, open_serving: Open, cgroup: Callable[..., None]
) -> None:
    cgroup(OF_VERSION_2, f"{4096 * MIB}\n")
    serving = await open_serving(tmp_path, memory_share=0.25)
    assert serving.residency().budget_bytes == 1024 * MIB
    serving = await open_serving(tmp_path, memory_share=0.25, memory_budget=100 * MIB)
    assert serving.residency().budget_bytes == 100 * MIB


async def test_the_cache_of_packed_models_is_no_larger_than_its_limit(tmp_path: Path, open_serving: Open) -> None:
    for seed, name in enumerate(("first", "second")):
        put(tmp_path / "models", name, weights(512, seed), BATCHED)  # 2 MiB packed
    serving = await open_serving(tmp_path, cache=str(tmp_path / "cache"), cache_limit=3 * MIB)
    for name in ("first", "second"):
        await serving.load(name)
    held = sum(file.stat().st_size for file in (tmp_path / "cache").rglob("*") if file.is_file())
    assert MIB < held <= 3 * MIB


# Time


async def test_a_request_that_names_no_deadline_has_the_default_one(tmp_path: Path, open_serving: Open) -> None:
    gate = tmp_path / "gate"
    put_gate(tmp_path / "models", "held", gate)
    serving = await open_serving(tmp_path, allow_code=True, python_memory=0, default_deadline=0.2)
    await serving.load("held")
    patient = InferRequest("held", {"x": rows(7)}, deadline=time.monotonic() + 60)
    asked = asyncio.create_task(serving.infer(patient))
    with pytest.raises(DeadlineExceeded):
        await serving.infer(InferRequest("held", {"x": rows(1)}))
    assert not asked.done()
    gate.touch()
    assert (await asked).outputs["y"][0, 0] == 7


# Over HTTP

HOURS = 0.001
LIMITS = f"""
[web]
keep_alive = 1
session_hours = {HOURS}
allowed_hosts = ["octavo.example.org"]

[serving]
allow_code = true
python_memory = 0
max_queue = 1
max_pending = 2
"""

GATE = """
import os, time
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    def execute(self, requests):
        while not os.path.exists({gate!r}):
            time.sleep(0.01)
        inputs = [pb_utils.get_input_tensor_by_name(request, "x").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("y", x)]) for x in inputs]
"""

GATE_CONFIG = """
backend: "python"
max_batch_size: 1
input { name: "x" data_type: TYPE_FP32 dims: 4 }
output { name: "y" data_type: TYPE_FP32 dims: 4 }
"""


def put_gate(models: Path, name: str, gate: Path) -> None:
    """A model whose requests wait until the file `gate` is there."""
    put(models, name, None, GATE_CONFIG)
    (models / name / "1/model.py").write_text(GATE.format(gate=str(gate)))


@pytest.fixture(scope="module")
def limited_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """`octavo up` with limits that a test can reach."""
    workspace = tmp_path_factory.mktemp("limits") / "workspace"
    put(workspace / "models", "double", times(2), BATCHED)
    for name in ("held", "held-too"):
        put_gate(workspace / "models", name, workspace / "gate")
    (workspace / "octavo.toml").write_text(LIMITS)
    with octavo_up(workspace) as server:
        yield server


def connect(server: Up, **headers: str) -> httpx.Client:
    """A client that opens a connection for each request."""
    once = httpx.Limits(max_keepalive_connections=0)
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60, limits=once)


@pytest.fixture
def http(limited_server: Up) -> Iterator[httpx.Client]:
    """A client of the admin's."""
    with connect(limited_server, authorization=f"Bearer {limited_server.token}") as client:
        yield client


def until(holds: Callable[[], object]) -> None:
    """Wait until something becomes so; the test's own time-out ends what never does."""
    while not holds():
        time.sleep(0.02)


def test_requests_that_wait_are_limited_by_model_and_over_all(http: httpx.Client, limited_server: Up) -> None:
    def ask(model: str) -> httpx.Response:
        x = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        return http.post(f"/v2/models/{model}/infer", json={"inputs": [x]})

    def pending() -> int:
        return int(http.get("/api/serving/residency").json()["pending"])

    def check_refused(answer: httpx.Response, status: int, setting: str) -> None:
        assert answer.status_code == status, answer.text
        assert int(answer.headers["retry-after"]) >= 1
        assert setting in answer.json()["error"]

    for model in ("held", "held-too", "double"):
        assert http.post(f"/v2/repository/models/{model}/load").status_code == 200
    with ThreadPoolExecutor(2) as pool:
        try:
            held = [pool.submit(ask, "held")]
            until(lambda: pending() == 1)
            check_refused(ask("held"), 429, "serving.max_queue")
            assert ask("double").status_code == 200
            held.append(pool.submit(ask, "held-too"))
            until(lambda: pending() == 2)
            check_refused(ask("double"), 503, "serving.max_pending")
        finally:
            (limited_server.workspace / "gate").touch()
        assert [request.result().status_code for request in held] == [200, 200]
    assert ask("double").status_code == 200


def test_an_idle_connection_is_closed(limited_server: Up) -> None:
    url = httpx.URL(limited_server.url)
    with socket.create_connection((url.host, url.port), timeout=10) as wire:  # the default would keep it for 20 s
        for _ in range(2):
            wire.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
            said = b""
            while not said.endswith(b'{"status":"live"}'):
                said += (piece := wire.recv(2**16))
                assert piece, said
        assert wire.recv(2**16) == b""


def test_a_session_ends(limited_server: Up) -> None:
    with connect(limited_server) as browser:
        signed_in = browser.post("/login", data={"token": limited_server.token})
    cookie, *attributes = signed_in.headers["set-cookie"].split("; ")
    assert f"max-age={int(HOURS * 3600)}" in map(str.lower, attributes)
    with connect(limited_server, cookie=cookie) as stubborn:
        assert stubborn.get("/api/status").status_code == 200
        until(lambda: stubborn.get("/api/status").status_code == 401)


@pytest.mark.parametrize(
    ("host", "status"),
    [("octavo.example.org", 200), ("octavo.example.org:443", 200), ("localhost", 200), ("other.example.org", 421)],
)
def test_only_the_hosts_allowed_are_answered(http: httpx.Client, host: str, status: int) -> None:
    assert http.get("/api/status", headers={"host": host}).status_code == status


def test_workers_of_such_a_server_do_their_jobs(tmp_path: Path) -> None:
    jobs = Jobs.open(
        load_settings(tmp_path, web={"allowed_hosts": ("octavo.example.org",)}), modules=["octavo.serving.work"]
    )
    jobs.supervise()
    supervisor = jobs.supervisor
    assert supervisor is not None
    try:
        identity = jobs.submit("models.verify")
        until(lambda: jobs.get(identity).ended or supervisor.problem)
        assert jobs.get(identity).state == "succeeded", supervisor.problem
    finally:
        jobs.close()
