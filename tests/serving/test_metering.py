"""Metering: who is charged for what, the hours, usage while the database is away, and the live server's doors."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from octavo.errors import Forbidden, Unavailable
from octavo.serving.client import Client
from octavo.serving.costs.meter import Meter
from octavo.serving.costs.recording import Recording
from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import HOUR, Capacity, Usage, UsageKey
from octavo.serving.inference import InferRequest
from octavo.serving.resident import Resident
from octavo.settings import load_settings
from octavo.storage import Database

from .conftest import Open
from .live import Up, octavo, octavo_up
from .served_models import BATCHED, CHAIN, publish_tiny_models, put, times
from .test_tensor_task import rows

MIB = 2**20
MODEL = ("m", "1")


class House:
    """A meter with a clock of its own, 100 MiB on 2 cores, and models that hold what is said."""

    def __init__(self) -> None:
        self.now = 10 * HOUR
        self.held: dict[str, int] = {}
        self.meter = Meter(100 * MIB, 2, lambda: self.held, self.held.__getitem__, lambda: self.now, lambda: self.now)

    def arrive(self, asked_by: str | None, held: int = 10, runner: object = None) -> Resident:
        version: Any = SimpleNamespace(name="m", version="1", key="m/1")
        resident = Resident(version, asked_by, model=SimpleNamespace(slot=SimpleNamespace(runner=runner)))  # type: ignore[arg-type]
        self.held["m/1"] = held * MIB
        self.meter.arrived(resident)
        return resident

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.meter.sample()

    def used(self) -> dict[str, Usage]:
        return {caller: amounts for (_, _, _, caller), amounts in self.meter.take()[0].items()}


def test_memory_is_charged_to_those_who_asked_last() -> None:
    house = House()
    house.arrive("ada")
    for _ in range(3):
        house.meter.answered((*MODEL, "ada"), failed=False)
    house.meter.answered((*MODEL, "bob"), failed=True)
    house.wait(8)
    found = house.used()
    assert found["ada"] == Usage(3, 0, 1, 0.0, 60 * MIB)
    assert found["bob"] == Usage(1, 1, 0, 0.0, 20 * MIB)
    house.meter.answered((*MODEL, "bob"), failed=False)
    house.wait(1)
    assert house.used()["bob"].byte_seconds == 10 * MIB
    house.wait(1)
    assert set(house.used()) == {"bob"}, "while nobody asks, those pay who asked last"


def test_what_nobody_asked_for_is_the_houses() -> None:
    house = House()
    house.arrive(None)
    house.wait(2)
    assert house.used() == {"": Usage(byte_seconds=20 * MIB)}
    house.arrive("")  # a request in nobody's name is a cold start all the same
    assert house.used()[""].cold_starts == 1


def test_a_model_that_leaves_is_charged_to_its_end() -> None:
    house = House()
    resident = house.arrive("ada")
    house.now += 3
    house.meter.left(resident)
    house.meter.left(resident)
    house.wait(5)
    assert house.used()["ada"].byte_seconds == 30 * MIB


def test_loading_is_charged_to_whom_the_model_was_loaded_for_and_its_second_form_too() -> None:
    house = House()
    resident = house.arrive("ada")
    resident.load_cpu = 0.5
    house.meter.answered((*MODEL, "bob"), failed=False)
    house.wait(1)
    resident.load_cpu += 0.25
    house.wait(1)
    found = house.used()
    assert found["ada"].cpu_seconds == 0.75
    assert found["bob"].cpu_seconds == 0


def test_a_worker_process_is_charged_to_those_who_asked() -> None:
    clock = SimpleNamespace(cpu_seconds=lambda: clock.used, used=0.0)
    house = House()
    house.arrive("ada", runner=clock)
    house.meter.answered((*MODEL, "ada"), failed=False)
    house.meter.answered((*MODEL, "bob"), failed=False)
    clock.used = 3.0
    house.wait(1)
    clock.used = 4.0
    house.wait(1)
    assert {caller: amounts.cpu_seconds for caller, amounts in house.used().items()} == {"ada": 2.0, "bob": 2.0}


def test_hours_are_kept_apart() -> None:
    house = House()
    house.arrive("ada")
    house.wait(HOUR - 1)
    house.meter.answered((*MODEL, "ada"), failed=False)
    house.wait(1)
    house.wait(9)
    usage, capacity = house.meter.take()
    assert {key[0]: amounts.requests for key, amounts in usage.items()} == {10: 1, 11: 0}
    assert {key[0]: amounts.byte_seconds / MIB for key, amounts in usage.items()} == {10: 36000, 11: 90}
    assert capacity == {
        10: Capacity(HOUR, 100 * MIB * HOUR, 2 * HOUR),
        11: Capacity(9, 900 * MIB, 18),
    }


class Away:
    """A table whose database is away until `back`."""

    def __init__(self) -> None:
        self.back = False
        self.rows: list[tuple[dict[UsageKey, Usage], dict[int, Capacity]]] = []

    def add(self, usage: dict[UsageKey, Usage], capacity: dict[int, Capacity]) -> None:
        if not self.back:
            raise Unavailable("the database is away", "here")
        self.rows.append((usage, capacity))

    def forget(self, _before: object) -> None:
        raise Unavailable("the database is away", "here")


async def test_nothing_is_lost_while_the_database_is_away() -> None:
    house, table = House(), Away()
    recording = Recording(house.meter, table, 1000.0, 1)  # type: ignore[arg-type]
    for _ in range(3):
        house.meter.answered((*MODEL, "ada"), failed=False)
        house.now += 1
        await recording.flush()
    table.back = True
    await recording.flush()
    ((usage, capacity),) = table.rows
    assert usage[10, "m", "1", "ada"].requests == 3
    assert capacity[10].seconds == 3


async def test_nothing_is_lost_when_whoever_asks_for_the_costs_leaves() -> None:
    house, entered, go_on = House(), threading.Event(), threading.Event()

    class Slow(Away):
        def add(self, usage: dict[UsageKey, Usage], capacity: dict[int, Capacity]) -> None:
            entered.set()
            go_on.wait()
            super().add(usage, capacity)

    table = Slow()
    recording = Recording(house.meter, table, 1000.0, 1)  # type: ignore[arg-type]
    house.meter.answered((*MODEL, "ada"), failed=False)
    asking = asyncio.create_task(recording.flush())
    await asyncio.to_thread(entered.wait)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    go_on.set()  # and the write fails
    await recording.flush()
    table.back = True
    await recording.flush()
    assert [amounts.requests for usage, _ in table.rows for amounts in usage.values()] == [1]


async def test_usage_without_a_database_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.serving.costs.recording.MOST_KEPT", 2)
    house, table = House(), Away()
    recording = Recording(house.meter, table, 1000.0, 1)  # type: ignore[arg-type]
    for hour in range(4):
        house.now = (20 + hour) * HOUR
        house.meter.sample()
        house.meter.answered((*MODEL, "ada"), failed=False)
        await recording.flush()
    table.back = True
    await recording.flush()
    assert sorted(key[0] for key in table.rows[0][0]) == [22, 23]


async def test_a_recording_writes_while_it_runs_and_at_its_end() -> None:
    house, table = House(), Away()
    table.back = True
    recording = Recording(house.meter, table, 0.01, 1)  # type: ignore[arg-type]
    recording.start()
    house.meter.answered((*MODEL, "ada"), failed=False)
    while not any(usage for usage, _ in table.rows):
        await asyncio.sleep(0.01)
    house.meter.answered((*MODEL, "bob"), failed=False)
    await recording.close()
    assert {key[3] for usage, _ in table.rows for key in usage} == {"ada", "bob"}


def lines_of(report: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(line["tenant"], line["model"]): line for line in report["lines"]}


async def test_an_ensembles_steps_are_charged_to_its_caller(open_serving: Open, tmp_path: Path) -> None:
    publish_tiny_models(tmp_path / "models")
    put(tmp_path / "models", "chain", None, CHAIN)
    serving = await open_serving(tmp_path)
    for _ in range(4):
        await serving.infer(InferRequest("chain", {"a": rows(1)}, caller="ada"))
    await serving.infer(InferRequest("double", {"x": rows(1)}, caller="bob"))
    found = lines_of((await serving.costs({"since": "1h"})).plain())
    assert {pair: line["requests"] for pair, line in found.items()} == {
        ("ada", "chain"): 4,
        ("ada", "double"): 4,
        ("ada", "triple"): 4,
        ("bob", "double"): 1,
    }
    assert found["ada", "double"]["cold_starts"] == 1
    assert found["ada", "double"]["cpu_seconds"] > 0
    assert found["ada", "chain"]["cpu_seconds"] == 0


async def test_a_shadows_copies_are_the_houses(open_serving: Open, tmp_path: Path) -> None:
    from octavo.serving.endpoint import Endpoint, Variant

    for name, factor in (("one", 1), ("two", 2)):
        put(tmp_path / "models", name, times(factor), BATCHED)
    serving = await open_serving(tmp_path)
    shadow = Variant(name="s", model="two", shadow=True)
    await serving.endpoints.put(Endpoint(name="front", variants=(Variant(name="a", model="one"), shadow)))
    await serving.infer(InferRequest("front", {"x": rows(1)}, caller="ada"))
    while not any(one.compared for one in serving.traffic.statistics("front")):
        await asyncio.sleep(0.01)
    found = lines_of((await serving.costs({})).plain())
    assert {pair: line["requests"] for pair, line in found.items()} == {("ada", "one"): 1, ("", "two"): 1}


def run(live: Up, *words: str) -> Any:
    done = octavo("costs", *words, "--workspace", str(live.workspace))
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_doors_of_the_costs(live_server: Up, tmp_path: Path) -> None:
    with Client(live_server.url, token=live_server.token) as client:
        client.embed(["hello", "there"], model="minilm")
        client.infer("chain", {"a": rows(1)})
        report = client.costs(since="1h", price="2", instance_price="1")
    found = lines_of(report)
    assert found["admin", "minilm"]["cpu_seconds"] > 0
    assert found["admin", "double"]["requests"] >= 1
    assert sum(line["money"] for line in report["lines"]) + report["idle"] == pytest.approx(report["bill"])
    file = tmp_path / "costs.csv"
    told = run(live_server, "--since", "1h", "--csv", str(file))
    assert f"and {len(file.read_text().splitlines()) - 1} of amounts written" in told
    assert file.read_text().startswith("tenant,model,requests")
    by_tenant = json.loads(run(live_server, "--by", "tenant", "--json"))
    assert [line["model"] for line in by_tenant["lines"]] == [""] * len(by_tenant["lines"])
    assert "saved" in run(live_server, "--by", "model")
    headers = {"authorization": f"Bearer {live_server.token}"}
    answer = httpx.get(f"{live_server.url}/api/serving/costs?format=csv", headers=headers)
    assert answer.headers["content-type"].startswith("text/csv")
    for wrong in ("since=never", "format=pdf", "colour=red", "price=-3"):
        assert httpx.get(f"{live_server.url}/api/serving/costs?{wrong}", headers=headers).status_code == 400
    assert httpx.get(f"{live_server.url}/api/serving/costs").status_code == 401
    slip = octavo("costs", "--since", "never", "--workspace", str(live_server.workspace))
    assert (slip.returncode, "Traceback" in slip.stderr) == (2, False)


def test_every_protocol_names_its_caller(live_server: Up) -> None:
    import tritonclient.grpc as triton

    def counted() -> dict[tuple[str, str], int]:
        with Client(live_server.url, token=live_server.token) as client:
            return {pair: line["requests"] for pair, line in lines_of(client.costs()).items()}

    before = counted()
    headers = {"authorization": f"Bearer {live_server.token}"}
    with httpx.Client(base_url=live_server.url, headers=headers, timeout=60) as http:
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}
        for path, body in (
            ("/v2/models/triple/infer", {"inputs": [tensor]}),
            ("/endpoints/triple/invocations", {"instances": [[1, 1, 1, 1]]}),
            ("/models/triple/invoke", {"instances": [[1, 1, 1, 1]]}),
            ("/v1/embeddings", {"model": "minilm", "input": "hello"}),
        ):
            assert http.post(path, json=body).status_code == 200, path
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(rows(1))
    with triton.InferenceServerClient(live_server.grpc) as client:
        client.infer("triple", [given], headers=headers)
        answers: queue.Queue[Any] = queue.Queue()
        client.start_stream(lambda result, error: answers.put((result, error)), headers=headers)
        client.async_stream_infer("triple", [given])
        assert answers.get(timeout=60)[1] is None
        client.stop_stream()
    after = counted()
    grown = {pair: count - before.get(pair, 0) for pair, count in after.items() if count != before.get(pair)}
    assert grown == {("admin", "triple"): 5, ("admin", "minilm"): 1}


async def test_who_is_no_admin_sees_only_its_own(open_serving: Open, tmp_path: Path) -> None:
    from octavo.access import ANONYMOUS, Grant, Principal
    from octavo.errors import Unauthenticated
    from octavo.serving.protocols.cost_api import costs
    from octavo.serving.protocols.exchange import Call, Door

    put(tmp_path / "models", "one", times(1), BATCHED)
    serving = await open_serving(tmp_path)
    for caller in ("ada", "bob"):
        await serving.infer(InferRequest("one", {"x": rows(1)}, caller=caller))
    door = Door(serving, load_settings(tmp_path))

    async def seen(principal: Principal) -> set[str]:
        scope = {"type": "http", "headers": [], "query_string": b"since=1h", "state": {"principal": principal}}
        reply = await costs(door, Call(scope, None))  # type: ignore[arg-type]
        return {line["tenant"] for line in json.loads(reply.body)["lines"]}

    assert await seen(Principal("ada", "key", (Grant("editor", "*"),))) == {"ada"}
    assert await seen(Principal("root", "user", (Grant("admin", "*"),))) == {"ada", "bob"}
    assert await seen(Principal("eve", "user")) == set()
    with pytest.raises((Unauthenticated, Forbidden)):
        await seen(ANONYMOUS)


def test_usage_outlives_the_server_and_a_kill(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    publish_tiny_models(workspace / "models")
    quick = {"OCTAVO_SERVING__USAGE_FLUSH_SECONDS": "0.1"}

    def requests() -> int:
        told = json.loads(octavo("costs", "--json", "--workspace", str(workspace)).stdout)
        return sum(line["requests"] for line in told["lines"])

    with octavo_up(workspace) as server, Client(server.url, token=server.token) as client:
        for _ in range(3):
            client.infer("double", {"x": rows(1)})
    assert requests() == 3, "the rest is written when the server is closed"
    with octavo_up(workspace, **quick) as server, Client(server.url, token=server.token) as client:
        client.infer("double", {"x": rows(1)})
        table = UsageTable(Database(load_settings(workspace).database_url))
        while True:
            now = datetime.now(UTC)
            if sum(each.requests for _, each in table.usage(now - timedelta(hours=2), now)) == 4:
                break
            time.sleep(0.05)
        os.kill(server.pid, signal.SIGKILL)
    assert requests() == 4, "what was written before the kill is there, once"
