"""Tensor models through the service: checks, merging, reshape, and what config.pbtxt may declare."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferRequest
from octavo.serving.tensors import Tensors

from .conftest import Open
from .served_models import BATCHED, FLOAT, INT64, graph, put, times


def rows(*values: float) -> np.ndarray:
    return np.array([[value] * 4 for value in values], dtype=np.float32)


async def test_outputs_are_those_wanted(tiny_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(tiny_repository)
    inputs: Tensors = {"a": rows(5, 1), "b": rows(2, 3)}
    both = await serving.infer(InferRequest("sum", inputs))
    assert {name: array[:, 0].tolist() for name, array in both.outputs.items()} == {"c": [7, 4], "d": [3, -2]}
    one = await serving.infer(InferRequest("sum", inputs, outputs=("d",)))
    assert list(one.outputs) == ["d"]


async def test_requests_at_once_share_runs_and_get_their_own_rows(tiny_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(tiny_repository, threads=1)
    await serving.load("double")
    sizes = [1, 3, 2, 1, 4, 2, 1, 1, 8, 3] * 4
    asked = [rows(*(number * 10 + row for row in range(size))) for number, size in enumerate(sizes)]
    answers = await asyncio.gather(*(serving.infer(InferRequest("double", {"x": x})) for x in asked))
    for x, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
    (counts,) = serving.statistics("double")
    assert counts.rows == sum(sizes)
    assert counts.compute.count < len(sizes)
    assert max(counts.batches) <= 8


async def test_text_goes_through_unchanged(tiny_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(tiny_repository)
    text = np.array([["日本".encode()], [b""], ["🙂".encode()]], dtype=object)
    answer = await serving.infer(InferRequest("words", {"text": text}))
    assert answer.outputs["same"].tolist() == text.tolist()
    with pytest.raises(Invalid, match="not UTF-8"):
        await serving.infer(InferRequest("words", {"text": np.array([[b"\xff"]], dtype=object)}))


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({}, "missing input 'x'"),
        ({"x": rows(1), "w": rows(1)}, "unknown input 'w'"),
        ({"x": rows(1).astype(np.int64)}, "is INT64, the model takes FP32"),
        ({"x": np.zeros((1, 5), dtype=np.float32)}, r"has shape \[1, 5\], the model takes \[-1, 4\]"),
        ({"x": np.zeros(4, dtype=np.float32)}, r"has shape \[4\]"),
        ({"x": np.array(1, dtype=np.float32)}, r"has shape \[\]"),
        ({"x": np.zeros((0, 4), dtype=np.float32)}, "zero rows"),
        ({"x": np.zeros((9, 4), dtype=np.float32)}, "has 9 rows"),
    ],
)
async def test_what_does_not_fit_is_refused_and_said(
    tiny_repository: Path, open_serving: Open, inputs: Tensors, complaint: str
) -> None:
    serving = await open_serving(tiny_repository)
    with pytest.raises(Invalid, match=complaint):
        await serving.infer(InferRequest("double", inputs))
    with pytest.raises(Invalid, match="unknown output 'nothing'"):
        await serving.infer(InferRequest("double", {"x": rows(1)}, outputs=("nothing",)))
    assert (await serving.infer(InferRequest("double", {"x": rows(1)}))).outputs["y"][0, 0] == 2


async def test_inputs_of_one_request_have_one_batch_size(tiny_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(tiny_repository)
    with pytest.raises(Invalid, match="input 'b' has 1 rows, the first input has 2"):
        await serving.infer(InferRequest("sum", {"a": rows(1, 2), "b": rows(1)}))


RESHAPED = """backend: "onnxruntime"
max_batch_size: 8
dynamic_batching { }
input { name: "x" data_type: TYPE_FP32 dims: [2, -1] reshape { shape: [-1] } }
output { name: "y" data_type: TYPE_FP32 dims: [4, 1] reshape { shape: [4] } }
"""


async def test_reshape_is_what_the_model_gets_and_dims_what_clients_send(tmp_path: Path, open_serving: Open) -> None:
    # Triton's rule: a -1 of `reshape` stands for a -1 of `dims`; fixed axes may come and go around it.
    put(tmp_path / "models", "scalars", times(2), RESHAPED.replace("[2, -1]", "[4, 1]").replace("[-1]", "[4]"))
    serving = await open_serving(tmp_path)
    told = await serving.metadata("scalars")
    assert [spec.shape for spec in (*told.inputs, *told.outputs)] == [(-1, 4, 1), (-1, 4, 1)]
    asked = [np.arange(4 * n, dtype=np.float32).reshape(n, 4, 1) for n in (1, 3, 2)]
    answers = await asyncio.gather(*(serving.infer(InferRequest("scalars", {"x": x})) for x in asked))
    for x, answer in zip(asked, answers, strict=True):
        np.testing.assert_array_equal(answer.outputs["y"], 2 * x)
    with pytest.raises(Invalid, match=r"the model takes \[-1, 4, 1\]"):
        await serving.infer(InferRequest("scalars", {"x": rows(1)}))


async def test_reshape_without_a_batch_axis(tmp_path: Path, open_serving: Open) -> None:
    config = """backend: "onnxruntime"
