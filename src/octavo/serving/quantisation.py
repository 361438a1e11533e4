"""BERT in 8-bit integers: about a quarter of the size and less than half the CPU time of fp32.

Weights are rounded per output column, activations as they come, one scale for the whole batch. A few tokens have
activations many times larger than the rest, which would waste the 8 bits of all others; so each token's vector is
divided by its largest value before the two products of the feed-forward part, and the result multiplied again. On
MiniLM's golden texts this takes half of the error away for 5 % of the time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto, helper

from octavo.serving.bert import MICROSOFT, Encoder

_LEAST_PEAK = 0.25  # a token's largest value counts as at least this; also above the magnitude of GELU's minimum


class Int8Encoder(Encoder):
    """Writes the same network with integer products and integer word embeddings."""

    def embed(self) -> str:
        """Word vectors of 8 bits with a scale each, brought back to fp32 as they are looked up.

        Made of plain operators: the fused one that would do the same reads past the table for a wrong index.
        """
        rounded, scales = quantise_rows(self.weights["embeddings.word_embeddings.weight"])
        words = self.node("Gather", [self.constant("word_embeddings", rounded), "input_ids"], "words")
        scale = self.node("Gather", [self.constant("word_scales", scales), "input_ids"], "words.scale")
        steps = self.node("Cast", [words], "words.steps", to=TensorProto.FLOAT)
        looked_up = self.node("Mul", [steps, scale], "words.vectors")
        table = self.constant("position_embeddings", self.positions())
        first = self.constant("first", np.zeros(1, dtype=np.int64))
        length = self.node("Shape", ["input_ids"], "length", start=1, end=2)
        places = self.node("Slice", [table, first, length], "places")
        return self.layer_norm(self.node("Add", [looked_up, places], "embeddings.sum"), "embeddings", "embedded")

    def attend(self, given: str, weight: NDArray[np.float32], bias: str, to: str) -> str:
        """Self-attention whose product for query, key and value is in integers."""
        rounded, scales = quantise_columns(weight)
        active = [f"{to}given", f"{to}given.scale", f"{to}given.zero"]
        self.nodes.append(helper.make_node("DynamicQuantizeLinear", [given], active))
        inputs = [
            active[0],
            self.constant(f"{to}qkv.weight", rounded),
            bias,
            active[1],
            self.constant(f"{to}qkv.scale", scales),
            "mask",
            active[2],
        ]
        return self.node("QAttention", inputs, f"{to}context", MICROSOFT, num_heads=self.config.heads)

    def multiply(self, given: str, weight: NDArray[np.float32], name: str) -> str:
        """An integer product; in the feed-forward part each token is brought to the same peak first."""
        rounded, scales = quantise_columns(weight)
        constants = [self.constant(f"{name}.weight", rounded), self.constant(f"{name}.scale", scales)]
        if name.endswith("attention.output"):
            return self.node("DynamicQuantizeMatMul", [given, *constants], f"{name}.product", MICROSOFT)
        peak = self._peak(given, name)
        even = self.node("Div", [given, peak], f"{name}.even")
        product = self.node("DynamicQuantizeMatMul", [even, *constants], f"{name}.even_product", MICROSOFT)
        return self.node("Mul", [product, peak], f"{name}.product")

    def _peak(self, given: str, name: str) -> str:
        """The largest magnitude in each token's vector, [batch, sequence, 1]."""
        if not any(tensor.name == "least_peak" for tensor in self.tensors):
            self.constant("least_peak", np.array([_LEAST_PEAK], dtype=np.float32))
            self.constant("last_axis", np.array([-1], dtype=np.int64))
        # GELU never goes below -0.17: the second product's input needs no absolute value
        magnitude = self.node("Abs", [given], f"{name}.size") if name.endswith("intermediate") else given
        largest = self.node("ReduceMax", [magnitude, "last_axis"], f"{name}.largest", keepdims=1)
        return self.node("Max", [largest, "least_peak"], f"{name}.peak")


def quantise_columns(weight: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A matrix [in, out] as int8, symmetric, with one scale per output column."""
    scales = np.maximum(np.abs(weight).max(axis=0) / 127, np.finfo(np.float32).tiny).astype(np.float32)
    return np.clip(np.rint(weight / scales), -127, 127).astype(np.int8), scales


def quantise_rows(table: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """A table [rows, width] as int8, symmetric, with one scale per row: [rows, 1]."""
    rounded, scales = quantise_columns(table.T)
    return rounded.T, scales[:, None]
