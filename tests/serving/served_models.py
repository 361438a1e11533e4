"""Small models for the server: graphs of a node or two, ensembles of them, and the means to build them once."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
Value = tuple[str, int, Sequence[int | str]]


def built_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """`folder`, built by the first process that asks while the others wait; an error is everyone's."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            scratch = folder.with_name(f"{folder.name}.building")
            shutil.rmtree(scratch, ignore_errors=True)
            scratch.mkdir(parents=True)
            build(scratch)
            scratch.rename(folder)
    return folder


def link_models(source: Path, target: Path) -> None:
    """A repository of the test's own whose files are links to another's."""
    shutil.copytree(source, target, copy_function=os.link)


def graph(
    nodes: Sequence[tuple[str, Sequence[str], Sequence[str]]],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    **constants: np.ndarray,
) -> bytes:
    """An ONNX file: nodes as (operator, inputs, outputs), values as (name, type, shape)."""
    made = helper.make_graph(
        [helper.make_node(operator, list(takes), list(gives)) for operator, takes, gives in nodes],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9).SerializeToString()


def times(factor: float, size: int = 4) -> bytes:
    """`y = factor * x`, FP32 [n, size]."""
    return graph(
        [("Mul", ["x", "factor"], ["y"])],
        [("x", FLOAT, ["n", size])],
        [("y", FLOAT, ["n", size])],
        factor=np.array(factor, dtype=np.float32),
    )


def weights(size: int, seed: int = 0) -> bytes:
    """`y = x @ w`, FP32 [n, size], w random: size * size * 4 bytes."""
    w = np.random.default_rng(seed).standard_normal((size, size), dtype=np.float32)
    value = [("x", FLOAT, ["n", size]), ("y", FLOAT, ["n", size])]
    return graph([("MatMul", ["x", "w"], ["y"])], value[:1], value[1:], w=w)


def put(models: Path, name: str, model: bytes | None, config: str = "", version: int = 1) -> None:
    """A model's folder as a person would copy it there."""
    folder = models / name / str(version)
    folder.mkdir(parents=True, exist_ok=True)
    if model is not None:
        scratch = folder / ".model.onnx"
        scratch.write_bytes(model)
        scratch.rename(folder / "model.onnx")
    if config:
        (folder.parent / "config.pbtxt").write_text(config)


BATCHED = 'backend: "onnxruntime"\nmax_batch_size: 8\ndynamic_batching { }\n'


def step(model: str, takes: dict[str, str], gives: dict[str, str]) -> str:
    """One step of an ensemble as config.pbtxt writes it."""
    maps = [f'input_map {{ key: "{key}" value: "{value}" }}' for key, value in takes.items()]
    maps += [f'output_map {{ key: "{key}" value: "{value}" }}' for key, value in gives.items()]
    return f'step {{ model_name: "{model}" model_version: -1 {" ".join(maps)} }}'


def ensemble(*steps: str, takes: str = "a", gives: str = "z") -> str:
    """The configuration of an ensemble of FP32 [n, 4] tensors."""
    return (
        f'platform: "ensemble"\nmax_batch_size: 8\ninput {{ name: "{takes}" data_type: TYPE_FP32 dims: 4 }}\n'
        f'output {{ name: "{gives}" data_type: TYPE_FP32 dims: 4 }}\nensemble_scheduling {{ {" ".join(steps)} }}\n'
    )


CHAIN = ensemble(step("double", {"x": "a"}, {"y": "b"}), step("triple", {"x": "b"}, {"y": "z"}))


def publish_tiny_models(models: Path) -> None:
    """`double` and `triple` (x -> y, batched), `sum` (a, b -> c, d), `words` (BYTES), `fixed` (no batch axis)."""
    put(models, "double", times(2), BATCHED)
    put(models, "triple", times(3), BATCHED)
    put(
        models,
        "sum",
        graph(
            [("Add", ["a", "b"], ["c"]), ("Sub", ["a", "b"], ["d"])],
            [("a", FLOAT, ["n", 4]), ("b", FLOAT, ["n", 4])],
            [("c", FLOAT, ["n", 4]), ("d", FLOAT, ["n", 4])],
        ),
        BATCHED,
    )
    put(
        models,
        "words",
        graph([("Identity", ["text"], ["same"])], [("text", STRING, ["n", 1])], [("same", STRING, ["n", 1])]),
        BATCHED,
    )
    put(models, "fixed", graph([("Neg", ["x"], ["y"])], [("x", FLOAT, [2, 3])], [("y", FLOAT, [2, 3])]))
