"""The service as a whole, on real models: versions under load, pins and pressure, tiers, deadlines, priorities."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import Busy, DeadlineExceeded, Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.resident import READY
from octavo.serving.service import Serving
from octavo.settings import load_settings

from .conftest import Open
from .served_models import BATCHED, FLOAT, put, times, weights
from .test_tensor_task import rows

MIB = 2**20


async def ask(serving: Serving, model: str, value: float = 1, **more: object) -> InferAnswer:
    return await serving.infer(InferRequest(model, {"x": rows(value)}, **more))  # type: ignore[arg-type]


async def until(holds: Callable[[], bool]) -> None:
    """Wait until something becomes so; the test's own time-out ends what never does."""
    while not holds():
        await asyncio.sleep(0.01)


def resident(serving: Serving) -> set[str]:
    return {f"{model.name}/{model.version}" for model in serving.residency().models if model.state == READY}


SLOW = "backend: 'onnxruntime'\nmax_batch_size: 64\ndynamic_batching { priority_levels: 3 default_priority_level: 2 }\n"


def slow_model(turns: int = 40_000) -> bytes:
    """`y = 2 * x` after a while: a Loop whose body does next to nothing, `turns` times, with the GIL released."""
    from onnx import TensorProto, helper, numpy_helper

    body = helper.make_graph(
        [
            helper.make_node("Identity", ["keep"], ["going"]),
            helper.make_node("Add", ["state", "state"], ["sum"]),
            helper.make_node("Sub", ["sum", "state"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", TensorProto.INT64, []),
            helper.make_tensor_value_info("keep", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    whole = helper.make_graph(
        [
            helper.make_node("Loop", ["turns", "", "x"], ["looped"], body=body),
            helper.make_node("Add", ["looped", "looped"], ["y"]),
        ],
        "slow",
        [helper.make_tensor_value_info("x", FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array(turns), "turns")],
    )
    made = helper.make_model(whole, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(made.SerializeToString())


# Versions


async def test_a_new_version_takes_over_under_load_without_a_failed_request(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", times(1), BATCHED)
    serving = await open_serving(tmp_path)
    source = tmp_path / "source"
    source.mkdir()
    answered: list[tuple[str, float]] = []
    done = asyncio.Event()

    async def caller() -> list[str]:
        own = []
        while not done.is_set():
            answer = await ask(serving, "m")
            answered.append((answer.version, float(answer.outputs["y"][0, 0])))
            own.append(answer.version)
        return own

    callers = [asyncio.create_task(caller()) for _ in range(8)]
    for number in (2, 3):
        (source / "model.onnx").write_bytes(times(number))
        assert await asyncio.to_thread(serving.repository.publish, "m", source) == str(number)
        await until(lambda number=number: bool(answered) and answered[-1][0] == str(number))
    done.set()
    for own in await asyncio.gather(*callers):
        assert own == sorted(own)  # nobody goes back; one request may overtake another's
    assert all(version == str(int(value)) for version, value in answered)  # each answer tells whose it is
    await until(lambda: resident(serving) == {"m/3"})  # old ones have left


async def test_roll_back_and_forward(tmp_path: Path, open_serving: Open) -> None:
    for version in (1, 2):
        put(tmp_path / "models", "m", times(version), BATCHED, version)
    serving = await open_serving(tmp_path)
    assert (await ask(serving, "m")).outputs["y"][0, 0] == 2
    assert await serving.roll_back("m") == "1"
    await settle(serving, "m", "1")
    assert (await ask(serving, "m")).outputs["y"][0, 0] == 1
    with pytest.raises(OctavoError, match="no version before 1"):
        await serving.roll_back("m")
    assert await serving.roll_forward("m") == "2"
    await settle(serving, "m", "2")
    await serving.use_version("m", "1")
    await settle(serving, "m", "1")
    default = {status.version: status.default for status in await serving.index()}
    assert default == {"1": True, "2": False}
    with pytest.raises(NotFound):
        await serving.use_version("m", "7")


async def settle(serving: Serving, model: str, version: str) -> None:
    """Ask until the wanted version answers: until then the one before does."""
    while (await ask(serving, model)).version != version:
        await asyncio.sleep(0.01)


async def test_a_default_that_cannot_be_loaded_leaves_the_one_before_answering(
    tmp_path: Path, open_serving: Open
) -> None:
    put(tmp_path / "models", "m", times(1), BATCHED)
    serving = await open_serving(tmp_path, load_backoff=0.1)
    await ask(serving, "m")
    put(tmp_path / "models", "m", b"not an ONNX file", version=2)

    def failed() -> bool:
        return bool(serving._residency.failures.reason("m", "2"))

    while not failed():
        assert (await ask(serving, "m")).version == "1"
        await asyncio.sleep(0.01)
    for _ in range(20):
        assert (await ask(serving, "m")).version == "1"
        await asyncio.sleep(0.02)
    told = {status.version: status for status in await serving.index()}
    assert told["2"].state == "UNAVAILABLE"
    assert "onnxruntime cannot load it" in told["2"].reason
    with pytest.raises(OctavoError):
        await ask(serving, "m", version="2")


async def test_a_version_asked_for_by_number_never_answers_for_the_default(tmp_path: Path, open_serving: Open) -> None:
    for version in (1, 2):
        put(tmp_path / "models", "m", times(version), BATCHED + "version_policy { all { } }\n", version)
    serving = await open_serving(tmp_path)
    assert (await ask(serving, "m", version="1")).outputs["y"][0, 0] == 1
    answer = await ask(serving, "m")  # version 2 is not in memory, 1 is
    assert (answer.version, answer.outputs["y"][0, 0]) == ("2", 2)
    assert resident(serving) == {"m/1", "m/2"}
    assert (await ask(serving, "m", version="2")).version == "2"
    with pytest.raises(NotFound):
        await ask(serving, "m", version="3")


async def test_files_changed_in_place_are_taken_up(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", times(1), BATCHED)
    serving = await open_serving(tmp_path)
    assert (await ask(serving, "m")).outputs["y"][0, 0] == 1
    put(tmp_path / "models", "m", times(5), BATCHED)
    while (await ask(serving, "m")).outputs["y"][0, 0] != 5:
        await asyncio.sleep(0.01)
    put(tmp_path / "models", "m", times(6), BATCHED)
    await serving.load("m")  # at once, without waiting for the watcher
    assert (await ask(serving, "m")).outputs["y"][0, 0] == 6


async def test_a_model_taken_out_of_the_repository_leaves_memory(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", times(1), BATCHED)
    put(tmp_path / "models", "other", times(1), BATCHED)
    serving = await open_serving(tmp_path)
    await ask(serving, "m")
    await asyncio.sleep(0.2)  # the watcher has seen it
    shutil.rmtree(tmp_path / "models/m")
    await until(lambda: not resident(serving))
    with pytest.raises(NotFound, match="no model 'm'"):
        await ask(serving, "m")
    assert not serving.ready("m")
    assert [status.name for status in await serving.index()] == ["other"]


async def test_what_is_added_and_what_is_broken_shows_in_the_index(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "good", times(1), BATCHED)
    serving = await open_serving(tmp_path)
    assert [(s.name, s.version, s.state) for s in await serving.index()] == [("good", "1", "READY")]
    put(tmp_path / "models", "bad", times(1), "max_batch_size: many\n")
    (tmp_path / "models/empty/1").mkdir(parents=True)
    index = {status.name: status for status in await serving.index()}
    assert index["bad"].state == "UNAVAILABLE"
    assert "config.pbtxt" in index["bad"].reason
    with pytest.raises(OctavoError, match=r"config\.pbtxt"):
        await ask(serving, "bad")
    put(tmp_path / "models", "bad", times(3), BATCHED)
    while not serving.ready("bad"):
        await asyncio.sleep(0.01)
    await until_answered(serving, "bad")


async def until_answered(serving: Serving, model: str) -> None:
    while True:
        try:
            await ask(serving, model)
            return
        except OctavoError:
            await asyncio.sleep(0.02)


# Loading, memory


async def test_a_crowd_for_a_cold_model_loads_it_once(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", times(2), BATCHED)
    serving = await open_serving(tmp_path)
    answers = await asyncio.gather(*(ask(serving, "m", n) for n in range(50)))
    assert [answer.outputs["y"][0, 0] for answer in answers] == [2 * n for n in range(50)]
    (counts,) = serving.statistics("m")
    assert (counts.colds.count, counts.success.count) == (1, 50)


async def test_the_first_tier_answers_and_the_full_form_takes_its_place(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", weights(256), BATCHED)
    x = np.random.default_rng(1).standard_normal((3, 256), dtype=np.float32)
    serving = await open_serving(tmp_path, cache=str(tmp_path / "own-cache"))

    async def answer() -> np.ndarray:
        return np.asarray((await serving.infer(InferRequest("m", {"x": x}))).outputs["y"])

    first = await answer()
    assert serving.residency().models[0].tier == "quick"
    while serving.residency().models[0].tier != "full":
        np.testing.assert_allclose(await answer(), first, rtol=1e-4, atol=1e-3)
        await asyncio.sleep(0.01)
    np.testing.assert_allclose(await answer(), first, rtol=1e-4, atol=1e-3)
    await serving.unload("m")
    await serving.load("m")
    assert serving.residency().models[0].tier == "full"


async def test_a_pin_survives_pressure_and_the_rest_gives_way(tmp_path: Path, open_serving: Open) -> None:
    names = [f"m{number}" for number in range(14)]
    for number, name in enumerate(names):
        put(tmp_path / "models", name, weights(1024, number), BATCHED)  # 4 MiB each
    serving = await open_serving(tmp_path, memory_budget=44 * MIB, tiered=False)
    x = np.ones((1, 1024), dtype=np.float32)
    await serving.pin("m0")
    expected = {}
    for turn in range(3):
        for name in names[1:]:
            answer = (await serving.infer(InferRequest(name, {"x": x}))).outputs["y"]
            np.testing.assert_allclose(answer, expected.setdefault(name, answer), rtol=1e-4, atol=1e-3)
        assert "m0/1" in resident(serving), turn
    snapshot = serving.residency()
    assert snapshot.counters.evictions > 0
    assert len(snapshot.models) < len(names)
    assert sum(counts.evictions for counts in serving.statistics()) == snapshot.counters.evictions
    await serving.pin("m0", pinned=False)
    assert not any(model.pinned for model in serving.residency().models)


async def test_a_pinned_model_does_not_make_others_wait_for_what_no_model_holds(
    tmp_path: Path, open_serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2):
        put(tmp_path / "models", f"m{number}", weights(1024, number), BATCHED)  # 4 MiB each
    serving = await open_serving(tmp_path, memory_budget=44 * MIB, tiered=False, load_timeout=20)
    await serving.pin("m0")
    monkeypatch.setattr(serving._residency.charges, "charged", lambda: 44 * MIB)  # the allocator has not given it back
    await serving.infer(InferRequest("m1", {"x": np.ones((1, 1024), dtype=np.float32)}))
    assert resident(serving) == {"m0/1", "m1/1"}


async def test_loads_that_need_room_do_not_wait_for_upgrades_that_need_slots(
    tmp_path: Path, open_serving: Open
) -> None:
    names = [f"m{number}" for number in range(6)]
    for number, name in enumerate(names):
        put(tmp_path / "models", name, weights(1024, number), BATCHED)
    serving = await open_serving(tmp_path, memory_budget=14 * MIB, cache=str(tmp_path / "own-cache"), parallel_loads=1)
    x = np.ones((1, 1024), dtype=np.float32)
    for _ in range(2):
        await asyncio.gather(*(serving.infer(InferRequest(name, {"x": x}, deadline=0)) for name in names))
    assert serving.residency().counters.evictions > 0


async def test_unload_waits_for_what_is_in_flight_and_the_next_request_loads_again(
    tmp_path: Path, open_serving: Open
) -> None:
    put(tmp_path / "models", "slow", slow_model(), SLOW)
    serving = await open_serving(tmp_path)
    await serving.load("slow")
    asked = [asyncio.create_task(ask(serving, "slow", n)) for n in range(4)]
    await until(lambda: serving.residency().pending > 0)
    await serving.unload("slow")
    assert all(task.done() for task in asked)
    assert [task.result().outputs["y"][0, 0] for task in asked] == [0, 2, 4, 6]
    assert resident(serving) == set()
    assert (await ask(serving, "slow", 5)).outputs["y"][0, 0] == 10
    await serving.unload("slow")
    await serving.unload("slow")  # nothing to do, as with Triton
    with pytest.raises(NotFound):
        await serving.unload("nothing")


async def test_a_failed_load_says_why_backs_off_and_load_tries_again(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", b"not an ONNX file", BATCHED)
    serving = await open_serving(tmp_path, load_backoff=60)
    with pytest.raises(Invalid, match="onnxruntime cannot load it"):
        await ask(serving, "m")
    with pytest.raises(Unavailable, match="failed to load") as caught:
        await ask(serving, "m")
    assert 0 < caught.value.retry_after <= 60
    assert not serving.ready("m")
    with pytest.raises(Invalid):
        await serving.load("m")
    put(tmp_path / "models", "m", times(2), BATCHED)
    await until_answered(serving, "m")
    assert serving.ready("m")


async def test_a_backend_that_is_not_there_is_named(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "m", times(1), 'backend: "tensorrt"\ndefault_model_filename: "model.onnx"\n')
    serving = await open_serving(tmp_path)
    with pytest.raises(Invalid, match="no backend is called 'tensorrt'"):
        await ask(serving, "m")


# Time


async def test_a_deadline_is_kept_and_the_queue_drains(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "slow", slow_model(), SLOW.replace("64", "1"))
    serving = await open_serving(tmp_path, threads=1)
    await ask(serving, "slow")
    now = time.monotonic()
    asked = [asyncio.create_task(ask(serving, "slow", n, deadline=now + 0.001)) for n in range(30)]
    patient = asyncio.create_task(ask(serving, "slow", 7))
    outcomes = await asyncio.gather(*asked, return_exceptions=True)
    assert all(isinstance(outcome, (DeadlineExceeded, InferAnswer)) for outcome in outcomes)
    assert sum(isinstance(outcome, DeadlineExceeded) for outcome in outcomes) >= 29
    assert (await patient).outputs["y"][0, 0] == 14
    assert serving.residency().pending == 0
    assert serving.statistics("slow")[0].rows < 10  # what nobody waited for was not computed


async def test_a_full_queue_refuses_some_and_answers_the_others(tmp_path: Path, open_serving: Open) -> None:
    policy = "default_queue_policy { max_queue_size: 4 }"
    put(tmp_path / "models", "slow", slow_model(), SLOW.replace("priority_levels", f"{policy} priority_levels"))
    serving = await open_serving(tmp_path, threads=1)
    await serving.load("slow")
    outcomes = await asyncio.gather(*(ask(serving, "slow", n) for n in range(20)), return_exceptions=True)
    refused = [outcome for outcome in outcomes if isinstance(outcome, Busy)]
    assert len(refused) == 16
    assert sum(isinstance(outcome, InferAnswer) for outcome in outcomes) == 4
    assert all(error.retry_after > 0 for error in refused)


async def test_urgent_requests_overtake(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "slow", slow_model(10_000), SLOW.replace("64", "1"))
    serving = await open_serving(tmp_path, threads=1)
    await serving.load("slow")
    order: list[int] = []

    async def one(priority: int) -> None:
        await ask(serving, "slow", priority=priority)
        order.append(priority)

    first = asyncio.create_task(one(2))
    await until(lambda: serving.residency().pending or order)
    await asyncio.sleep(0.005)
    await asyncio.gather(*(one(priority) for priority in (3, 3, 0, 0, 1, 1)), first)
    assert sorted(order[1:], key=[1, 0, 3].index) == order[1:]  # 0 is the model's default, 2
    with pytest.raises(Invalid, match="over the model's 3 levels"):
        await ask(serving, "slow", priority=4)


async def test_priorities_count_without_levels_too(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "slow", slow_model(10_000), BATCHED.replace("8", "1"))
    serving = await open_serving(tmp_path, threads=1)
    await serving.load("slow")
    order: list[int] = []

    async def one(priority: int) -> None:
        await ask(serving, "slow", priority=priority)
        order.append(priority)

    first = asyncio.create_task(one(7))
    await until(lambda: serving.residency().pending or order)
    await asyncio.sleep(0.005)
    await asyncio.gather(*(one(priority) for priority in (0, 2, 0, 1, 2, 1)), first)
    assert order[1:] == [1, 1, 2, 2, 0, 0]  # without a number a request comes after those that have one


async def test_the_models_own_time_in_the_queue(tmp_path: Path, open_serving: Open) -> None:
    own = "default_queue_policy { default_timeout_microseconds: 150000 } "
    config = SLOW.replace("64", "1").replace("priority_levels", f"{own}priority_levels")
    put(tmp_path / "models", "slow", slow_model(400_000), config)
    serving = await open_serving(tmp_path, threads=1)
    assert (await ask(serving, "slow")).version == "1"  # neither loading nor computing counts
    outcomes = await asyncio.gather(*(ask(serving, "slow", n) for n in range(8)), return_exceptions=True)
    assert isinstance(outcomes[0], InferAnswer)
    assert all(isinstance(outcome, DeadlineExceeded) for outcome in outcomes[1:])
    assert "queue policy" in str(outcomes[-1])


async def test_damaged_files_are_not_ready(tmp_path: Path, open_serving: Open) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "model.onnx").write_bytes(times(1))
    serving = await open_serving(tmp_path)
    serving.repository.publish("m", source)
    (tmp_path / "models/m/1/model.onnx").write_bytes(times(1)[:-4])
    await serving.index()
    with pytest.raises(Unavailable, match=r"model\.onnx"):
        await ask(serving, "m")
    assert not serving.ready("m")
    (status,) = [one for one in await serving.index() if one.name == "m"]
    assert status.state == "UNAVAILABLE"
    assert "model.onnx" in status.reason
    (tmp_path / "models/m/1/model.onnx").write_bytes(times(1))
    os.utime(tmp_path / "models/m/1/model.onnx")
    await until(lambda: serving.ready("m"))
    assert (await ask(serving, "m")).version == "1"


async def test_pins_outlive_the_server(tmp_path: Path, open_serving: Open) -> None:
    for name in ("a", "b", "c"):
        put(tmp_path / "models", name, times(1), BATCHED)
    serving = await Serving.open(load_settings(tmp_path))
    await serving.pin("a")
    await serving.pin("b")
    await serving.pin("b", pinned=False)
    await serving.close()
    again = await open_serving(tmp_path)
    await until(lambda: resident(again) == {"a/1"})
    assert {status.name for status in await again.index() if status.pinned} == {"a"}
    shutil.rmtree(tmp_path / "models" / "a")
    await until(lambda: resident(again) == set())
    await again.pin("a", pinned=False)  # a pin of a model that has gone can be taken away
    assert json.loads((tmp_path / "pins.json").read_text()) == []


async def test_pins_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    put(tmp_path / "models", "a", times(1), BATCHED)
    for text in ("", "{}", "[1]", '["gone"]'):
        (tmp_path / "pins.json").write_text(text)
        serving = await Serving.open(load_settings(tmp_path))
        assert (await ask(serving, "a")).version == "1"
        assert not any(status.pinned for status in await serving.index())
        await serving.close()


async def test_a_caller_who_leaves_frees_the_queue(tmp_path: Path, open_serving: Open) -> None:
    put(tmp_path / "models", "slow", slow_model(), SLOW.replace("64", "1"))
    serving = await open_serving(tmp_path, threads=1)
    await serving.load("slow")
    asked = [asyncio.create_task(ask(serving, "slow")) for _ in range(20)]
    await until(lambda: serving.residency().pending == 20)
    for task in asked:
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert serving.residency().pending == 0
    await serving.unload("slow")  # no lease is left behind
    assert serving.statistics("slow")[0].rows < 5


async def test_closing_with_requests_in_flight(tmp_path: Path) -> None:
    put(tmp_path / "models", "slow", slow_model(), SLOW)
    serving = await Serving.open(load_settings(tmp_path))
    asked = [asyncio.create_task(ask(serving, "slow")) for _ in range(4)]
    await until(lambda: serving.residency().pending > 0)
    await serving.close()
    assert [task.result().outputs["y"][0, 0] for task in asked] == [2] * 4
