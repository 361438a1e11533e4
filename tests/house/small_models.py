"""Small models for a real server: good, slow, deadly, heavy and broken ones, made without a network."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from octavo.serving.bert import expected_shapes, read_config
from octavo.serving.minilm import build

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz", "hello", "world"]
DIMENSIONS = 32
_MAX_TOKENS = 512

_ADDER_CONFIG = """
backend: "onnxruntime"
max_batch_size: 64
input { name: "x" data_type: TYPE_FP32 dims: [ 4 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 4 ] }
dynamic_batching { }
"""

_PYTHON_CONFIG = """
backend: "python"
max_batch_size: 8
input { name: "x" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "y" data_type: TYPE_FP32 dims: [ 1 ] }
dynamic_batching { %s }
"""

_PYTHON_MODEL = """
import os, signal, time
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.ballast = np.ones(%d * 2**20, np.uint8)

    def execute(self, requests):
        answers = []
        for request in requests:
            x = pb_utils.get_input_tensor_by_name(request, "x").as_numpy()
            if x[0, 0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            if x[0, 0] == 0:
                raise RuntimeError("zero is no answer")
            if x[0, 0] < 100:
                time.sleep(float(x[0, 0]))
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("y", np.full_like(x, os.getpid()))]))
        return answers
"""


def write_model(folder: Path, config: str, model: ModelProto | bytes, version: str = "1") -> Path:
    """A model folder of one ONNX version."""
    target = folder / version
    target.mkdir(parents=True)
    (folder / "config.pbtxt").write_text(config)
    raw = model if isinstance(model, bytes) else model.SerializeToString()
    (target / "model.onnx").write_bytes(raw)
    return folder


def adder(offset: float, nodes: int = 1) -> ModelProto:
    """`y = x + offset`, FP32 [n, 4], in so many steps."""
    names = ["x", *(f"x{step}" for step in range(1, nodes)), "y"]
    steps = [helper.make_node("Add", [names[at], "offset"], [names[at + 1]]) for at in range(nodes)]
    graph = helper.make_graph(
        steps,
        "adder",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(np.array([offset / nodes], np.float32), "offset")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def write_adder(folder: Path, offset: float = 1.0, version: str = "1") -> Path:
    """A model that adds `offset`."""
    return write_model(folder, _ADDER_CONFIG, adder(offset), version)


def write_heavy(folder: Path, mebibytes: int, seed: int) -> Path:
    """A model that takes so much memory: `y = x * weights` with random weights, [n, 4]."""
    columns = mebibytes * 2**20 // (4 * 4)
    weights = np.random.default_rng(seed).normal(size=(4, columns)).astype(np.float32)
    return write_model(folder, _ADDER_CONFIG, _averaging(numpy_helper.from_array(weights, "weights")))


def write_python(folder: Path, batching: str = "", mebibytes: int = 0, code: str = "") -> Path:
    """A model in Python: sleeps `x` seconds (below 100), kills itself below 0, raises at 0; answers its process id."""
    (folder / "1").mkdir(parents=True)
    (folder / "config.pbtxt").write_text(_PYTHON_CONFIG % batching)
    (folder / "1/model.py").write_text(code or _PYTHON_MODEL % mebibytes)
    return folder


def write_embedder(folder: Path, scratch: Path) -> Path:
    """A text-embedding model with random weights, whose tokenizer pads everything to 128 as MiniLM's does."""
    scratch.mkdir(parents=True)
    config = {
        "model_type": "bert",
        "hidden_act": "gelu",
        "hidden_size": DIMENSIONS,
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "vocab_size": len(WORDS),
        "max_position_embeddings": _MAX_TOKENS,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    (scratch / "config.json").write_text(json.dumps(config))
    rng = np.random.default_rng(7)
    weights = {
        name: (rng.normal(0, 0.2, shape) + ("LayerNorm.weight" in name)).astype(np.float32)
        for name, shape in expected_shapes(read_config(scratch)).items()
    }
    save_file(weights, scratch / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(max_length=128)
    tokenizer.save(str(scratch / "tokenizer.json"))
    build(scratch, folder)
    return folder


def write_too_big(folder: Path, mebibytes: int) -> Path:
    """A model whose weights, in a file beside the graph, are larger than they look on disk: it is all holes."""
    columns = mebibytes * 2**20 // (4 * 4)
    weights = TensorProto(name="weights", data_type=TensorProto.FLOAT, dims=[4, columns])
    weights.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "model.onnx.data"), ("offset", "0"), ("length", str(columns * 16))):
        entry = weights.external_data.add()
        entry.key, entry.value = key, value
    model = _averaging(weights)
    write_model(folder, _ADDER_CONFIG, model)
    with (folder / "1/model.onnx.data").open("wb") as file:
        file.truncate(columns * 16)
    return folder


def _averaging(weights: TensorProto) -> ModelProto:
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "weights"], ["wide"]),
            helper.make_node("ReduceMean", ["wide"], ["mean"], axes=[1], keepdims=1),
            helper.make_node("Add", ["x", "mean"], ["y"]),
        ],
        "averaging",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
