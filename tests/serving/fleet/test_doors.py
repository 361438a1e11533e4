"""The doors over a fleet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from ..fake_service import FakeServing, fake_app, small_settings
from .conftest import OpenFleet

ADMIN = {"authorization": "Bearer admin-token"}
INPUT = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def client(service: Any) -> httpx.AsyncClient:
    app = fake_app(service, small_settings())
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


async def test_http_answers_from_the_fleet(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository)
    async with client(serving) as http:
        for _ in range(2):
            answer = await http.post("/v2/models/double/infer", json=INPUT, headers=ADMIN)
            assert answer.json()["outputs"][0]["data"] == [2, 4, 6, 8]
        assert (await http.post("/v2/repository/models/triple/load", headers=ADMIN)).status_code == 200
        assert (await http.get("/v2/models/double", headers=ADMIN)).json()["inputs"][0]["name"] == "x"
        residency = (await http.get("/api/serving/residency", headers=ADMIN)).json()
        assert {model["name"] for model in residency["models"]} == {"double", "triple"}
        status = (await http.get("/api/serving/fleet", headers=ADMIN)).json()
    assert status["routed"] == {
        "requests": 2, "hits": 1, "nowhere": 1, "spilled": 0, "resent": 0, "hit_ratio": 0.5,
    }  # fmt: skip
    assert status["nodes"] == ["node0", "node1"]
    assert {one["node"]: one["state"] for one in status["replicas"]} == {"node0": "READY", "node1": "READY"}
    assert sorted(model for one in status["replicas"] for model in one["models"]) == ["double/1", "triple/1"]
    assert (status["wanted"], status["policy"]["invocations_per_instance"]) == (2, 225)


@pytest.mark.parametrize(("headers", "status"), [({}, 401), ({"authorization": "Bearer viewer-token"}, 403)])
async def test_the_fleets_status_is_for_who_may_see_all_models(headers: dict[str, str], status: int) -> None:
    async with client(FakeServing()) as http:
        assert (await http.get("/api/serving/fleet", headers=headers)).status_code == status


async def test_a_server_that_runs_alone_says_so() -> None:
    async with client(FakeServing()) as http:
        answer = await http.get("/api/serving/fleet", headers=ADMIN)
    assert answer.status_code == 404
    assert "octavo up --ray" in answer.json()["fix"]
