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

_SUSPENSION_SECONDS = 30.0
_FIX = "Look at the replicas' logs: does the model or a request end them?"


@dataclass(slots=True)
class Routed:
    """What became of the requests.

    Attributes:
        requests: all that were answered.
        hits: those that found their model in the memory of the replica they went to, or on its way in.
        nowhere: those whose model was in no replica, which no routing can help.
        spilled: those whose model was given to a further replica because its own was busy.
        resent: those sent again because their replica was lost.
    """

    requests: int = 0
    hits: int = 0
    nowhere: int = 0
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
        self._suspended: dict[str, float] = {}

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

        outcome: Outcome = await self._answered(request.model, version, request.deadline, call, self.routed)
        self.routed.requests += 1
        self.routed.hits += outcome.held
        answer: InferAnswer = given(outcome.answer)
        return answer

    async def at_home(self, method: str, name: str, version: str, *more: Any) -> Any:
        """Ask `method(name, version, *more)` of a replica that holds the model, or would, before the time for loads
        has passed; raises as `infer`.
        """
        deadline = time.monotonic() + self._load_timeout
        call = (method, name, version, *more)
        return given(await self._answered(name, version, deadline, lambda _: call, Routed()))

    async def everywhere(self, method: str, *arguments: Any) -> list[Any]:
        """What every replica says, refusals among it; those that are lost over it are left out."""
        calls = [member.link.call(method, *arguments) for member in self.replicas.answering]
        results = await asyncio.gather(*calls, return_exceptions=True)
        return [result for result in results if not isinstance(result, ReplicaLost)]

    async def _answered(
        self, name: str, version: str, deadline: float, call: Callable[[float], tuple[Any, ...]], routed: Routed
    ) -> Any:
        """What a replica says; `call` is what to ask it, given the seconds left, and `routed` counts."""
        self._refuse_suspended(name)
        failed: list[Member] = []
        while True:
            member = await self._choose(name, version, deadline, failed, routed)
            try:
                result = await member.ask(*call(deadline - time.monotonic()))
            except ReplicaLost as error:
                self.replicas.suspect(member)
                failed.append(member)
                if len(failed) > self._limits.resends:
                    self._suspended[name] = time.monotonic() + _SUSPENSION_SECONDS
                    what = f"{len(failed)} replicas were lost while they worked on this"
                    raise Unavailable(what, name, _FIX, _SUSPENSION_SECONDS) from error
                routed.resent += 1
                continue
            member.answered += 1
            return result

    def _refuse_suspended(self, name: str) -> None:
        """Raise while a model that replicas were lost over is left alone, so that it does not end all of them."""
        left = self._suspended.get(name, 0.0) - time.monotonic()
        if left > 0:
            raise Unavailable("replicas were lost while they worked on this model", name, _FIX, left)
        self._suspended.pop(name, None)

    async def _choose(self, name: str, version: str, deadline: float, failed: list[Member], routed: Routed) -> Member:
        """A replica for the model: one that was not lost over this already, unless there is no other."""
        while not (ready := self.replicas.ready):
            if time.monotonic() >= deadline:
                fix = "`octavo autoscaling status` shows what became of them."
                raise DeadlineExceeded("there was no replica in time", name, fix)
            await self.replicas.changed(deadline)
        places = [member for member in ready if member not in failed] or ready
        key = f"{name}/{version}"
        member = choose(name, version, places, self._limits.spill_at)
        held = any(key in place.keys for place in places)
        routed.nowhere += not held
        routed.spilled += held and key not in member.keys
        member.keys.add(key)  # from now on it is there, or on its way in
        return member


def given(result: Any) -> Any:
    """What a replica returned; raises it when it is an error."""
    if isinstance(result, OctavoError):
        raise result
    return result
