"""What several replicas hold, told as one server would tell it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

from octavo.serving.resident import LOADING, READY, Counters
from octavo.serving.snapshots import ResidencySnapshot, ResidentModel


def merged(snapshots: Sequence[ResidencySnapshot], counters: Counters, pinned: Collection[str]) -> ResidencySnapshot:
    """One line a model, with the bytes of all its copies; `counters` outlive replicas and are the front's."""
    models: dict[str, ResidentModel] = {}
    shared: Counter[str] = Counter()
    for snapshot in snapshots:
        shared.update(snapshot.shared)
        for model in snapshot.models:
            key = f"{model.name}/{model.version}"
            before = models.get(key)
            models[key] = _together(before, model) if before else replace(model, pinned=model.name in pinned)
    return ResidencySnapshot(
        sum(one.budget_bytes for one in snapshots),
        sum(one.charged_bytes for one in snapshots),
        tuple(models.values()),
        dict(shared),
        counters,
        sum(one.pending for one in snapshots),
    )


def held_bytes(snapshot: ResidencySnapshot, model: ResidentModel) -> int:
    """What a model holds alone and its part of the weights it shares."""
    sharers = sum(one.share_key == model.share_key for one in snapshot.models)
    return model.bytes + snapshot.shared.get(model.share_key, 0) // max(1, sharers)


def _together(one: ResidentModel, other: ResidentModel) -> ResidentModel:
    """Two copies of a model: it is as ready as the one that is."""
    states = (one.state, other.state)
    state = READY if READY in states else LOADING if LOADING in states else one.state
    return replace(
        one,
        state=state,
        tier="full" if "full" in (one.tier, other.tier) else one.tier,
        bytes=one.bytes + other.bytes,
        in_flight=one.in_flight + other.in_flight,
        idle_seconds=min(one.idle_seconds, other.idle_seconds),
        load_cpu_seconds=one.load_cpu_seconds + other.load_cpu_seconds,
    )
