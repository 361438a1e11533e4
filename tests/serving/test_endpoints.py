"""Endpoints: what can be declared, who gets which request, shadows, and changes by other processes."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Conflict, Forbidden, Invalid, NotFound, Unavailable
from octavo.serving.client import Client
from octavo.serving.endpoint import Endpoint, Variant, parse_endpoint
from octavo.serving.endpoints import Endpoints
from octavo.serving.inference import InferRequest
from octavo.serving.repository import Change
from octavo.serving.service import Serving
from octavo.serving.traffic import agree
from octavo.settings import load_settings

from .conftest import Open
from .live import Up, octavo
from .served_models import BATCHED, put, times
from .test_tensor_task import rows


def endpoint(*variants: Variant, **more: Any) -> Endpoint:
    return Endpoint(name="front", variants=variants, **more)


A, B = Variant(name="a", model="one"), Variant(name="b", model="two", weight=3)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "x", "variants": []}, "needs a variant"),
        ({"name": "../x", "variants": [{"name": "a", "model": "m"}]}, "not a model name"),
        ({"name": "x", "variants": [{"name": "a", "model": "m/../n"}]}, "not a model name"),
        ({"name": "x", "variants": [{"name": "a"}]}, "variants.0.model"),
        ({"name": "x", "variants": [{"name": "a", "model": "m", "weight": -1}]}, "weight"),
        ({"name": "x", "variants": [{"name": "a", "model": "m", "colour": 1}]}, "unknown field variants.0.colour"),
        ({"name": "x", "variants": [{"name": "a", "model": "m"}] * 2}, "one name"),
        ({"name": "x", "variants": [{"name": str(i), "model": "m"} for i in range(11)]}, "11 variants"),
        ({"name": "x", "variants": [{"name": "a", "model": "m", "shadow": True}]}, "needs a variant"),
        ({"variants": [{"name": "a", "model": "m"}]}, "name"),
    ],
)
def test_a_wrong_declaration_names_what_is_wrong(given: dict[str, Any], says: str) -> None:
    with pytest.raises(Invalid) as caught:
        parse_endpoint(given)
    assert says in str(caught.value)


def test_a_declaration_survives_being_written() -> None:
    one = endpoint(A, B, Variant(name="s", model="three", shadow=True, weight=0.5))
    assert parse_endpoint(one.model_dump(mode="json")) == one


def test_traffic_follows_the_weights() -> None:
    counts = Counter(endpoint(A, B).choose().name for _ in range(4000))
    assert 0.7 < counts["b"] / 4000 < 0.8


@given(st.text(max_size=20).filter(bool))
def test_a_session_stays_with_its_variant(key: str) -> None:
    both = endpoint(A, B)
    assert both.choose(key=key) == both.choose(key=key)


def test_sessions_spread_by_the_weights() -> None:
    counts = Counter(endpoint(A, B).choose(key=str(number)).name for number in range(4000))
    assert 0.7 < counts["b"] / 4000 < 0.8


def test_a_named_variant_is_taken_and_weight_zero_gets_nothing_else() -> None:
    both = endpoint(A, Variant(name="z", model="zero", weight=0))
    assert both.choose("z").model == "zero"
    assert {both.choose().name for _ in range(200)} == {"a"}
    with pytest.raises(NotFound, match="no variant 'q'"):
        both.choose("q")


def test_agreement_of_answers() -> None:
    x = np.array([1.0, np.nan], dtype=np.float32)
    assert agree({"y": x}, {"y": x * 1.0001})
    assert not agree({"y": x}, {"y": x * 1.01})
    assert not agree({"y": x}, {"z": x})
    assert not agree({"y": x}, {"y": np.array([1, 1])})
    assert not agree({"y": x}, {"y": x[:1]})
    assert agree({"t": np.array([b"a"], object)}, {"t": np.array([b"a"], object)})


async def served(open_serving: Open, workspace: Path) -> Serving:
    serving = await open_serving(workspace)
    for name, factor in (("one", 1), ("two", 2), ("three", 3)):
        put(workspace / "models", name, times(factor), BATCHED)
    return serving


async def answers(serving: Serving, count: int = 1, **more: Any) -> list[Any]:
    found = [await serving.infer(InferRequest("front", {"x": rows(1)}, **more)) for _ in range(count)]
    return [(answer.model, answer.variant, float(answer.outputs["y"].ravel()[0])) for answer in found]


async def test_an_endpoint_answers_under_its_own_name(open_serving: Open, tmp_path: Path) -> None:
    serving = await served(open_serving, tmp_path)
    await serving.endpoints.put(endpoint(A, B))
    assert set(await answers(serving, 60)) == {("front", "a", 1.0), ("front", "b", 2.0)}
    assert await answers(serving, variant="a") == [("front", "a", 1.0)]
    counts = {one.variant: one.successes.count for one in serving.traffic.statistics("front")}
    assert sum(counts.values()) == 61
    assert serving.ready("front")
    assert (await serving.metadata("front")).name == "front"


async def test_a_shadow_gets_copies_and_changes_nothing(open_serving: Open, tmp_path: Path) -> None:
    serving = await served(open_serving, tmp_path)
    same = Variant(name="same", model="one", shadow=True)
    other = Variant(name="other", model="three", shadow=True)
    gone = Variant(name="gone", model="nowhere", shadow=True)
    await serving.endpoints.put(endpoint(A, same, other, gone))
    assert set(await answers(serving, 20)) == {("front", "a", 1.0)}
    while sum(one.successes.count + one.failures.count for one in serving.traffic.statistics("front")) < 80:
        await asyncio.sleep(0.01)
    counts = {one.variant: (one.compared, one.agreed) for one in serving.traffic.statistics("front")}
    assert counts["same"] == (20, 20)
    assert counts["other"] == (20, 0)
    assert counts["gone"] == (0, 0)


async def test_an_endpoint_of_a_models_own_name_rolls_out_its_versions(open_serving: Open, tmp_path: Path) -> None:
    serving = await served(open_serving, tmp_path)
    put(tmp_path / "models", "one", times(10), BATCHED + "version_policy { all { } }\n", 2)
    serving._turnover.changed(Change("one", "changed"))
    old, new = (Variant(name=f"v{number}", model="one", version=number) for number in ("1", "2"))
    await serving.endpoints.put(Endpoint(name="one", variants=(old, new)))
    seen = {
        float((await serving.infer(InferRequest("one", {"x": rows(1)}))).outputs["y"].ravel()[0]) for _ in range(60)
    }
    assert seen == {1.0, 10.0}
    pinned = await serving.infer(InferRequest("one", {"x": rows(1)}, version="2"))
    assert pinned.outputs["y"].ravel()[0] == 10


async def test_a_change_by_another_process_is_seen(open_serving: Open, tmp_path: Path) -> None:
    serving = await served(open_serving, tmp_path)
    elsewhere = Endpoints(serving.documents)
    await elsewhere.put(endpoint(A))
    await serving.endpoints.refresh()
    assert await answers(serving) == [("front", "a", 1.0)]
    first = await elsewhere.put(endpoint(B), revision=1)
    with pytest.raises(Conflict, match="meanwhile"):
        await serving.endpoints.put(endpoint(A), revision=1)
    assert first.revision == 2
    await serving.endpoints.refresh()
    assert await answers(serving) == [("front", "b", 2.0)]
    await elsewhere.delete("front")
    await serving.endpoints.refresh()
    with pytest.raises(NotFound):
        await answers(serving)
    with pytest.raises(NotFound):
        await elsewhere.delete("front")


def test_the_doors_of_endpoints(live_server: Up) -> None:
    def run(*words: str) -> Any:
        done = octavo("endpoints", *words, "--json", "--workspace", str(live_server.workspace))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    made = run("set", "support", "old=minilm:3", "new=minilm-int8:1", "--shadow", "copy=minilm-int8:0.5")
    assert [one["weight"] for one in made["variants"]] == [3, 1, 0.5]
    with Client(live_server.url, token=live_server.token) as client:
        assert client.embed(["hello"], model="support").shape == (1, 384)
        assert {row["name"] for row in client.endpoints()} >= {"support"}
        stale = {**{key: made[key] for key in ("name", "variants")}, "revision": made["revision"] + 5}
        with pytest.raises(Conflict, match="meanwhile"):
            client.set_endpoint("support", stale)
        with pytest.raises(NotFound):
            client.set_endpoint("support", {"variants": [{"name": "a", "model": "nowhere"}]})
        with pytest.raises(Invalid, match="another endpoint"):
            client.set_endpoint("support", {"name": "else", "variants": [{"name": "a", "model": "minilm"}]})
    table = octavo("endpoints", "show", "support", "--workspace", str(live_server.workspace)).stdout
    assert "75%" in table
    assert "50% copied" in table
    listed = httpx.get(f"{live_server.url}/v1/models", headers={"authorization": f"Bearer {live_server.token}"}).json()
    assert "support" in {row["id"] for row in listed["data"]}
    assert run("rm", "support") == {"name": "support", "removed": True}
    assert "support" not in {row["name"] for row in run("ls")}


@pytest.mark.parametrize(
    "variant", ["minilm", "a=minilm:x", "a=minilm:1.2.3", "a=../etc", "a b=minilm", "a=minilm@../x", "=minilm"]
)
def test_a_slip_in_a_variant_is_told(live_server: Up, variant: str) -> None:
    done = octavo("endpoints", "set", "front", variant, "--workspace", str(live_server.workspace))
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_sessions_and_variants_over_the_protocols(live_server: Up) -> None:
    headers = {"authorization": f"Bearer {live_server.token}"}
    with (
        httpx.Client(base_url=live_server.url, headers=headers, timeout=60) as http,
        Client(live_server.url, token=live_server.token) as client,
    ):
        client.set_endpoint("twice", {"variants": [{"name": "d", "model": "double"}, {"name": "t", "model": "triple"}]})
        tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 1, 1, 1]}

        def ask(**parameters: object) -> tuple[str, float]:
            answer = http.post("/v2/models/twice/infer", json={"inputs": [tensor], "parameters": parameters}).json()
            return answer["parameters"]["variant"], answer["outputs"][0]["data"][0]

        assert ask(variant="t") == ("t", 3)
        assert len({ask(session="s1") for _ in range(8)}) == 1
        assert {ask() for _ in range(40)} == {("d", 2), ("t", 3)}
        refused = http.post("/v2/models/twice/infer", json={"inputs": [tensor], "parameters": {"variant": "q"}})
        assert refused.status_code == 404
        wrong = http.post("/v2/models/twice/infer", json={"inputs": [tensor], "parameters": {"session": 5}})
        assert wrong.status_code == 400
        assert http.get("/v2/models/twice/ready").status_code == 200
        assert http.get("/v2/models/twice").json()["name"] == "twice"
        client.remove_endpoint("twice")


def test_an_endpoint_is_no_way_around_a_models_access() -> None:
    from octavo.access import Grant, Principal
    from octavo.serving.protocols.endpoint_api import _require_models
    from octavo.serving.protocols.exchange import Call

    editor = Principal("eve", "user", (Grant("editor", "models/acme-*"),))
    call = Call({"type": "http", "headers": [], "state": {"principal": editor}}, None)  # type: ignore[arg-type]
    _require_models(call, Endpoint(name="acme-front", variants=(Variant(name="a", model="acme-one"),)))
    with pytest.raises(Forbidden):
        _require_models(call, Endpoint(name="acme-front", variants=(Variant(name="a", model="secret"),)))


async def test_one_question_is_answered_without_the_database(tmp_path: Path) -> None:
    put(tmp_path / "models", "one", times(1), BATCHED)
    settings = load_settings(tmp_path, storage={"database": f"sqlite:///{tmp_path / 'models' / 'one'}"})
    serving = await Serving.open(settings, keep_pinned=False)
    answer = await serving.infer(InferRequest("one", {"x": rows(1)}))
    assert answer.outputs["y"].ravel()[0] == 1
    await serving.close()
    with pytest.raises(Unavailable):
        await Serving.open(settings)
