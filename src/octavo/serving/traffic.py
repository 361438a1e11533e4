"""An endpoint's traffic: each request to one variant, copies to shadows, and what each variant made of it."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import numpy as np

from octavo.errors import OctavoError
from octavo.serving.endpoint import Endpoint, Variant
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.statistics import Duration, LatencyHistogram
from octavo.serving.tensors import Tensors

MAX_SHADOWS = 64
"""Copies on their way at once; more are dropped and counted: a slow shadow must not hold up the server."""

_RELATIVE, _ABSOLUTE = 1e-3, 1e-5

Infer = Callable[[InferRequest], Awaitable[InferAnswer]]


@dataclass(slots=True)
class VariantStatistics:
    """What became of a variant's requests since the server started.

    Of a shadow, `agreed` of `compared` answers were those of the variant that answered (numbers within 0.1 %), and
    `dropped` copies were not sent because too many were on their way. `latency` has the answers of the last one to two
    minutes.
    """

    endpoint: str
    variant: str
    successes: Duration = field(default_factory=Duration)
    failures: Duration = field(default_factory=Duration)
    compared: int = 0
    agreed: int = 0
    dropped: int = 0
    latency: LatencyHistogram = field(default_factory=LatencyHistogram)

    @property
    def requests(self) -> int:
        """Answered or failed."""
        return self.successes.count + self.failures.count

    def plain(self) -> dict[str, Any]:
        """For JSON: counts, and the percentiles of the last minutes' answers in seconds (0 without any)."""
        plain = {name.name: getattr(self, name.name) for name in fields(self) if name.name != "latency"}
        plain |= {"successes": asdict(self.successes), "failures": asdict(self.failures)}
        return plain | {"p50": self.latency.percentile(0.5), "p99": self.latency.percentile(0.99)}


class Traffic:
    """Sends the requests for endpoints on to models.

    Args:
        infer: answers a request for a model of the repository.
    """

    def __init__(self, infer: Infer) -> None:
        self._infer = infer
        self._statistics: dict[tuple[str, str], VariantStatistics] = {}
        self._shadows: set[asyncio.Task[None]] = set()

    async def answer(self, endpoint: Endpoint, request: InferRequest) -> InferAnswer:
        """The answer of one variant, under the endpoint's name; its variant is in the answer's `variant`.

        Raises:
            NotFound: no such variant, or its model is not there.
            OctavoError: what the model said.
        """
        variant = endpoint.choose(request.variant, request.session)
        copies = [shadow for shadow in endpoint.shadows if random.random() < shadow.weight and shadow is not variant]
        answer = await self._measured(endpoint, variant, request)
        for shadow in copies:
            self._copy(endpoint, shadow, request, answer.outputs)
        answer.model, answer.variant = endpoint.name, variant.name
        return answer

    def statistics(self, endpoint: str) -> list[VariantStatistics]:
        """One per variant that had traffic, in the order of the first request."""
        return [counts for (name, _), counts in self._statistics.items() if name == endpoint]

    async def close(self) -> None:
        """Drop the copies on their way."""
        for task in self._shadows:
            task.cancel()
        await asyncio.gather(*self._shadows, return_exceptions=True)

    async def _measured(self, endpoint: Endpoint, variant: Variant, request: InferRequest) -> InferAnswer:
        counts = self._counts(endpoint, variant)
        start = time.monotonic()
        try:
            answer = await self._infer(replace(request, model=variant.model, version=variant.version))
        except BaseException:
            counts.failures.add(time.monotonic() - start)
            raise
        seconds = time.monotonic() - start
        counts.successes.add(seconds)
        counts.latency.add(seconds)
        return answer

    def _copy(self, endpoint: Endpoint, shadow: Variant, request: InferRequest, expected: Tensors) -> None:
        counts = self._counts(endpoint, shadow)
        if len(self._shadows) >= MAX_SHADOWS:
            counts.dropped += 1
            return
        task = asyncio.create_task(self._compare(endpoint, shadow, _copy_of(request), expected))
        self._shadows.add(task)
        task.add_done_callback(self._shadows.discard)

    async def _compare(self, endpoint: Endpoint, shadow: Variant, request: InferRequest, expected: Tensors) -> None:
        counts = self._counts(endpoint, shadow)
        request.arrived = time.monotonic()
        try:
            answer = await self._measured(endpoint, shadow, request)
        except OctavoError:
            return  # counted as a failure of the shadow; nobody waits for it
        counts.compared += 1
        counts.agreed += agree(answer.outputs, expected)

    def _counts(self, endpoint: Endpoint, variant: Variant) -> VariantStatistics:
        key = (endpoint.name, variant.name)
        counts = self._statistics.get(key)
        if counts is None:
            counts = self._statistics[key] = VariantStatistics(*key)
        return counts


def _copy_of(request: InferRequest) -> InferRequest:
    """With time of its own, and in nobody's name: the house wanted the copy, not the caller."""
    return replace(request, deadline=0.0, caller="")


def agree(one: Tensors, other: Tensors) -> bool:
    """Whether two answers are the same: names, shapes, texts, and numbers within 0.1 %."""
    if one.keys() != other.keys():
        return False
    for name, array in one.items():
        against = other[name]
        if array.shape != against.shape or array.dtype.kind != against.dtype.kind:
            return False
        if array.dtype.kind in "fc":
            if not np.allclose(array, against, rtol=_RELATIVE, atol=_ABSOLUTE, equal_nan=True):
                return False
        elif not np.array_equal(array, against):
            return False
    return True
