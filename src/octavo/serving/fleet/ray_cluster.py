"""Ray as the place where replicas run: each is an actor, spread over the nodes that have room.

Plain actors and not Ray Serve: its router knows the length of queues and not which model is where, which copy goes when
the fleet shrinks is its own choice, and a call through it takes two to three times the CPU time of an actor's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import platform
import socket
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from octavo.errors import ModelFailed, Unavailable
from octavo.serving.fleet.address import LOCAL, check_address
from octavo.serving.fleet.member import Link, ReplicaLost
from octavo.serving.fleet.replica import Replica
from octavo.settings import FleetSettings

T = TypeVar("T")

_MOST_CALLS = 100_000
_NAMESPACE = "octavo"
_KNOCK_SECONDS = 5.0

log = logging.getLogger("octavo.serving.fleet")


class RayReplica(Replica):
    """A replica in an actor."""

    async def node(self) -> str:
        """Where it runs: the machine's name and the beginning of Ray's name for the node."""
        import ray

        return _node_name(platform.node(), ray.get_runtime_context().get_node_id())


class RayLink:
    """The way to an actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor

    def call(self, method: str, *arguments: Any) -> Coroutine[Any, Any, Any]:
        """See `Link`."""
        try:
            reference = getattr(self._actor, method).remote(*arguments)
        except Exception as error:  # too large for Ray's store, or Ray has gone
            refusal = Unavailable(f"Ray does not take the call: {_first_line(error)}", "fleet", "", 10.0)
            return _raise(refusal)
        return _result(reference)

    async def node(self) -> str:
        """See `Link`."""
        name: str = await self.call("node")
        return name

    def kill(self) -> None:
        """See `Link`."""
        import ray

        try:
            ray.kill(self._actor)
        except Exception as error:  # it is dead already, or Ray is
            log.debug("%s", error)


class RayCluster:
    """A Ray cluster: one that runs already, or one of our own on this machine."""

    def __init__(self, settings: FleetSettings, home: ThreadPoolExecutor) -> None:
        self._settings = settings
        self._home = home

    @classmethod
    async def open(cls, settings: FleetSettings) -> RayCluster:
        """Connect to the cluster of `fleet.ray`; `local` starts one that only this machine can reach.

        Raises:
            MissingExtra: Ray is not installed.
            Invalid: an address that cannot be used.
            Unavailable: there is no cluster, or it does not start.
        """
        check_address(settings.ray)
        # Ray's processes end with the thread that started them, so that is one which stays.
        home = ThreadPoolExecutor(1, thread_name_prefix="ray")
        try:
            await asyncio.get_running_loop().run_in_executor(home, _connect, settings)
        except BaseException:
            home.shutdown(wait=False)
            raise
        return cls(settings, home)

    def launch(self) -> Link:
        """See `Cluster`."""
        import ray

        wanted: dict[str, Any] = {"num_cpus": self._settings.replica_cpus}
        if self._settings.replica_memory:
            wanted["memory"] = self._settings.replica_memory
        actor = ray.remote(RayReplica).options(
            **wanted,
            max_concurrency=_MOST_CALLS,
            max_restarts=0,  # which requests are sent again, and where a model goes, is decided here
            max_task_retries=0,
            scheduling_strategy="SPREAD",
        )
        return RayLink(actor.remote())

    async def nodes(self) -> list[str]:
        """See `Cluster`."""
        import ray

        found = await self._at_home(ray.nodes)
        return [_node_name(node["NodeManagerHostname"], node["NodeID"]) for node in found if node["Alive"]]

    async def close(self) -> None:
        """See `Cluster`."""
        import ray

        await self._at_home(ray.shutdown)
        self._home.shutdown(wait=False)

    async def _at_home(self, function: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._home, function)


def _connect(settings: FleetSettings) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    local = settings.ray == LOCAL
    if ":" in settings.ray:
        _knock(settings.ray)
    given: dict[str, Any] = {"address": settings.ray}
    if local:
        # So named, but what it does on Linux is to have every process of Ray listen on 127.0.0.1 and nowhere else.
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
        given = {"address": LOCAL, "include_dashboard": False, "object_store_memory": settings.object_store}
    logging.getLogger("ray").setLevel(logging.ERROR)
    import ray

    if ray.is_initialized():
        raise Unavailable("this process uses a Ray cluster already", "fleet.ray", "Use one fleet in a process.")
    try:
        ray.init(**given, namespace=_NAMESPACE, log_to_driver=False, configure_logging=False)
    except Exception as error:  # ray raises many kinds here; each means that there is no cluster
        fix = "Start one with `ray start --head`, or use --ray local."
        raise Unavailable(f"no Ray cluster: {_first_line(error)}", settings.ray, fix, 10.0) from error


def _knock(address: str) -> None:
    """Raise when nobody listens there, which Ray itself takes minutes to say."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _KNOCK_SECONDS).close()
    except (OSError, OverflowError) as error:
        fix = "Start one with `ray start --head`, or use --ray local."
        raise Unavailable(f"no Ray cluster: {_first_line(error)}", address, fix, 10.0) from None


async def _result(reference: Any) -> Any:
    import ray

    try:
        return await reference
    except asyncio.CancelledError:
        try:
            ray.cancel(reference)
        except Exception as error:  # it has ended already
            log.debug("%s", error)
        raise
    except ray.exceptions.RayTaskError as error:
        raise ModelFailed(
            f"the replica failed: {_first_line(error.cause or error)}", "fleet", "Look at Ray's logs."
        ) from error
    except ray.exceptions.ActorUnavailableError as error:
        raise ReplicaLost(_first_line(error), final=False) from error
    except ray.exceptions.RayError as error:
        raise ReplicaLost(_first_line(error)) from error


async def _raise(error: Exception) -> Any:
    raise error


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.split("\n", 1)[0][:300] if text else type(error).__name__


def _node_name(host: str, node: str) -> str:
    return f"{host}/{node[:8]}"
