"""BERT weights to an ONNX graph, without torch.

A folder in the format of sentence-transformers and the hub (`config.json`, `model.safetensors`) goes in; an
`onnx.ModelProto` comes out whose inputs are `input_ids` and `attention_mask` (INT64, [batch, sequence]) and whose
output is `last_hidden_state` (FP32, [batch, sequence, hidden]). Token types are all zero, as for single texts; that
row is folded into the position table. The graph is written in the operators that run fastest in
onnxruntime, so that nothing is left to optimise when it is loaded.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from octavo.errors import Invalid

Weights = dict[str, NDArray[np.float32]]

MICROSOFT = "com.microsoft"
OPSET = 18
_EXTERNAL_FROM = 1024  # bytes; smaller tensors stay inside the .onnx file
_ALIGNMENT = 4096  # of each tensor in the data file, so that it can be memory-mapped


@dataclass(frozen=True, slots=True)
class BertConfig:
    """The architecture, from `config.json`."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    intermediate: int
    positions: int
    token_types: int
    epsilon: float


def read_config(folder: Path) -> BertConfig:
    """The architecture of the checkpoint in `folder`.

    Raises:
        Invalid: no readable config.json, or an architecture other than BERT with exact GELU.
    """
    file = folder / "config.json"
    values = read_json(file)
    kind = values.get("model_type", "bert")
    if kind != "bert":
        raise Invalid(f"architecture {kind!r} is not supported", str(file), "Take a BERT, or add its model.onnx.")
    if values.get("hidden_act", "gelu") != "gelu":
        raise Invalid(f"activation {values['hidden_act']!r} is not supported", str(file), "Take one with gelu.")
    if values.get("position_embedding_type", "absolute") != "absolute":
        raise Invalid("only absolute position embeddings are supported", str(file), "Add the model's own model.onnx.")
    config = BertConfig(
        vocabulary=_positive(values, "vocab_size", file),
        hidden=_positive(values, "hidden_size", file),
        layers=_positive(values, "num_hidden_layers", file),
        heads=_positive(values, "num_attention_heads", file),
        intermediate=_positive(values, "intermediate_size", file),
        positions=_positive(values, "max_position_embeddings", file),
        token_types=_positive(values, "type_vocab_size", file),
        epsilon=float(values.get("layer_norm_eps", 1e-12)),
    )
    if config.hidden % config.heads:
        raise Invalid(f"{config.hidden} hidden units do not divide into {config.heads} heads", str(file))
    return config


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file; `Invalid` names the file when it is missing or is not one."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Invalid(f"{file.name} is missing", str(file.parent), "Give a sentence-transformers folder.") from None
    except (OSError, ValueError) as error:
        raise Invalid(f"not readable as JSON: {error}", str(file)) from None
    if not isinstance(values, dict):
        raise Invalid("not a JSON object", str(file))
    return values


def _positive(values: dict[str, Any], key: str, file: Path) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise Invalid(f"{key} is {value!r}, which is not a positive whole number", str(file))
    return value


