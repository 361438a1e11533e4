"""Requests on their way to replicas: each to where its model is, and once more to another when that one is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from octavo.errors import DeadlineExceeded, OctavoError, Unavailable
from octavo.serving.fleet.member import Member, ReplicaLost
from octavo.serving.fleet.replicas import Replicas
from octavo.serving.fleet.report import Outcome
from octavo.serving.fleet.routing import choose
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.settings import Settings


@dataclass(slots=True)
class Routed:
    """What became of the requests: all, those that found their model at the replica they went to, those whose model
    was given to another replica because its own was busy, those sent again because their replica was lost.
    """

    requests: int = 0
    hits: int = 0
    spilled: int = 0
    resent: int = 0

    @property
    def hit_ratio(self) -> float | None:
        """The part that found their model; None before the first."""
        return self.hits / self.requests if self.requests else None


class Fleet:
    """Answers from replicas.

    Args:
        replicas: those there are.
        settings: the server's.
    """

    def __init__(self, replicas: Replicas, settings: Settings) -> None:
        self.replicas = replicas
        self.routed = Routed()
        self._limits = settings.fleet
        self._load_timeout = settings.serving.load_timeout

    async def infer(self, request: InferRequest, version: str) -> InferAnswer:
        """Have a request answered; `version` is the one that is to answer it.

        A refusal (of a limit, of a bad request) is the answer; only what is lost with a replica is sent again.

        Raises:
            Unavailable: too many replicas were lost over it.
            DeadlineExceeded: there was no replica in time.
            OctavoError: what the replica said.
        """
        self.replicas.tracker.count()
        asked = replace(request, arrived=0.0, deadline=0.0)  # clocks of other machines have other zeros

        def call(left: float) -> tuple[Any, ...]:
            return "infer", asked, left

        outcome: Outcome = await self._answered(request.model, version, request.deadline, call)
        self.routed.requests += 1
        self.routed.hits += outcome.held
        answer: InferAnswer = given(outcome.answer)
        return answer

    async def at_home(self, method: str, name: str, version: str, *more: Any) -> Any:
        """Ask `method(name, version, *more)` of a replica that holds the model, or would, before the time for loads
        has passed; raises as `infer`.
        """
        deadline = time.monotonic() + self._load_timeout
        return given(await self._answered(name, version, deadline, lambda _: (method, name, version, *more)))

    async def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What every replica says, refusals among it; those that are lost over it are left out."""
        calls = [member.link.call(method, *arguments) for member in self.replicas.answering]
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [result for result in results if not isinstance(result, ReplicaLost)]

    async def _answered(
        self, name: str, version: str, deadline: float, call: Callable[[float], tuple[Any, ...]]
    ) -> Any:
        """What a replica says; `call` is what to ask it, given the seconds left."""
        failed: list[Member] = []
        while True:
            member = await self._choose(name, version, deadline, failed)
            try:
                result = await member.ask(*call(deadline - time.monotonic()))
            except ReplicaLost as error:
                self.replicas.suspect(member)
                failed.append(member)
                if len(failed) > self._limits.resends:
                    what = f"{len(failed)} replicas were lost while they worked on this"
                    raise Unavailable(what, name, "Look at their logs: is it the request?", 10.0) from error
                self.routed.resent += 1
                continue
            member.answered += 1
            return result

    async def _choose(self, name: str, version: str, deadline: float, failed: list[Member]) -> Member:
        """A replica for the model: one that was not lost over this already, unless there is no other."""
        while not (ready := self.replicas.ready):
            if time.monotonic() >= deadline:
                fix = "`octavo autoscaling status` shows what became of them."
                raise DeadlineExceeded("there was no replica in time", name, fix)
            await self.replicas.changed(deadline)
        places = [member for member in ready if member not in failed] or ready
        key = f"{name}/{version}"
        member = choose(name, version, places, self._limits.spill_at)
        self.routed.spilled += key not in member.keys and any(key in place.keys for place in places)
        member.keys.add(key)  # from now on it is there, or on its way in
        return member


def given(result: Any) -> Any:
    """What a replica returned; raises it when it is an error."""
    if isinstance(result, OctavoError):
        raise result
    return result
