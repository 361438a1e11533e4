"""`model.py` of Triton's Python backend: which model it is tells its name.

"wide" answers 384 floats to four, "minilm" encodes texts as the other peers do.
"""

from __future__ import annotations

import os
import sys
from typing import Any

sys.path[:0] = os.environ["BENCH_PACKAGES"].split(os.pathsep)  # the stub's interpreter has none of its own

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402


class TritonPythonModel:
    """A batch of requests in, one response each out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the weights."""
        self._run = _Texts() if args["model_name"] == "minilm" else _Numbers()

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run what Triton's dynamic batcher put together as one batch."""
        given, of = self._run.input, self._run.output
        arrays = [pb_utils.get_input_tensor_by_name(request, given).as_numpy() for request in requests]
        found = self._run(np.concatenate(arrays))
        ends = np.cumsum([len(array) for array in arrays])[:-1]
        return [pb_utils.InferenceResponse([pb_utils.Tensor(of, part)]) for part in np.split(found, ends)]


class _Numbers:
    input, output = "x", "y"

    def __init__(self) -> None:
        self._weights = np.load(os.environ["BENCH_WEIGHTS"])

    def __call__(self, given: np.ndarray) -> np.ndarray:
        return given @ self._weights


class _Texts:
    input, output = "text", "embedding"

    def __init__(self) -> None:
        from sentence_encoder import from_environment

        self._encoder = from_environment(bucketed=False)

    def __call__(self, given: np.ndarray) -> np.ndarray:
        return self._encoder.encode([text.decode() for text in given[:, 0]])
