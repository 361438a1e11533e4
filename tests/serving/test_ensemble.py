"""Ensembles of tiny models through the service."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import Invalid, ModelFailed, NotFound, OctavoError
from octavo.serving.inference import InferRequest

from .conftest import Open
from .served_models import CHAIN, ensemble, put, step
from .test_tensor_task import rows

DIAMOND = ensemble(
    step("sum", {"a": "left", "b": "right"}, {"c": "z"}),
    step("double", {"x": "a"}, {"y": "left"}),
    step("triple", {"x": "a"}, {"y": "right"}),
)


def ask(name: str, *values: float) -> InferRequest:
    return InferRequest(name, {"a": rows(*values)})


async def test_steps_run_in_the_order_their_tensors_ask_for(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    put(tiny_repository / "models", "diamond", None, DIAMOND)
    serving = await open_serving(tiny_repository)
    assert (await serving.infer(ask("chain", 1, 2))).outputs["z"][:, 0].tolist() == [6, 12]
    answer = await serving.infer(ask("diamond", 1, 2))
    assert answer.outputs["z"][:, 0].tolist() == [5, 10]
    assert list(answer.outputs) == ["z"]
    assert (answer.model, answer.version) == ("diamond", "1")


async def test_an_ensemble_of_ensembles(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    outer = ensemble(step("chain", {"a": "a"}, {"z": "b"}), step("chain", {"a": "b"}, {"z": "z"}))
    put(tiny_repository / "models", "outer", None, outer)
    serving = await open_serving(tiny_repository)
    assert (await serving.infer(ask("outer", 1))).outputs["z"][0, 0] == 36


async def test_metadata_load_and_pin_reach_the_steps(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    serving = await open_serving(tiny_repository)
    told = await serving.metadata("chain")
    assert (told.platform, told.inputs[0].shape, told.outputs[0].name) == ("ensemble", (-1, 4), "z")
    assert serving.residency().models == ()
    await serving.load("chain")
    assert {model.name for model in serving.residency().models} == {"double", "triple"}
    await serving.pin("chain")
    assert all(model.pinned for model in serving.residency().models)
    assert json.loads((tiny_repository / "pins.json").read_text()) == ["chain", "double", "triple"]
    await serving.pin("chain", pinned=False)
    assert not any(model.pinned for model in serving.residency().models)


@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        (InferRequest("chain", {}), "missing input 'a'"),
        (InferRequest("chain", {"a": rows(1), "b": rows(1)}), "unknown input 'b'"),
        (InferRequest("chain", {"a": rows(1)}, outputs=("b",)), "unknown output 'b'"),
        (InferRequest("chain", {"a": np.zeros((1, 3), dtype=np.float32)}), r"the model takes \[-1, 4\]"),
        (InferRequest("chain", {"a": np.zeros((1, 4), dtype=np.int64)}), "is INT64"),
    ],
)
async def test_requests_that_do_not_fit(
    tiny_repository: Path, open_serving: Open, request_: InferRequest, complaint: str
) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    serving = await open_serving(tiny_repository)
    with pytest.raises(Invalid, match=complaint):
        await serving.infer(request_)


BROKEN: list[tuple[str, type[OctavoError], str]] = [
    (
        ensemble(step("sum", {"a": "a", "b": "q"}, {"c": "p"}), step("double", {"x": "p"}, {"y": "q"}), gives="q"),
        Invalid,
        "wait for one another",
    ),
    (ensemble(step("double", {"x": "nowhere"}, {"y": "z"})), Invalid, "'nowhere' is made by no step"),
    (ensemble(step("double", {"x": "a"}, {"y": "b"})), Invalid, "'z' is made by no step"),
    (
        ensemble(step("double", {"x": "a"}, {"y": "z"}), step("triple", {"x": "a"}, {"y": "z"})),
        Invalid,
        "'z' is made twice",
    ),
    (ensemble(step("absent", {"x": "a"}, {"y": "z"})), NotFound, "absent"),
    (ensemble(step("double", {"x": "a"}, {"nothing": "z"})), (Invalid, ModelFailed), "'nothing'"),
    (ensemble(step("double", {"w": "a"}, {"y": "z"})), Invalid, "unknown input 'w'"),
    (ensemble(step("broken", {"a": "a"}, {"z": "z"})), Invalid, "nest over"),
]


@pytest.mark.parametrize(("config", "kind", "complaint"), BROKEN)
async def test_ensembles_that_cannot_work_say_why(
    tiny_repository: Path, open_serving: Open, config: str, kind: type[OctavoError], complaint: str
) -> None:
    put(tiny_repository / "models", "broken", None, config)
    serving = await open_serving(tiny_repository)
    with pytest.raises(kind, match=complaint):
        await serving.infer(ask("broken", 1))


async def test_one_that_contains_itself_is_not_loaded_for_ever(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "itself", None, ensemble(step("itself", {"a": "a"}, {"z": "z"})))
    serving = await open_serving(tiny_repository)
    for way in (serving.load, serving.pin):
        with pytest.raises(Invalid, match="nest over"):
            await way("itself")


async def test_an_optional_input_may_be_left_out(tiny_repository: Path, open_serving: Open) -> None:
    config = CHAIN.replace("dims: 4 }", 'dims: 4 }\ninput { name: "o" data_type: TYPE_FP32 dims: 4 optional: true }', 1)
    put(tiny_repository / "models", "lenient", None, config)
    serving = await open_serving(tiny_repository)
    assert (await serving.infer(ask("lenient", 1))).outputs["z"][0, 0] == 6


async def test_steps_are_batched_across_requests(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "diamond", None, DIAMOND)
    serving = await open_serving(tiny_repository, threads=1)
    await serving.load("diamond")
    answers = await asyncio.gather(*(serving.infer(ask("diamond", n)) for n in range(40)))
    assert [answer.outputs["z"][0, 0] for answer in answers] == [5 * n for n in range(40)]
    (double,) = serving.statistics("double")
    assert (double.rows, double.success.count) == (40, 40)
    assert double.compute.count < 40
    (whole,) = serving.statistics("diamond")
    assert whole.success.count == 40


async def test_a_step_that_fails_fails_the_request_and_nothing_else(tiny_repository: Path, open_serving: Open) -> None:
    put(tiny_repository / "models", "chain", None, CHAIN)
    put(tiny_repository / "models", "bad", b"not an ONNX file")
    put(tiny_repository / "models", "failing", None, CHAIN.replace("triple", "bad"))
    serving = await open_serving(tiny_repository)
    with pytest.raises(OctavoError, match="bad/1"):
        await serving.infer(ask("failing", 1))
    assert (await serving.infer(ask("chain", 1))).outputs["z"][0, 0] == 6
    assert serving.statistics("failing")[0].fail.count == 1
