"""The peers' model code: texts to sentence vectors, as their own examples write it.

Runs in the peers' environments (onnxruntime, tokenizers and numpy; no octavo). `SentenceEncoder` pads every batch to
its longest text, as the transformers tokenizer with `padding=True` does in the peers' examples, on one session with
onnxruntime's default threads. `BucketedEncoder` is what a careful author could add: it cuts the batch the server
formed into groups of similar length before it pads.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnxruntime
from tokenizers import Encoding, Tokenizer

MAX_TOKENS = 512
TOKEN_BUDGET = 2048
LENGTH_WINDOW = 0.25


class SentenceEncoder:
    """Tokenise, pad to the longest, run, mean-pool, normalise."""

    def __init__(self, onnx_file: Path, tokenizer_file: Path) -> None:
        self.tokenizer = Tokenizer.from_file(str(tokenizer_file))
        self.tokenizer.enable_truncation(MAX_TOKENS)
        self.tokenizer.no_padding()
        self.session = onnxruntime.InferenceSession(str(onnx_file), providers=["CPUExecutionProvider"])
        self.input_names = [node.name for node in self.session.get_inputs()]

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 (len(texts), width)."""
        return self._run(self.tokenizer.encode_batch(texts))

    def _run(self, encodings: list[Encoding]) -> np.ndarray:
        longest = max(len(encoding.ids) for encoding in encodings)
        ids = np.zeros((len(encodings), longest), dtype=np.int64)
        mask = np.zeros_like(ids)
        for row, encoding in enumerate(encodings):
            ids[row, : len(encoding.ids)] = encoding.ids
            mask[row, : len(encoding.ids)] = 1
        given = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        output = self.session.run(None, {name: given[name] for name in self.input_names})[0]
        return _pool(output, mask)


class BucketedEncoder(SentenceEncoder):
    """The same, in groups whose lengths lie within `LENGTH_WINDOW` and whose padded size fits `TOKEN_BUDGET`."""

    def encode(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 (len(texts), width), in the order given."""
        encodings = self.tokenizer.encode_batch(texts)
        groups = _groups([len(encoding.ids) for encoding in encodings])
        vectors = [self._run([encodings[row] for row in group]) for group in groups]
        order = np.concatenate([np.asarray(group) for group in groups])
        answer = np.empty((len(texts), vectors[0].shape[1]), dtype=np.float32)
        answer[order] = np.concatenate(vectors)
        return answer


def _groups(lengths: list[int]) -> list[list[int]]:
    groups: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        group = groups[-1] if groups else None
        if group is not None:
            longest = lengths[group[0]]
            if lengths[row] >= longest * (1 - LENGTH_WINDOW) and longest * (len(group) + 1) <= TOKEN_BUDGET:
                group.append(row)
                continue
        groups.append([row])
    return groups


def _pool(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    if output.ndim == 3:
        weights = mask[:, :, None].astype(np.float32)
        output = (output * weights).sum(axis=1) / weights.sum(axis=1)
    return (output / np.linalg.norm(output, axis=1, keepdims=True)).astype(np.float32)


def from_environment(*, bucketed: bool) -> SentenceEncoder:
    """The encoder over the files named by `BENCH_ONNX` and `BENCH_TOKENIZER`."""
    kind = BucketedEncoder if bucketed else SentenceEncoder
    return kind(Path(os.environ["BENCH_ONNX"]), Path(os.environ["BENCH_TOKENIZER"]))