input { name: "x" data_type: TYPE_FP32 dims: [4] reshape { shape: [1, 4] } }
output { name: "y" data_type: TYPE_FP32 dims: [4] reshape { shape: [1, 4] } }
"""
    put(tmp_path / "models", "flat", times(2), config)
    serving = await open_serving(tmp_path)
    answer = await serving.infer(InferRequest("flat", {"x": np.arange(4, dtype=np.float32)}))
    assert answer.outputs["y"].tolist() == [0, 2, 4, 6]


async def test_declared_dims_narrow_what_the_model_leaves_open(tmp_path: Path, open_serving: Open) -> None:
    model = graph([("Neg", ["x"], ["y"])], [("x", FLOAT, ["n", "m"])], [("y", FLOAT, ["n", "m"])])
    put(tmp_path / "models", "open", model, BATCHED + 'input { name: "x" data_type: TYPE_FP32 dims: 3 }\n')
    serving = await open_serving(tmp_path)
    assert (await serving.metadata("open")).inputs[0].shape == (-1, 3)
    with pytest.raises(Invalid, match=r"takes \[-1, 3\]"):
        await serving.infer(InferRequest("open", {"x": rows(1)}))


async def test_only_declared_outputs_are_given(tmp_path: Path, open_serving: Open) -> None:
    model = graph(
        [("Neg", ["x"], ["y"]), ("Abs", ["x"], ["z"])],
        [("x", FLOAT, ["n", 2])],
        [("y", FLOAT, ["n", 2]), ("z", FLOAT, ["n", 2])],
    )
    put(tmp_path / "models", "half", model, BATCHED + 'output { name: "z" data_type: TYPE_FP32 dims: 2 }\n')
    serving = await open_serving(tmp_path)
    answer = await serving.infer(InferRequest("half", {"x": -np.ones((1, 2), dtype=np.float32)}))
    assert {name: array.tolist() for name, array in answer.outputs.items()} == {"z": [[1, 1]]}


@pytest.mark.parametrize(
    ("declared", "complaint"),
    [
        ('input { name: "w" data_type: TYPE_FP32 dims: 4 }', "the model has no input 'w'"),
        ('output { name: "w" data_type: TYPE_FP32 dims: 4 }', "the model has no output 'w'"),
        ('input { name: "x" data_type: TYPE_INT64 dims: 4 }', "input 'x' is declared INT64, the model's is FP32"),
        ('input { name: "x" data_type: TYPE_FP32 dims: 5 }', r"input 'x' has dims \[-1, 5\] with the batch axis"),
        ('output { name: "y" data_type: TYPE_FP32 dims: [4, 1] }', r"output 'y' has dims \[-1, 4, 1\]"),
        ('parameters { key: "token_budget" value { string_value: "many" } }', "parameter 'token_budget' is 'many'"),
    ],
)
async def test_a_declaration_that_does_not_match_the_model_is_named(
    tmp_path: Path, open_serving: Open, declared: str, complaint: str
) -> None:
    put(tmp_path / "models", "wrong", times(2), f"{BATCHED}{declared}\n")
    serving = await open_serving(tmp_path)
    with pytest.raises(Invalid, match=complaint) as caught:
        await serving.infer(InferRequest("wrong", {"x": rows(1)}))
    assert caught.value.where == "wrong/config.pbtxt"


async def test_every_input_of_the_model_is_declared_or_none(tmp_path: Path, open_serving: Open) -> None:
    model = graph([("Add", ["a", "b"], ["c"])], [("a", INT64, ["n"]), ("b", INT64, ["n"])], [("c", INT64, ["n"])])
    put(tmp_path / "models", "partly", model, BATCHED + 'input { name: "a" data_type: TYPE_INT64 dims: [] }\n')
    serving = await open_serving(tmp_path)
    with pytest.raises(OctavoError, match=r"input 'b' is not declared|dims"):
        await serving.metadata("partly")


async def test_a_fixed_first_axis_is_no_batch_axis(tmp_path: Path, open_serving: Open) -> None:
    model = graph([("Neg", ["x"], ["y"])], [("x", FLOAT, [1, 4])], [("y", FLOAT, [1, 4])])
    put(tmp_path / "models", "single", model, BATCHED)
    put(tmp_path / "models", "free", model, 'backend: "onnxruntime"\nmax_batch_size: 0\n')
    serving = await open_serving(tmp_path)
    with pytest.raises(Invalid, match="max_batch_size is 8, but the first axis of 'x' is always 1") as caught:
        await serving.metadata("single")
    assert caught.value.where == "single/config.pbtxt"
    assert (await serving.infer(InferRequest("free", {"x": rows(3)}))).outputs["y"].tolist() == [[-3] * 4]


async def test_outputs_that_cannot_be_split_are_computed_one_by_one(tmp_path: Path, open_serving: Open) -> None:
    model = graph([("Unique", ["x"], ["y"])], [("x", FLOAT, ["n", 4])], [("y", FLOAT, ["k"])])
    put(tmp_path / "models", "unique", model, BATCHED)
    serving = await open_serving(tmp_path, threads=1)
    await serving.load("unique")
    asked = [rows(number, number + 1) for number in range(20)]
    answers = await asyncio.gather(*(serving.infer(InferRequest("unique", {"x": x})) for x in asked))
    assert [answer.outputs["y"].tolist() for answer in answers] == [[n, n + 1] for n in range(20)]


PYTHON = """
import numpy as np
import triton_python_backend_utils as pb_utils

class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "x", "data_type": "TYPE_FP32", "dims": [4]})
        config.add_output({"name": "y", "data_type": "TYPE_FP32", "dims": [4]})
        config.set_max_batch_size(4)
        config.set_dynamic_batching()
        return config

    def execute(self, requests):
        found = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", x + len(requests))]))
        return found
"""


async def test_a_python_model_batches_as_it_configured_itself(tmp_path: Path, open_serving: Open) -> None:
    folder = tmp_path / "models/self/1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text(PYTHON)
    serving = await open_serving(tmp_path, allow_code=True, threads=1)
    await serving.load("self")
    assert (await serving.metadata("self")).inputs[0].shape == (-1, 4)
    with pytest.raises(Invalid, match=r"has 5 rows.*At most 4"):
        await serving.infer(InferRequest("self", {"x": rows(1, 2, 3, 4, 5)}))
    answers = await asyncio.gather(*(serving.infer(InferRequest("self", {"x": rows(0)})) for _ in range(12)))
    together = [int(answer.outputs["y"][0, 0]) for answer in answers]
    assert max(together) > 1
    assert max(together) <= 4
