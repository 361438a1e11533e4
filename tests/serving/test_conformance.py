"""One suite for all clients against one running server; the checks are `benchmarks/serving/conformance.py`'s."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from clients import CLIENTS, Client, Doors
from conformance import CHECKS, ENDPOINT, TEXTS, Lacks, World

from octavo.serving.client import Client as OwnClient
from octavo.settings import load_settings

from .live import Up, octavo


@pytest.fixture(scope="module")
def world(live_server: Up) -> Iterator[World]:
    workspace = ("--workspace", str(live_server.workspace), "--json")
    octavo("users", "add", "conformance", "--role", "admin", *workspace)
    keys = json.loads(octavo("users", "key-add", "conformance", *workspace).stdout)["aws"]
    doors = Doors(
        live_server.url, live_server.grpc, live_server.token, keys["access_key_id"], keys["secret_access_key"]
    )
    with OwnClient(doors.url, token=doors.token) as own:
        own.set_endpoint(ENDPOINT, {"variants": [{"name": "a", "model": "minilm"}]})
        expected = np.concatenate([own.embed([text], model="minilm") for text in TEXTS])
        yield World(doors, expected, own.unload, load_settings(live_server.workspace).serving.max_inputs)
        own.remove_endpoint(ENDPOINT)


@pytest.fixture(scope="module", params=CLIENTS, ids=lambda kind: kind.name)
def client(request: pytest.FixtureRequest, world: World) -> Iterator[Client]:
    made: Any = request.param(world.doors)
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_every_client(client: Client, world: World, check: Callable[[Client, World], str]) -> None:
    try:
        print(check(client, world))
    except Lacks as lack:
        pytest.skip(f"{client.name}: {lack}")
