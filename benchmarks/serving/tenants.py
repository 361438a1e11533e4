"""Workspaces of many customers' models, in two ways.

`publish_tenants`: folders of their own whose files are hard links to one model's. On disk and in the page cache they
are one; to the server they are different models with equal content, which is what customers on one shared base are.

`publish_heads`: small networks with weights of their own, so that each holds memory that nobody shares.
"""

from __future__ import annotations

import os
import re
import shutil
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FEATURES = 384
# Hidden units by kind of model: 3, 1.5 and 0.75 MiB of weights.
HIDDEN = {"encoder": 1024, "classifier": 512, "autocomplete": 256}

_NAME = re.compile(r'^name\s*:\s*"[^"]*"', re.MULTILINE)
_HEAD_CONFIG = f"""backend: "onnxruntime"
max_batch_size: 64
input {{ name: "features" data_type: TYPE_FP32 dims: {FEATURES} }}
output {{ name: "answer" data_type: TYPE_FP32 dims: {FEATURES} }}
"""


def publish_tenants(base: Path, workspace: Path, names: Iterable[tuple[str, str]]) -> None:
    """Put models into `workspace` that are not there yet.

    Args:
        base: workspace that holds the models copied.
        workspace: made when missing.
        names: (name of the new model, name of the model it is a copy of).
    """
    for name, source in names:
        target = workspace / "models" / name
        if target.exists():
            continue
        scratch = target.with_name(f".{name}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        shutil.copytree(base / "models" / source, scratch, copy_function=os.link)
        config = scratch / "config.pbtxt"
        text = config.read_text()
        config.unlink()  # a link: writing through it would change the source
        config.write_text(_NAME.sub(f'name: "{name}"', text))
        scratch.rename(target)


def publish_heads(workspace: Path, kinds: dict[str, str]) -> None:
    """Put a network of its kind's size for every name into `workspace` where there is none yet."""
    for name, kind in kinds.items():
        target = workspace / "models" / name
        if target.exists():
            continue
        scratch = target.with_name(f".{name}.tmp")
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "1").mkdir(parents=True)
        onnx.save(_head(HIDDEN[kind], zlib.crc32(name.encode())), str(scratch / "1" / "model.onnx"))
        (scratch / "config.pbtxt").write_text(_HEAD_CONFIG)
        scratch.rename(target)


def _head(hidden: int, seed: int) -> onnx.ModelProto:
    numbers = np.random.default_rng(seed)
    weights = {
        "into": numbers.standard_normal((FEATURES, hidden), dtype=np.float32) / FEATURES**0.5,
        "out_of": numbers.standard_normal((hidden, FEATURES), dtype=np.float32) / hidden**0.5,
    }
    nodes = [
        helper.make_node("MatMul", ["features", "into"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["active"]),
        helper.make_node("MatMul", ["active", "out_of"], ["answer"]),
    ]
    given, wanted = (
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", FEATURES]) for name in ("features", "answer")
    )
    constants = [numpy_helper.from_array(array, name) for name, array in weights.items()]
    graph = helper.make_graph(nodes, "head", [given], [wanted], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
