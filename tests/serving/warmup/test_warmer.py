"""The warm-up in a server: what is loaded when, what counts as a cold start avoided, and that no request suffers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import Conflict, NotFound
from octavo.serving.costs.table import UsageTable
from octavo.serving.costs.usage import HOUR, Usage
from octavo.serving.inference import InferRequest
from octavo.serving.service import Serving
from octavo.serving.warmup import parse_rule
from octavo.serving.warmup.plan import IN_MEMORY, SHARE_USED
from octavo.settings import load_settings

from ..conftest import Open
from ..served_models import BATCHED, CHAIN, publish_tiny_models, put, times, weights
from ..test_tensor_task import rows

MONDAY = datetime(2026, 3, 2, tzinfo=UTC)
QUIET: dict[str, Any] = {"warmup_seconds": 10_000}


async def declare(serving: Serving, name: str = "r", **more: Any) -> None:
    await serving.warmup.rules.put(parse_rule({"name": name} | more))


async def ask(serving: Serving, *models: str) -> None:
    for model in models:
        await serving.infer(InferRequest(model, {"x": rows(1)}, caller="ada"))


def resident(serving: Serving) -> set[str]:
    return {model.name for model in serving.residency().models}


async def counted(serving: Serving) -> dict[str, tuple[int, int, int]]:
    """Loads ahead, cold starts avoided and loads wasted, by model."""
    told = await serving.warmup.report({"by": "model"})
    return {line.model: (line.loads, line.avoided, line.wasted) for line in told.lines}


@pytest.fixture
def workspace(tmp_path: Path) -> Path:
    publish_tiny_models(tmp_path / "models")
    put(tmp_path / "models", "chain", None, CHAIN)
    return tmp_path


async def test_scheduled_models_are_loaded_when_it_is_time(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, **QUIET)
    await declare(serving, models=["double", "triple"], cron="0 8 * * 1-5", keep_minutes=60)
    await serving.warmup.turn(MONDAY + timedelta(hours=7))
    assert resident(serving) == set()
    await serving.warmup.turn(MONDAY + timedelta(hours=7, minutes=56))
    assert resident(serving) == {"double", "triple"}
    again = await serving.warmup.turn(MONDAY + timedelta(hours=8))
    assert {step.reason for step in again.steps} == {IN_MEMORY}
    assert again.kept == {"double/1", "triple/1"}
    later = await serving.warmup.turn(MONDAY + timedelta(hours=9))
    assert (later.steps, later.kept) == ((), frozenset())


async def test_the_first_request_after_a_load_ahead_is_a_cold_start_avoided(
    open_serving: Open, workspace: Path
) -> None:
    serving = await open_serving(workspace, **QUIET)
    await declare(serving, models=["double", "triple"])
    await serving.warmup.turn()
    await ask(serving, "double", "double")
    assert await counted(serving) == {"double": (1, 1, 0), "triple": (1, 0, 0)}
    told = await serving.warmup.report({})
    (line,) = (line for line in told.lines if line.model == "double")
    assert line.seconds_saved == line.load_seconds > 0
    await serving.unload("triple")
    await serving.unload("double")
    assert await counted(serving) == {"double": (1, 1, 0), "triple": (1, 0, 1)}
    await ask(serving, "triple")
    assert (await counted(serving))["triple"] == (1, 0, 1), "that one was cold"


async def test_what_would_have_been_in_memory_anyway_is_no_cold_start_avoided(
    open_serving: Open, workspace: Path
) -> None:
    serving = await open_serving(workspace, **QUIET)
    await ask(serving, "double")
    await declare(serving, models=["double", "triple", "fixed"])
    await serving.warmup.turn()
    await serving.load("triple")
    await serving.metadata("fixed")
    await ask(serving, "double", "triple")
    found = await counted(serving)
    assert "double" not in found
    assert found["triple"] == (1, 0, 0), "an operator had it loaded meanwhile"
    assert found["fixed"] == (1, 0, 0)


async def test_who_comes_while_a_model_is_loaded_ahead_is_served_by_that_load_and_counts_as_cold(
    open_serving: Open, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving = await open_serving(workspace, **QUIET)
    begun, go_on = asyncio.Event(), asyncio.Event()
    make_room = serving._residency._make_room

    async def held_up(*given: Any) -> None:
        begun.set()
        await go_on.wait()
        await make_room(*given)

    monkeypatch.setattr(serving._residency, "_make_room", held_up)
    await declare(serving, models=["double"])
    turn = asyncio.create_task(serving.warmup.turn())
    await begun.wait()
    asking = asyncio.create_task(ask(serving, "double"))
    while serving._residency.find("double", "1").ahead:  # type: ignore[union-attr]
        await asyncio.sleep(0)
    go_on.set()
    await asyncio.gather(turn, asking)
    assert await counted(serving) == {}
    assert serving.residency().counters.colds == 1
    (line,) = (await serving.costs({})).lines
    assert (line.tenant, line.cold_starts) == ("ada", 1)


async def test_ensembles_and_endpoints_stand_for_the_models_behind_them(open_serving: Open, workspace: Path) -> None:
    from octavo.serving.endpoint import Endpoint, Variant

    put(workspace / "models", "one", times(1), BATCHED)
    serving = await open_serving(workspace, **QUIET)
    await serving.endpoints.put(Endpoint(name="front", variants=(Variant(name="a", model="one"),)))
    await declare(serving, models=["chain", "front", "missing"])
    plan = await serving.warmup.turn()
    assert resident(serving) == {"double", "triple", "one"}
    (missing,) = (step for step in plan.steps if step.key == "missing")
    assert "missing" in missing.reason
    await serving.infer(InferRequest("chain", {"a": rows(1)}))
    await ask(serving, "front")
    assert {model: line[1] for model, line in (await counted(serving)).items()} == {"double": 1, "triple": 1, "one": 1}


async def test_a_pattern_means_models_of_the_repository(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, **QUIET)
    await declare(serving, models=["*le"])
    await serving.warmup.turn()
    assert resident(serving) == {"double", "triple"}


def usage_of(workspace: Path, serving: Serving, hours: Iterable[datetime], model: str) -> None:
    UsageTable(serving._database).add(
        {(int(hour.timestamp() // HOUR), model, "1", "ada"): Usage(requests=3) for hour in hours}, {}
    )


async def test_what_is_likely_is_loaded_from_the_usage_in_the_database(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, **QUIET)
    nine = [MONDAY - timedelta(days=day) + timedelta(hours=9) for day in range(1, 22)]
    usage_of(workspace, serving, nine, "double")
    usage_of(workspace, serving, [one + timedelta(hours=6) for one in nine], "triple")
    usage_of(workspace, serving, nine, "gone-from-the-repository")
    await declare(serving, predict=True, models=["*"], probability=0.5)
    assert not (await serving.warmup.turn(MONDAY + timedelta(hours=8, minutes=50))).loads
    plan = await serving.warmup.turn(MONDAY + timedelta(hours=8, minutes=56))
    assert resident(serving) == {"double"}
    assert {step.key: bool(step.reason) for step in plan.steps} == {"double/1": False, "gone-from-the-repository": True}
    await declare(serving, predict=True, models=["d*"], probability=0.5)
    await serving.warmup.turn(MONDAY + timedelta(hours=14, minutes=56))
    assert resident(serving) == {"double"}


async def test_only_free_memory_within_the_share_is_taken(open_serving: Open, tmp_path: Path) -> None:
    for name in ("a", "b", "c", "d"):
        put(tmp_path / "models", name, weights(2048, seed=ord(name)), BATCHED)
    serving = await open_serving(tmp_path, memory_budget=160 * 2**20, warmup_share=0.25, **QUIET)
    await declare(serving, models=["a", "b", "c", "d"])
    plan = await serving.warmup.turn()
    assert {step.key: step.reason for step in plan.steps}["d/1"] == SHARE_USED
    assert len(resident(serving)) == 2, "16 MiB each, of 40"


async def test_a_load_ahead_that_finds_no_room_sends_nobody_out(
    open_serving: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        put(tmp_path / "models", name, weights(1024, seed=ord(name)), BATCHED)
    serving = await open_serving(tmp_path, memory_budget=24 * 2**20, warmup_share=1.0, **QUIET)
    x = np.ones((1, 1024), dtype=np.float32)
    await serving.infer(InferRequest("a", {"x": x}))
    await declare(serving, models=["b"])
    plan = await serving.warmup.plan()
    assert [step.key for step in plan.loads] == ["b/1"]
    monkeypatch.setattr(serving._residency.charges, "free", lambda: 0)  # it was free when the plan was made
    await serving.warmup._load(plan.loads[0], await serving._catalogue.resolve("b"))
    assert resident(serving) == {"a"}
    monkeypatch.undo()
    await serving.infer(InferRequest("b", {"x": x}))


async def test_kept_models_leave_last_and_not_for_being_idle(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, **QUIET)
    await declare(serving, models=["double"])
    await serving.warmup.turn()
    await ask(serving, "double", "triple", "triple")
    while any(one.in_flight for one in serving._residency.residents):
        await asyncio.sleep(0.01)
    assert [victim.key for victim in serving._residency._victims()] == ["triple/1", "double/1"]
    serving._residency._settings.idle_ttl = 1e-9
    await serving._residency._unload_idle()
    assert resident(serving) == {"double"}
    await serving.warmup.rules.delete("r")
    await serving.warmup.turn()
    await serving._residency._unload_idle()
    assert resident(serving) == set()


async def test_a_share_of_zero_loads_nothing(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, warmup_share=0, **QUIET)
    await declare(serving, models=["double"])
    assert (await serving.warmup.turn()).steps == ()


async def test_rules_and_what_came_of_them_outlive_the_server(open_serving: Open, workspace: Path) -> None:
    first = await Serving.open(load_settings(workspace, serving=QUIET))
    await declare(first, models=["double"])
    await first.warmup.turn()
    await ask(first, "double")
    await first.close()
    second = await open_serving(workspace, **QUIET)
    assert [rule.name for rule in await second.warmup.rules.all()] == ["r"]
    while (await counted(second))["double"][0] < 2:  # its first turn loads it
        await asyncio.sleep(0.01)
    await ask(second, "double")
    assert await counted(second) == {"double": (2, 2, 0)}


async def test_a_server_follows_its_rules_by_itself(open_serving: Open, workspace: Path) -> None:
    serving = await open_serving(workspace, warmup_seconds=0.05)
    await declare(serving, models=["double"])
    while "double" not in resident(serving):
        await asyncio.sleep(0.01)


async def test_two_servers_of_one_database_do_not_fight(open_serving: Open, workspace: Path) -> None:
    one, two = await open_serving(workspace, **QUIET), await open_serving(workspace, **QUIET)
    rule = parse_rule({"name": "r", "models": ["double"]})
    await one.warmup.rules.put(rule, revision=0)
    with pytest.raises(Conflict):
        await two.warmup.rules.put(rule, revision=0)
    await asyncio.gather(one.warmup.turn(), two.warmup.turn())
    await asyncio.gather(ask(one, "double"), ask(two, "double"))
    await asyncio.gather(one.warmup.flush(), two.warmup.flush())
    assert await counted(one) == await counted(two) == {"double": (2, 2, 0)}
    await two.warmup.rules.delete("r")
    assert (await one.warmup.turn()).steps == ()
    with pytest.raises(NotFound):
        await one.warmup.rules.delete("r")
