"""What `octavo autoscaling status` shows of a fleet."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

from octavo.serving.fleet.fleet import Fleet, Routed
from octavo.serving.fleet.member import Member
from octavo.serving.fleet.scaling import Decision


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """A replica: its state, its node (empty while it waits for a place), memory in bytes, what it holds and did."""

    id: str
    node: str
    state: str
    seconds: float
    budget_bytes: int
    charged_bytes: int
    in_flight: int
    answered: int
    models: tuple[str, ...]
    pinned: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FleetStatus:
    """A fleet: replicas wanted and there, by node; routing's counts; the policy and what it decided, newest last."""

    nodes: tuple[str, ...]
    wanted: int
    lost: int
    trouble: str
    replicas: tuple[ReplicaStatus, ...]
    routed: Routed
    policy: dict[str, Any]
    memory_utilisation: float | None
    invocations_per_instance: float | None
    decisions: tuple[Decision, ...]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        found = asdict(self)
        found["routed"]["hit_ratio"] = self.routed.hit_ratio
        return found


def status_of(fleet: Fleet, nodes: list[str]) -> FleetStatus:
    """How a fleet on these nodes does."""
    replicas, tracker = fleet.replicas, fleet.replicas.tracker
    last = tracker.last()
    return FleetStatus(
        nodes=tuple(sorted(nodes)),
        wanted=tracker.capacity,
        lost=replicas.lost,
        trouble=replicas.trouble,
        replicas=tuple(_status(member) for member in replicas.members),
        routed=fleet.routed,
        policy=tracker.policy.model_dump(),
        memory_utilisation=last.memory_utilisation if last else None,
        invocations_per_instance=last.invocations_per_instance if last else None,
        decisions=tuple(tracker.decisions),
    )


def _status(member: Member) -> ReplicaStatus:
    report = member.report
    return ReplicaStatus(
        id=member.id,
        node=member.node,
        state=member.state,
        seconds=time.monotonic() - member.launched,
        budget_bytes=report.snapshot.budget_bytes if report else 0,
        charged_bytes=report.snapshot.charged_bytes if report else 0,
        in_flight=member.in_flight,
        answered=member.answered,
        models=tuple(sorted(report.keys)) if report else (),
        pinned=tuple(sorted(report.pinned)) if report else (),
    )
