"""Tensor requests of a model as its configuration declares them: merged along the batch axis, run, split again."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from octavo.errors import Invalid, ModelFailed
from octavo.serving.backend import RequestRunner, Runner
from octavo.serving.gathering import Piece
from octavo.serving.inference import InferRequest
from octavo.serving.interface import Interface
from octavo.serving.loading import RunnerSlot
from octavo.serving.model_config import ModelConfig
from octavo.serving.tensors import Tensors, TensorSpec


class TensorTask:
    """A model asked with the tensors it declares.

    Requests travel together when the configuration has `max_batch_size` and `dynamic_batching`, as in Triton.
    """

    def __init__(self, slot: RunnerSlot, config: ModelConfig, seen: Interface) -> None:
        self._slot = slot
        self._seen = seen
        self._name = config.name
        self._max_rows = config.max_batch_size
        self._merges = config.max_batch_size > 0 and config.dynamic_batching is not None
        self.inputs: tuple[TensorSpec, ...] = seen.inputs
        self.outputs: tuple[TensorSpec, ...] = seen.outputs
        self._specs = {spec.name: spec for spec in seen.inputs}

    def pieces(self, request: InferRequest) -> list[Piece]:
        """The request as one piece, checked against the model's inputs.

        Raises:
            Invalid: unknown, missing or ill-shaped inputs; too many rows; an output the model does not have.
        """
        self._check(request)
        first = next(iter(request.inputs.values()), None)
        batched = self._max_rows > 0 and first is not None
        rows = int(first.shape[0]) if batched and first is not None and first.ndim else 1
        if batched:
            self._check_rows(request.inputs, rows)
        shape: object = object()  # equal to nothing: travels alone
        if self._merges:
            shape = tuple((name, array.shape[1:], array.dtype.str) for name, array in sorted(request.inputs.items()))
        return [Piece(request, shape, rows=rows)]

    def run(self, pieces: Sequence[Piece]) -> list[Any]:
        """One `Tensors` (or error) per piece."""
        with self._slot.lease() as runner:
            if isinstance(runner, RequestRunner):
                requests: list[InferRequest] = [piece.payload for piece in pieces]
                return list(runner.run_requests([request.inputs for request in requests], requests))
            inputs = [self._seen.to_model(piece.payload.inputs, self._name) for piece in pieces]
            if len(pieces) == 1:
                return [self._seen.to_client(runner.run(inputs[0]), self._name)]
            return self._run_merged(runner, inputs, [piece.rows for piece in pieces])

    def answer(self, request: InferRequest, results: list[Any]) -> Tensors:
        """The wanted outputs of the one piece."""
        outputs: Tensors = results[0]
        return {name: outputs[name] for name in request.outputs} if request.outputs else outputs

    def _run_merged(self, runner: Runner, inputs: Sequence[Tensors], rows: Sequence[int]) -> list[Tensors]:
        merged = {name: np.concatenate([one[name] for one in inputs]) for name in inputs[0]}
        outputs = runner.run(merged)
        total = sum(rows)
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != total:
                raise ModelFailed(
                    f"output {name!r} has shape {list(array.shape)} for a batch of {total} rows",
                    self._name,
                    "Set max_batch_size: 0 for a model whose outputs have no batch axis.",
                )
        shown = self._seen.to_client(outputs, self._name)
        edges = np.cumsum([0, *rows])
        return [{name: array[start:stop] for name, array in shown.items()} for start, stop in itertools.pairwise(edges)]

    def _check(self, request: InferRequest) -> None:
        for name, array in request.inputs.items():
            spec = self._specs.get(name)
            if spec is None:
                raise Invalid(f"unknown input {name!r}", self._name, f"It takes {', '.join(self._specs) or 'nothing'}.")
            spec.check(array, self._name)
        missing = [s.name for s in self.inputs if not s.optional and s.name not in request.inputs]
        if missing:
            raise Invalid(f"missing input {missing[0]!r}", self._name, f"It takes {', '.join(self._specs)}.")
        known = {spec.name for spec in self.outputs}
        for name in request.outputs:
            if name not in known:
                raise Invalid(f"unknown output {name!r}", self._name, f"It gives {', '.join(sorted(known))}.")

    def _check_rows(self, inputs: Tensors, rows: int) -> None:
        for name, array in inputs.items():
            if array.ndim == 0 or array.shape[0] != rows:
                raise Invalid(
                    f"input {name!r} has {array.shape[0] if array.ndim else 'no'} rows, the first input has {rows}",
                    self._name,
                    "All inputs of one request have the same batch size.",
                )
        if rows == 0:
            raise Invalid("the request has zero rows", self._name, "Send at least one.")
        if rows > self._max_rows:
            raise Invalid(f"the request has {rows} rows", self._name, f"At most {self._max_rows} (max_batch_size).")
