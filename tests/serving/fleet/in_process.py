"""A cluster whose replicas live in the test's own process, and end when the test says so."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

from octavo.serving.fleet.member import ReplicaLost
from octavo.serving.fleet.replica import Replica


class InProcessLink:
    """The way to a replica; everything is pickled on its way, as between machines."""

    def __init__(self, node: str, held: asyncio.Event | None) -> None:
        self.replica = Replica()
        self.asked: list[str] = []
        self.mute: set[str] = set()
        self.dead = False
        self.away = False
        self.open = False
        self._node = node
        self._held = held
        self._work: set[asyncio.Task[Any]] = set()

    async def _do(self, method: str, arguments: tuple[Any, ...]) -> Any:
        if self._held is not None and method == "start":
            await self._held.wait()
        self.open = method != "stop" and (self.open or method == "start")
        result = await getattr(self.replica, method)(*pickle.loads(pickle.dumps(arguments)))
        while method in self.mute:
            await asyncio.sleep(0.01)
        return pickle.loads(pickle.dumps(result))

    def call(self, method: str, *arguments: Any) -> Any:
        self.asked.append(method)
        if self.away:
            return self._gone(final=False)
        if self.dead:
            return self._gone()
        task = asyncio.create_task(self._do(method, arguments))
        self._work.add(task)
        task.add_done_callback(self._work.discard)
        return self._answer(task)

    async def _answer(self, task: asyncio.Task[Any]) -> Any:
        await asyncio.wait([task])
        if task.cancelled():
            raise ReplicaLost("killed")
        return task.result()

    async def _gone(self, final: bool = True) -> Any:
        raise ReplicaLost("dead" if final else "away", final)

    async def node(self) -> str:
        return self._node

    def kill(self) -> None:
        self.dead = True
        for task in self._work:
            task.cancel()


class InProcessCluster:
    """Two nodes, used in turn."""

    def __init__(self) -> None:
        self.links: list[InProcessLink] = []
        self.hold: asyncio.Event | None = None

    def launch(self) -> InProcessLink:
        link = InProcessLink(f"node{len(self.links) % 2}", self.hold)
        self.links.append(link)
        return link

    async def nodes(self) -> list[str]:
        return ["node1", "node0"]

    async def close(self) -> None:
        for link in self.links:
            if link.open:  # it was killed, and in this process that ended nothing
                await link.replica.stop()
