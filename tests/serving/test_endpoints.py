"""Endpoints: what can be declared, who gets which request, shadows, and changes by other processes."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Conflict, Invalid, NotFound
from octavo.serving.endpoint import Endpoint, Variant, parse_endpoint
from octavo.serving.endpoints import Endpoints
from octavo.serving.inference import InferRequest
from octavo.serving.repository import Change
from octavo.serving.service import Serving
from octavo.serving.traffic import agree, model_of_target, target_model

from .conftest import Open
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
        ({"name": "x", "variants": [{"name": "a"}]}, "names no model"),
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
    one = endpoint(A, B, Variant(name="s", model="three", shadow=True, weight=0.5), about={"tag": "x"})
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


def test_target_models() -> None:
    many = Endpoint(name="mme", variants=(Variant(name="all"),), many=True, target_prefix="mme.")
    assert target_model(many, many.live[0], "cust-1/enc_v1.tar.gz") == "mme.cust-1.enc_v1"
    for wrong in ("", "a b", "x" * 300, "cust/?"):
        with pytest.raises(Invalid):
            target_model(many, many.live[0], wrong)
    with pytest.raises(Invalid, match="one model"):
        target_model(endpoint(A), A, "x.tar.gz")
    assert model_of_target("/a.tar.gz") == "a"


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
    await serving.endpoints.create(endpoint(A, B))
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
    await serving.endpoints.create(endpoint(A, same, other, gone))
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
    serving._changed(Change("one", "changed"))
    old, new = (Variant(name=f"v{number}", model="one", version=number) for number in ("1", "2"))
    await serving.endpoints.create(Endpoint(name="one", variants=(old, new)))
    seen = {
        float((await serving.infer(InferRequest("one", {"x": rows(1)}))).outputs["y"].ravel()[0]) for _ in range(60)
    }
    assert seen == {1.0, 10.0}
    pinned = await serving.infer(InferRequest("one", {"x": rows(1)}, version="2"))
    assert pinned.outputs["y"].ravel()[0] == 10


async def test_a_change_by_another_process_is_seen(open_serving: Open, tmp_path: Path) -> None:
    serving = await served(open_serving, tmp_path)
    elsewhere = Endpoints(serving.documents)
    await elsewhere.create(endpoint(A))
    assert serving.endpoints.find("front") is None
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
