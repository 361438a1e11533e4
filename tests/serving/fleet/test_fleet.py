"""A fleet answers as one server does: also while replicas are lost, come and go."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import DeadlineExceeded, Invalid, NotFound, OutOfMemory, Unavailable
from octavo.serving.autoscaling.targets import ScalingTarget, TargetTracking, write_target
from octavo.serving.endpoint import Endpoint, Variant
from octavo.serving.fleet.member import READY
from octavo.serving.fleet.metrics import FleetCollector
from octavo.serving.fleet.scaling import Tracker
from octavo.serving.fleet.service import FleetServing
from octavo.serving.inference import InferRequest
from octavo.serving.metrics import ServingCollector

from ..served_models import BATCHED, CHAIN, put, times
from .conftest import OpenFleet
from .in_process import InProcessLink

X = np.array([[1, 2, 3, 4]], dtype=np.float32)


def ask(name: str, **more: Any) -> InferRequest:
    return InferRequest(name, {"x": X}, **more)


async def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def link_of(serving: FleetServing, key: str) -> InProcessLink:
    (found,) = [member.link for member in serving.fleet.replicas.ready if key in member.keys]
    assert isinstance(found, InProcessLink)
    return found


async def test_answers_are_those_of_one_server(
    tiny_repository: Path, open_fleet: OpenFleet, open_serving: Callable[..., Awaitable[Any]]
) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    alone = await open_serving(tiny_repository)
    serving, _ = await open_fleet(tiny_repository)
    words = np.array([[b"a"], [b""], ["é".encode()]], dtype=object)
    for name, inputs in (
        ("double", {"x": X}), ("chain", {"a": X}), ("words", {"text": words}), ("sum", {"a": X, "b": X}),
    ):  # fmt: skip
        expected, found = (
            await alone.infer(InferRequest(name, inputs, id="7")),
            await serving.infer(InferRequest(name, inputs, id="7")),
        )
        assert (found.model, found.version, found.id) == (name, "1", "7")
        for output, value in expected.outputs.items():
            assert found.outputs[output].tolist() == value.tolist()
    assert await serving.metadata("double") == await alone.metadata("double")
    with pytest.raises(NotFound):
        await serving.infer(ask("nobody"))
    with pytest.raises(Invalid, match="x"):
        await serving.infer(InferRequest("double", {"y": X}))


async def test_routing_finds_the_model_on_zipf_traffic(tmp_path: Path, open_fleet: OpenFleet) -> None:
    for number in range(20):
        put(tmp_path / "models", f"m{number}", times(number), BATCHED)
    serving, cluster = await open_fleet(tmp_path, min_replicas=3)
    rng = np.random.default_rng(5)

    async def client(numbers: np.ndarray) -> None:
        for number in numbers.tolist():
            answer = await serving.infer(ask(f"m{number}"))
            assert answer.outputs["y"].tolist() == (X * number).tolist()

    weights = 1 / np.arange(1, 21)
    await asyncio.gather(*(client(rng.choice(20, 100, p=weights / weights.sum())) for _ in range(4)))
    routed = serving.fleet.routed
    assert routed.requests == 400
    assert routed.hit_ratio is not None
    assert routed.hit_ratio >= 0.9
    assert sum("infer" in link.asked for link in cluster.links) == 3, "all have a part of the models"
    await serving.fleet.replicas.look()
    counters = serving.residency().counters
    assert counters.hits + counters.colds == 400
    assert len({key for member in serving.fleet.replicas.ready for key in member.keys}) == 20


async def test_metrics_are_of_all_replicas(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository)
    for _ in range(3):
        await serving.infer(ask("double"))
    await serving.fleet.replicas.look()
    collectors = (FleetCollector(serving.fleet), ServingCollector(serving))
    samples = [sample for one in collectors for metric in one.collect() for sample in metric.samples]
    for one in collectors:
        one.close()
    found = {(sample.name, *sample.labels.values()): sample.value for sample in samples}
    assert (found["octavo_fleet_replicas", "READY"], found["octavo_fleet_hits_total",]) == (2, 2)
    assert found["octavo_memory_budget_bytes",] == 2 * 2**30
    assert found["octavo_model_requests_total", "double", "1", "success"] == 3


async def test_many_at_once_for_a_cold_model_load_it_once(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository, spill_at=1000)
    await asyncio.gather(*(serving.infer(ask("double")) for _ in range(50)))
    await serving.fleet.replicas.look()
    (counts,) = serving.statistics("double")
    assert (counts.success.count, counts.colds.count, counts.rows) == (50, 1, 50)


async def test_a_hot_model_gets_a_copy(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, cluster = await open_fleet(tiny_repository, spill_at=1)
    await serving.infer(ask("double"))
    await asyncio.gather(*(serving.infer(ask("double")) for _ in range(20)))
    assert all("infer" in link.asked for link in cluster.links)
    assert serving.fleet.routed.spilled >= 1
    await serving.fleet.replicas.look()
    (model,) = serving.residency().models
    assert model.name == "double", "copies are one line"


async def test_a_lost_replicas_requests_are_answered_by_another(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, cluster = await open_fleet(tiny_repository)
    await serving.infer(ask("double"))
    link = link_of(serving, "double/1")
    link.mute = {"infer"}
    waiting = [asyncio.create_task(serving.infer(ask("double"))) for _ in range(7)]
    await until(lambda: link.asked.count("infer") == 8)
    link.kill()
    assert [answer.outputs["y"].tolist() for answer in await asyncio.gather(*waiting)] == [(X * 2).tolist()] * 7
    assert serving.fleet.routed.resent == 7
    await until(lambda: len(serving.fleet.replicas.ready) == 2)
    assert (serving.fleet.replicas.lost, len(cluster.links)) == (1, 3)
    status = await serving.fleet_status()
    assert {one.id for one in status.replicas} == {"r1", "r2"}, "another has taken the slot"


async def test_a_silent_replica_is_given_up(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository, lost_seconds=0.5)
    await serving.infer(ask("double"))
    link_of(serving, "double/1").mute = {"infer", "report"}
    assert (await serving.infer(ask("double"))).outputs["y"].tolist() == (X * 2).tolist()
    assert "silent" in serving.fleet.replicas.trouble


async def test_a_replica_that_is_away_for_a_moment_keeps_its_models(
    tiny_repository: Path, open_fleet: OpenFleet
) -> None:
    serving, cluster = await open_fleet(tiny_repository)
    await serving.infer(ask("double"))
    link = link_of(serving, "double/1")
    link.away = True
    assert (await serving.infer(ask("double"))).outputs["y"].tolist() == (X * 2).tolist()
    assert serving.fleet.routed.resent == 1
    assert len(serving.fleet.replicas.ready) == 1
    link.away = False
    await until(lambda: len(serving.fleet.replicas.ready) == 2)
    assert (serving.fleet.replicas.lost, len(cluster.links)) == (0, 2)


async def test_a_request_that_ends_replicas_is_given_up(
    tiny_repository: Path, open_fleet: OpenFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, cluster = await open_fleet(tiny_repository, min_replicas=3, resends=1)
    for link in cluster.links:
        infer = link.replica.infer

        async def die(request: InferRequest, seconds: float, link: InProcessLink = link, infer: Any = infer) -> Any:
            if request.model == "double":
                link.kill()
            return await infer(request, seconds)

        monkeypatch.setattr(link.replica, "infer", die)
    with pytest.raises(Unavailable, match="2 replicas were lost"):
        await serving.infer(ask("double"))
    assert sum(link.dead for link in cluster.links) == 2
    with pytest.raises(Unavailable) as refusal:
        await serving.infer(ask("double"))
    assert refusal.value.retry_after > 20, "the model is left alone for a while"
    assert sum(link.dead for link in cluster.links) == 2
    assert (await serving.infer(ask("triple"))).outputs["y"].tolist() == (X * 3).tolist()


async def test_a_refusal_is_not_asked_of_another(
    tiny_repository: Path, open_fleet: OpenFleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    serving, cluster = await open_fleet(tiny_repository)
    for link in cluster.links:

        async def refuse(*_: object) -> None:
            raise OutOfMemory("too large", "double", "Use a larger budget.")

        monkeypatch.setattr(link.replica._serving, "infer_model", refuse)
    with pytest.raises(OutOfMemory) as refusal:
        await serving.infer(ask("double"))
    assert (refusal.value.where, refusal.value.fix) == ("double", "Use a larger budget.")
    assert sum(link.asked.count("infer") for link in cluster.links) == 1
    assert serving.statistics("double")[0].fail.count == 1


async def test_without_any_replica_a_request_waits_for_one(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, cluster = await open_fleet(tiny_repository, min_replicas=1)
    cluster.hold = asyncio.Event()
    cluster.links[0].kill()
    with pytest.raises(DeadlineExceeded, match="no replica"):
        await serving.infer(ask("double", deadline=time.monotonic() + 0.2))
    waiting = asyncio.create_task(serving.infer(ask("double")))
    await until(lambda: len(cluster.links) == 2)
    assert not serving.fleet.replicas.ready
    cluster.hold.set()
    assert (await waiting).outputs["y"].tolist() == (X * 2).tolist()


async def test_a_caller_who_leaves_is_not_waited_for(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository)
    await serving.infer(ask("double"))
    link = link_of(serving, "double/1")
    link.mute = {"infer"}
    waiting = asyncio.create_task(serving.infer(ask("double")))
    await until(lambda: link.asked.count("infer") == 2)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert serving.fleet.routed.resent == 0
    assert all(member.in_flight == 0 and member.state == READY for member in serving.fleet.replicas.members)
    link.mute = set()


async def test_scaling_is_applied_and_draining_fails_nothing(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, cluster = await open_fleet(
        tiny_repository, min_replicas=1, max_replicas=2, drain_seconds=30, invocations_per_replica=10
    )
    replicas, now = serving.fleet.replicas, [0.0]
    replicas.tracker = Tracker(replicas.tracker.policy, lambda: now[0], time.time)

    async def minute(requests: int) -> None:
        before = len(replicas.tracker.readings)
        for _ in range(requests):
            await serving.infer(ask("double"))
        now[0] += 60
        await until(lambda: len(replicas.tracker.readings) > before)

    for _ in range(3):
        await minute(12)
    await until(lambda: len(replicas.ready) == 2)
    assert replicas.tracker.decisions[-1].capacity == 2
    emptier = replicas.members[1]
    assert isinstance(emptier.link, InProcessLink)
    await emptier.link.replica.load("triple", "")
    emptier.link.mute = {"infer"}
    emptier.keys = {"triple/1"}
    slow = asyncio.create_task(serving.infer(ask("triple")))
    await until(lambda: emptier.in_flight == 1)
    while replicas.tracker.capacity == 2:
        now[0] += 60
        await asyncio.sleep(0.06)
    await until(lambda: len(replicas.ready) == 1)
    assert not slow.done()
    emptier.link.mute = set()
    assert (await slow).outputs["y"].tolist() == (X * 3).tolist()
    await until(lambda: len(replicas.members) == 1)
    assert (replicas.lost, serving.fleet.routed.resent) == (0, 0)
    assert sum(link.dead for link in cluster.links) == 1
    assert serving.statistics("double")[0].success.count == 36, "what a replica did outlives it"


async def test_a_policy_declared_for_an_endpoint_scales_the_fleet(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository, min_replicas=1, max_replicas=2)
    tracking = TargetTracking(name="p", metric="invocations_per_instance", target=70)
    target = ScalingTarget(endpoint="door", variant="a", min_capacity=2, max_capacity=5, policies=(tracking,))
    write_target(serving.documents, target, 0)
    again, _ = await open_fleet(tiny_repository, min_replicas=1, max_replicas=2)
    replicas, now = again.fleet.replicas, [0.0]
    await until(lambda: replicas.tracker.policy.invocations_per_instance == 70)
    replicas.tracker = Tracker(replicas.tracker.policy, lambda: now[0], time.time)
    now[0] = 60.0
    await until(lambda: len(replicas.ready) == 2)


async def test_what_does_not_drain_in_time_moves(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository, drain_seconds=0.1)
    await serving.infer(ask("double"))
    member = next(one for one in serving.fleet.replicas.members if "double/1" in one.keys)
    assert isinstance(member.link, InProcessLink)
    member.link.mute = {"infer"}
    slow = asyncio.create_task(serving.infer(ask("double")))
    await until(lambda: member.in_flight == 1)
    serving.fleet.replicas._retire(member)
    assert (await slow).outputs["y"].tolist() == (X * 2).tolist()
    member.link.mute = set()


async def test_load_unload_and_pin_reach_the_right_replicas(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    serving, _ = await open_fleet(tiny_repository, spill_at=4)
    await serving.load("fixed")
    await serving.fleet.replicas.look()
    assert serving.in_memory("fixed")
    (line,) = [one for one in await serving.index() if one.name == "fixed"]
    assert (line.resident, line.state) == (True, "READY")
    await serving.infer(ask("double"))
    await asyncio.gather(*(serving.infer(ask("double")) for _ in range(20)))
    await serving.unload("double")
    await serving.fleet.replicas.look()
    assert not serving.in_memory("double")
    await serving.pin("chain")
    await serving.fleet.replicas.look()
    (member,) = [one for one in serving.fleet.replicas.members if one.report and one.report.pinned]
    assert member.report is not None
    assert member.report.pinned == {"chain", "double", "triple"}
    assert {"double/1", "triple/1"} <= member.keys
    assert isinstance(member.link, InProcessLink)
    member.link.kill()
    others = [one for one in serving.fleet.replicas.members if one is not member]
    await until(lambda: any(one.report and "chain" in one.report.pinned for one in serving.fleet.replicas.ready))
    assert others[0].report is not None
    await serving.pin("chain", False)
    await serving.fleet.replicas.look()
    assert not any(one.report and one.report.pinned for one in serving.fleet.replicas.members)


async def test_pins_outlive_the_fleet(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository)
    await serving.pin("double")
    again, _ = await open_fleet(tiny_repository)
    await until(lambda: again.in_memory("double"))


async def test_versions_and_endpoints(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    put(tiny_repository / "models", "double", times(20), BATCHED + "version_policy { all { } }\n", 2)
    serving, _ = await open_fleet(tiny_repository)
    assert (await serving.infer(ask("double"))).version == "2"
    assert (await serving.infer(ask("double", version="1"))).outputs["y"].tolist() == (X * 2).tolist()
    await serving.use_version("double", "1")
    for _ in range(3):
        assert (await serving.infer(ask("double"))).version == "1"
    variants = (Variant(name="a", model="double", version="1"), Variant(name="b", model="triple", weight=0))
    await serving.declare_endpoint(Endpoint(name="door", variants=variants))
    answer = await serving.infer(ask("door", variant="a"))
    assert (answer.model, answer.variant, answer.outputs["y"].tolist()) == ("door", "a", (X * 2).tolist())
    await serving.fleet.replicas.look()
    assert serving.in_memory("door")


async def test_a_model_that_does_not_load_is_told_of(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    put(tiny_repository / "models", "broken", b"no model", BATCHED)
    serving, _ = await open_fleet(tiny_repository)
    assert serving.ready("broken")
    with pytest.raises(Invalid):
        await serving.infer(ask("broken"))
    await serving.fleet.replicas.look()
    assert not serving.ready("broken")
    (line,) = [one for one in await serving.index() if one.name == "broken"]
    assert line.state == "UNAVAILABLE"
    assert line.reason
    assert serving.ready("double")


async def test_usage_is_counted_once_over_all_replicas(tiny_repository: Path, open_fleet: OpenFleet) -> None:
    serving, _ = await open_fleet(tiny_repository)
    for name in ("double", "triple", "double"):
        await serving.infer(ask(name, caller="acme"))
    report = await serving.costs({})
    assert {(line.tenant, line.model): line.requests for line in report.lines} == {
        ("acme", "double"): 2,
        ("acme", "triple"): 1,
    }


async def test_a_fleet_whose_replicas_do_not_start_says_why(tmp_path: Path, open_fleet: OpenFleet) -> None:
    (tmp_path / "models").write_text("a file, not a folder")
    with pytest.raises(Exception, match="models"):
        await open_fleet(tmp_path, start_seconds=1)