def expected_shapes(config: BertConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor the graph needs, by its name in the checkpoint, with its shape."""
    hidden, wide = config.hidden, config.intermediate
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config.vocabulary, hidden),
        "embeddings.position_embeddings.weight": (config.positions, hidden),
        "embeddings.token_type_embeddings.weight": (config.token_types, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
    }
    for number in range(config.layers):
        at = f"encoder.layer.{number}."
        for name in ("query", "key", "value"):
            shapes[f"{at}attention.self.{name}.weight"] = (hidden, hidden)
            shapes[f"{at}attention.self.{name}.bias"] = (hidden,)
        shapes[f"{at}attention.output.dense.weight"] = (hidden, hidden)
        shapes[f"{at}attention.output.dense.bias"] = (hidden,)
        shapes[f"{at}intermediate.dense.weight"] = (wide, hidden)
        shapes[f"{at}intermediate.dense.bias"] = (wide,)
        shapes[f"{at}output.dense.weight"] = (hidden, wide)
        shapes[f"{at}output.dense.bias"] = (hidden,)
        for place in ("attention.output", "output"):
            shapes[f"{at}{place}.LayerNorm.weight"] = (hidden,)
            shapes[f"{at}{place}.LayerNorm.bias"] = (hidden,)
    return shapes


def read_weights(folder: Path, config: BertConfig) -> Weights:
    """The checkpoint's tensors in fp32, checked against the architecture.

    Raises:
        Invalid: file missing, truncated or no safetensors; a tensor missing or of another shape.
    """
    from safetensors import SafetensorError, safe_open

    file = folder / "model.safetensors"
    if not file.is_file():
        raise Invalid("model.safetensors is missing", str(folder), "Only safetensors checkpoints are read.")
    weights: Weights = {}
    try:
        with safe_open(file, framework="np") as source:
            names = set(source.keys())
            prefix = "bert." if "bert.embeddings.word_embeddings.weight" in names else ""
            for name, shape in expected_shapes(config).items():
                if prefix + name not in names:
                    raise Invalid(f"tensor {prefix + name!r} is missing", str(file), "Fetch the checkpoint again.")
                value = source.get_tensor(prefix + name)
                if value.shape != shape:
                    raise Invalid(
                        f"tensor {prefix + name!r} has shape {list(value.shape)}, config.json says {list(shape)}",
                        str(file),
                    )
                weights[name] = np.asarray(value, dtype=np.float32)
    except (SafetensorError, OSError, TypeError) as error:
        raise Invalid(f"not a readable safetensors file: {error}", str(file), "Fetch the checkpoint again.") from None
    return weights


class Encoder:
    """The ONNX graph of a BERT while it is being written; `octavo.serving.quantisation` overrides the products."""

    def __init__(self, config: BertConfig, weights: Weights) -> None:
        self.config = config
        self.weights = weights
        self.nodes: list[onnx.NodeProto] = []
        self.tensors: list[TensorProto] = []

    def constant(self, name: str, value: NDArray[np.generic]) -> str:
        """Add a constant tensor; returns its name."""
        self.tensors.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(self, operator: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Add a node of one output; returns the output's name."""
        self.nodes.append(helper.make_node(operator, list(inputs), [output], domain=domain, **attributes))
        return output

    def build(self) -> onnx.ModelProto:
        """The whole model; weights still inside the message (see `write_model`)."""
        self.node("Cast", ["attention_mask"], "mask", to=TensorProto.INT32)
        hidden = self.embed()
        for number in range(self.config.layers):
            hidden = self._layer(number, hidden)
        axes = ["batch", "sequence"]
        graph = helper.make_graph(
            self.nodes,
            "bert",
            [helper.make_tensor_value_info(name, TensorProto.INT64, axes) for name in ("input_ids", "attention_mask")],
            [helper.make_tensor_value_info(hidden, TensorProto.FLOAT, [*axes, self.config.hidden])],
            self.tensors,
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=9, producer_name="octavo")

    def positions(self) -> NDArray[np.float32]:
        """The position table with token type 0 added to each row."""
        types = self.weights["embeddings.token_type_embeddings.weight"]
        table: NDArray[np.float32] = self.weights["embeddings.position_embeddings.weight"] + types[0]
        return table

    def embed(self) -> str:
        """Word + position + token type 0, normalised; onnxruntime refuses more tokens than there are positions."""
        self.node("Cast", ["input_ids"], "ids", to=TensorProto.INT32)
        inputs = [
            "ids",
            "",
            self.constant("word_embeddings", self.weights["embeddings.word_embeddings.weight"]),
            self.constant("position_embeddings", self.positions()),
            "",
            self.constant("embedding_gamma", self.weights["embeddings.LayerNorm.weight"]),
            self.constant("embedding_beta", self.weights["embeddings.LayerNorm.bias"]),
        ]
        outputs = ["embedded", "lengths"]
        epsilon = self.config.epsilon
        self.nodes.append(
            helper.make_node("EmbedLayerNormalization", inputs, outputs, domain=MICROSOFT, epsilon=epsilon)
        )
        return outputs[0]

    def attend(self, given: str, weight: NDArray[np.float32], bias: str, to: str) -> str:
        """Self-attention; query, key and value in one product. Masks with a finite value: no NaN without tokens."""
        inputs = [given, self.constant(f"{to}qkv.weight", weight), bias, "mask"]
        return self.node("Attention", inputs, f"{to}context", MICROSOFT, num_heads=self.config.heads)

    def multiply(self, given: str, weight: NDArray[np.float32], name: str) -> str:
        """`given` [..., in] times `weight` [in, out]."""
        return self.node("MatMul", [given, self.constant(f"{name}.weight", weight)], f"{name}.product")

    def _layer(self, number: int, given: str) -> str:
        at, to = f"encoder.layer.{number}.", f"layer{number}."
        context = self.attend(given, self._packed(at, "weight"), self._packed_bias(at, to), to)
        attended = self._dense(context, at, to, "attention.output")
        middle = self._normalise(attended, given, at, to, "attention.output", f"{to}middle")
        wide = self._dense(middle, at, to, "intermediate")
        bias = self.constant(f"{to}intermediate.bias", self.weights[f"{at}intermediate.dense.bias"])
        active = self.node("BiasGelu", [wide, bias], f"{to}active", MICROSOFT)
        narrow = self._dense(active, at, to, "output")
        out = "last_hidden_state" if number == self.config.layers - 1 else f"{to}out"
        return self._normalise(narrow, middle, at, to, "output", out)

    def _packed(self, at: str, kind: str) -> NDArray[np.float32]:
        parts = [self.weights[f"{at}attention.self.{name}.{kind}"].T for name in ("query", "key", "value")]
        return np.concatenate(parts, axis=-1)

    def _packed_bias(self, at: str, to: str) -> str:
        return self.constant(f"{to}qkv.bias", self._packed(at, "bias"))

    def _dense(self, given: str, at: str, to: str, place: str) -> str:
        return self.multiply(given, self.weights[f"{at}{place}.dense.weight"].T, f"{to}{place}")

    def _normalise(self, value: str, skip: str, at: str, to: str, place: str, output: str) -> str:
        """LayerNorm(value + bias of the product before it + skip)."""
        bias = self.constant(f"{to}{place}.bias", self.weights[f"{at}{place}.dense.bias"])
        biased = self.node("Add", [value, bias], f"{to}{place}.biased")
        total = self.node("Add", [biased, skip], f"{to}{place}.sum")
        return self.layer_norm(total, f"{at}{place}", output)

    def layer_norm(self, value: str, place: str, output: str) -> str:
        """Normalise each token's vector. (The operator fused with the sums takes onnxruntime longer than all three.)"""
        inputs = [
            value,
            self.constant(f"{place}.gamma", self.weights[f"{place}.LayerNorm.weight"]),
            self.constant(f"{place}.beta", self.weights[f"{place}.LayerNorm.bias"]),
        ]
        return self.node("LayerNormalization", inputs, output, axis=-1, epsilon=self.config.epsilon)


def write_model(model: onnx.ModelProto, folder: Path) -> Path:
    """Write `model.onnx` and its tensors beside it in `model.onnx.data`, which onnxruntime memory-maps.

    Returns:
        The path of `model.onnx`.
    """
    file = folder / "model.onnx"
    data = folder / "model.onnx.data"
    with data.open("wb") as stream:
        for tensor in model.graph.initializer:
            raw = tensor.raw_data
            if len(raw) < _EXTERNAL_FROM:
                continue
            stream.write(bytes(-stream.tell() % _ALIGNMENT))
            set_external_data(tensor, data.name, offset=stream.tell(), length=len(raw))
            stream.write(raw)
            tensor.ClearField("raw_data")
        stream.flush()
        os.fsync(stream.fileno())
    file.write_bytes(model.SerializeToString())
    return file
