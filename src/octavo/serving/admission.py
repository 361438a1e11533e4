"""How a request stands in its model's queue: its pieces, its priority, and how long it waits for its turn."""

from __future__ import annotations

import asyncio
import time

from octavo.errors import DeadlineExceeded, Invalid
from octavo.serving.gathering import Piece
from octavo.serving.inference import InferRequest
from octavo.serving.loading import ModelTask
from octavo.serving.repository import ModelVersion

_LONG_TEXT = 20_000  # bytes; longer requests are tokenised off the event loop
_LAST = 2**62  # the rank of requests without a priority, where the model has no levels


def priority_of(request: InferRequest, version: ModelVersion) -> int:
    """1 is the most urgent; a request without a number has the model's default level, or comes after all numbers."""
    dynamic = version.config.dynamic_batching
    levels = dynamic.priority_levels if dynamic else 0
    if levels and request.priority > levels:
        raise Invalid(f"priority {request.priority} is over the model's {levels} levels", version.name)
    if request.priority:
        return request.priority
    return dynamic.default_priority_level if dynamic and levels else _LAST


def patience_of(request: InferRequest, version: ModelVersion) -> float:
    """Seconds the model's queue policy lets the request wait for its turn; 0 when it says nothing."""
    dynamic = version.config.dynamic_batching
    if dynamic is None:
        return 0.0
    level = request.priority or dynamic.default_priority_level
    policy = dynamic.priority_queue_policy.get(level, dynamic.default_queue_policy)
    return 0.0 if policy.timeout_action == "DELAY" else policy.default_timeout_us / 1e6


async def cut(task: ModelTask, request: InferRequest) -> list[Piece]:
    """The request's pieces; long texts are tokenised in a thread, for no longer than the deadline allows."""
    if _text_bytes(request) <= _LONG_TEXT:
        return task.pieces(request)
    try:
        async with asyncio.timeout(request.deadline - time.monotonic()):
            return await asyncio.to_thread(task.pieces, request)
    except TimeoutError:
        raise DeadlineExceeded(
            "the deadline passed while the text was cut into tokens", request.model, "Send less, or allow more time."
        ) from None


def _text_bytes(request: InferRequest) -> int:
    text = request.inputs.get("text")
    return sum(map(len, text.ravel().tolist())) if text is not None and text.dtype == object else 0
