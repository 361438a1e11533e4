"""Many at once: herds, swaps, evictions and ten thousand connections."""

from __future__ import annotations

import json
import resource
import shutil
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from .live_server import LiveServer, check_refused, publish, values, wait_for
from .raw_http import read_answer
from .small_models import write_heavy, write_python, write_too_big

CONNECTIONS = 10_000
FEW = 12
PER_CONNECTION = 16 * 2**10
SILENCE_ALLOWED = 12.0
BUDGET = 100 * 2**20
HEAVY = 60 * 2**20


def test_a_herd_on_a_cold_model_is_one_load(server: LiveServer) -> None:
    if "herd" in server.resident():
        server.client.post("/v2/repository/models/herd/unload").raise_for_status()
    before = server.loads("herd")
    start = threading.Barrier(50)

    def ask(row: int) -> httpx.Response:
        start.wait()
        return server.infer("herd", [[row, row, row, row]])

    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(ask, range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert server.loads("herd") - before == 1
    first = values(answers[0])
    for row, answer in enumerate(answers):
        assert values(answer) != first or row == 0
    statistics = server.statistics("herd")
    assert statistics["inference_stats"]["fail"]["count"] == 0
    wait_for("its packed form", lambda: server.resident()["herd"]["tier"] == "full")
    assert "no packed form" not in server.log()


def test_a_new_version_under_load_loses_no_request(server: LiveServer, tmp_path: Path) -> None:
    """Answers go from the old version's to the new one's once, and none is a mix of both."""
    publish(server, "swapped", 1, tmp_path)
    wait_for("version 1", lambda: server.infer("swapped", [[0] * 4]).status_code == 200)
    done = threading.Event()

    def ask() -> list[str]:
        seen = []
        last = False
        while not last:
            last = done.is_set()  # then once more
            answer = server.infer("swapped", [[10] * 4] * 3)
            assert answer.status_code == 200, answer.text
            version = answer.json()["model_version"]
            assert values(answer) == [10 + {"1": 1, "2": 2, "3": 3}[version]] * 12
            seen.append(version)
        return seen

    with ThreadPoolExecutor(4) as pool:
        loops = [pool.submit(ask) for _ in range(4)]
        try:
            for number in (2, 3):
                assert publish(server, "swapped", number, tmp_path) == str(number)
                wait_for("the swap", lambda: server.infer("swapped", [[0] * 4]).json()["model_version"] == str(number))  # noqa: B023
        finally:
            done.set()
        seen = [loop.result() for loop in loops]
    for versions in seen:
        assert versions == sorted(versions)
        assert versions[-1] == "3"
    assert server.client.post("/api/serving/models/swapped/roll-back").json()["version"] == "2"
    assert values(wait_for("version 2", lambda: _of_version(server.infer("swapped", [[0] * 4]), "2"))) == [2] * 4


def _of_version(answer: httpx.Response, version: str) -> httpx.Response | None:
    return answer if answer.json().get("model_version") == version else None


@pytest.fixture(scope="module")
def narrow_server(start_server: Callable[..., LiveServer], tmp_path_factory: pytest.TempPathFactory) -> LiveServer:
    """A server with room for one heavy model and for few connections."""
    serving = f"memory_budget = {BUDGET}\nwatch_seconds = 0.2\nallow_code = true\npython_memory = 0\n"
    settings = f"[web]\nmax_connections = {FEW}\n\n[serving]\n{serving}"
    source = tmp_path_factory.mktemp("heavy")
    write_python(source / "ballast", mebibytes=HEAVY // 2**20)
    for seed in range(3):
        write_heavy(source / f"heavy{seed}", HEAVY // 2**20, seed)
    write_too_big(source / "too_big", 300)
    server = start_server("narrow", settings)
    for folder in source.iterdir():
        shutil.move(folder, server.models / folder.name)
    wait_for("the models", lambda: {("heavy2", "1"), ("ballast", "1"), ("too_big", "1")} <= server.states().keys())
    return server


def test_a_model_larger_than_the_budget_is_refused_and_evicts_nobody(narrow_server: LiveServer) -> None:
    server = narrow_server
    server.check_alive()
    assert server.infer("heavy0", [[1, 2, 3, 4]]).status_code == 200
    before = server.get("/api/serving/residency")
    for _ in range(3):
        sentence = check_refused(server.infer("too_big", [[1, 2, 3, 4]]), 507)
        assert "budget" in sentence
    check_refused(server.client.post("/v2/repository/models/too_big/load"), 507)
    check_refused(server.client.post("/api/serving/models/too_big/pin"), 507)
    check_refused(server.embed("hello", "too_big"), 507)
    after = server.get("/api/serving/residency")
    assert after["counters"]["evictions"] == before["counters"]["evictions"]
    assert {"adder", "heavy0"} <= server.resident().keys()
    server.check_alive()


def test_models_take_turns_in_a_budget_for_one(narrow_server: LiveServer) -> None:
    server = narrow_server
    before = server.get("/api/serving/residency")["counters"]["evictions"]
    for number in (0, 1, 2, 0, 1, 2):
        assert server.infer(f"heavy{number}", [[1, 2, 3, 4]]).status_code == 200
    after = server.get("/api/serving/residency")
    assert after["counters"]["evictions"] - before >= 3, after
    wait_for("memory within the budget", lambda: _charged(server) <= BUDGET)
    server.check_alive()


def test_eviction_waits_for_what_is_in_flight(narrow_server: LiveServer) -> None:
    server = narrow_server
    for name in server.resident():
        if name.startswith("heavy"):
            server.client.post(f"/v2/repository/models/{name}/unload").raise_for_status()
    pid = values(server.infer("ballast", [[200]]))[0]
    wait_for("its memory to be measured", lambda: server.resident()["ballast"]["bytes"] > HEAVY)
    order: list[str] = []

    def ask(model: str, row: list[float]) -> httpx.Response:
        answer = server.infer(model, [row])
        order.append(model)
        return answer

    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(ask, "ballast", [2.0])
        wait_for("the request in flight", lambda: server.resident()["ballast"]["in_flight"])
        heavy = pool.submit(ask, "heavy0", [1, 2, 3, 4])
        assert slow.result().status_code == 200
        assert values(slow.result())[0] == pid
        assert heavy.result().status_code == 200
    assert order == ["ballast", "heavy0"], server.get("/api/serving/residency")
    assert "ballast" not in server.resident()
    server.check_alive()


@pytest.fixture
def many_files() -> None:
    """Enough open files for this process and, by inheritance, for the server."""
    wanted = CONNECTIONS + 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"the system allows {hard} open files, {wanted} are needed")
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def test_ten_thousand_connections(many_files: None, plain_server: LiveServer) -> None:
    """Idle clients and one that drips its headers: others are answered meanwhile, then they are let go."""
    server = plain_server
    server.check_alive()
    before, idle_files = server.memory(), _open_files(server)
    with ExitStack() as stack:
        drip = stack.enter_context(server.connect())
        drip.sendall(b"GET /v2 HTTP/1.1\r\nhost: 127.0.0.1\r\nx-slow: ")
        begun = time.monotonic()
        for _ in range(CONNECTIONS):
            stack.enter_context(server.connect())
        while _open_files(server) - idle_files < CONNECTIONS:
            if time.monotonic() - begun > SILENCE_ALLOWED:
                pytest.skip("this machine opens connections too slowly for all to be open at once")
            time.sleep(0.05)
        server.check_alive()
        assert server.memory() - before < CONNECTIONS * PER_CONNECTION
        drip.settimeout(0.5)
        answer = b""
        while not answer and time.monotonic() - begun < 60:
            try:
                drip.sendall(b"a")
                answer = drip.recv(4096)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")
        wait_for("the server to let them go", lambda: _open_files(server) - idle_files < 100)
    server.check_alive()


def test_connections_over_the_limit_get_503(narrow_server: LiveServer) -> None:
    server = narrow_server
    held: list[socket.socket] = []
    try:
        while len(held) < 2 * FEW:
            held.append(server.connect())
        held[-1].sendall(b"GET /v2/health/live HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        status, headers, body = read_answer(held[-1])
        assert status == 503
        assert headers["retry-after"] == "1"
        assert json.loads(body)["detail"] == "too many connections"
    finally:
        for wire in held:
            wire.close()
    wait_for("room", lambda: server.client.get("/v2/health/ready").status_code == 200)
    server.check_alive()


def _charged(server: LiveServer) -> int:
    charged: int = server.get("/api/serving/residency")["charged_bytes"]
    return charged


def _open_files(server: LiveServer) -> int:
    return sum(1 for _ in Path(f"/proc/{server.process.pid}/fd").iterdir())
