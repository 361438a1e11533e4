"""What several declared policies come to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import Conflict, NotFound
from octavo.serving.autoscaling.targets import (
    ScaledVariant,
    ScalingTarget,
    TargetTracking,
    delete_target,
    forget_targets,
    get_target,
    scaling_policies,
    targets,
    write_target,
)
from octavo.storage import Database
from octavo.storage.documents import Documents

METRICS: Any = st.sampled_from(["memory_utilisation", "invocations_per_instance"])
POLICY = st.builds(
    TargetTracking,
    name=st.just("p"),
    metric=METRICS,
    target=st.floats(1, 100),
    scale_out_cooldown=st.floats(0, 900),
    scale_in_cooldown=st.floats(0, 900),
    disable_scale_in=st.booleans(),
)


@given(st.lists(POLICY, max_size=5), st.integers(1, 5), st.integers(5, 9), st.booleans(), st.booleans())
def test_policies_together(policies: list[TargetTracking], least: int, most: int, held: bool, stopped: bool) -> None:
    target = ScalingTarget(
        endpoint="e",
        variant="v",
        min_capacity=least,
        max_capacity=most,
        in_suspended=held,
        out_suspended=stopped,
        policies=tuple(policies),
    )
    found = target.policy()
    if not policies or stopped:
        assert found is None
        return
    assert found is not None
    assert (found.min_capacity, found.max_capacity) == (least, most)
    for metric in ("memory_utilisation", "invocations_per_instance"):
        wanted = [each.target for each in policies if each.metric == metric]
        assert getattr(found, metric) == (min(wanted) if wanted else None)
    assert found.scale_in_cooldown == max(each.scale_in_cooldown for each in policies)
    assert found.disable_scale_in == (held or all(each.disable_scale_in for each in policies))


def test_targets_are_kept(database: Database) -> None:
    documents = Documents(database)
    tracked = TargetTracking(name="p", metric="memory_utilisation", target=80)
    target = ScalingTarget(endpoint="e", variant="v", max_capacity=3, policies=(tracked,))
    write_target(documents, target, 0)
    with pytest.raises(Conflict):
        write_target(documents, target, 0)
    write_target(documents, target.model_copy(update={"variant": "w", "policies": ()}), 0)
    write_target(documents, target.model_copy(update={"endpoint": "e2"}), 0)
    assert list(scaling_policies(documents)) == [ScaledVariant("e", "v"), ScaledVariant("e2", "v")]
    assert get_target(documents, ScaledVariant("e", "v")).target == target
    forget_targets(documents, "e")
    assert [stored.target.endpoint for stored in targets(documents)] == ["e2"]
    delete_target(documents, ScaledVariant("e2", "v"))
    for missing in (get_target, delete_target):
        with pytest.raises(NotFound):
            missing(documents, ScaledVariant("e2", "v"))
