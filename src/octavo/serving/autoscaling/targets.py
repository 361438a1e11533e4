"""What is declared of scaling: the bounds and policies of an endpoint's variants, and what `policy` makes of them.

for variant, target in scaling_policies(documents).items():
    decide(target.policy, state, readings, running, now)
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from octavo.errors import Invalid, NotFound
from octavo.serving.autoscaling.policy import MAX_INSTANCES, ScalingPolicy
from octavo.storage.documents import Document, Documents

KIND = "scaling-target"
MAX_POLICIES = 50
_COOLDOWN = 300.0

Metric = Literal["memory_utilisation", "invocations_per_instance"]


class ScaledVariant(NamedTuple):
    """A variant of an endpoint."""

    endpoint: str
    variant: str

    @property
    def resource(self) -> str:
        """In AWS's words."""
        return f"endpoint/{self.endpoint}/variant/{self.variant}"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class TargetTracking(_Part):
    """One policy: a metric and its target, in the units of `ScalingPolicy`.

    `given` is the configuration as it was sent; `created` in seconds since 1970.
    """

    name: str
    metric: Metric
    target: float = Field(gt=0, allow_inf_nan=False)
    scale_out_cooldown: float = Field(_COOLDOWN, ge=0, allow_inf_nan=False)
    scale_in_cooldown: float = Field(_COOLDOWN, ge=0, allow_inf_nan=False)
    disable_scale_in: bool = False
    given: dict[str, Any] = {}
    created: float = 0.0


class ScalingTarget(_Part):
    """A variant's bounds and policies.

    Attributes:
        in_suspended: it must not shrink for the time being.
        out_suspended: it must not grow.
        role: an ARN, kept and shown.
    """

    endpoint: str
    variant: str
    min_capacity: int = Field(1, ge=1, le=MAX_INSTANCES)
    max_capacity: int = Field(1, ge=1, le=MAX_INSTANCES)
    in_suspended: bool = False
    out_suspended: bool = False
    role: str = ""
    policies: tuple[TargetTracking, ...] = ()

    @property
    def scaled(self) -> ScaledVariant:
        """The variant."""
        return ScaledVariant(self.endpoint, self.variant)

    def policy(self) -> ScalingPolicy | None:
        """All policies as one; None where nothing is tracked, or the target is suspended.

        Of two policies for one metric the lower target counts, of cooldowns the longest. A policy with scale-in
        disabled holds the others back only as long as its own metric is not below its target.
        """
        if not self.policies or self.out_suspended:
            return None
        targets: dict[str, float | None] = {"memory_utilisation": None, "invocations_per_instance": None}
        for each in self.policies:
            known = targets[each.metric]
            targets[each.metric] = each.target if known is None else min(known, each.target)
        return ScalingPolicy(
            min_capacity=self.min_capacity,
            max_capacity=self.max_capacity,
            memory_utilisation=targets["memory_utilisation"],
            invocations_per_instance=targets["invocations_per_instance"],
            scale_out_cooldown=max(each.scale_out_cooldown for each in self.policies),
            scale_in_cooldown=max(each.scale_in_cooldown for each in self.policies),
            disable_scale_in=self.in_suspended or all(each.disable_scale_in for each in self.policies),
        )


class StoredTarget(NamedTuple):
    """A target as it was when read; `created` in seconds since 1970, `revision` 0 for one that is not there yet."""

    target: ScalingTarget
    revision: int
    created: float


def scaling_policies(documents: Documents) -> dict[ScaledVariant, ScalingPolicy]:
    """What each variant is to be held at, of all that are; blocks for a query."""
    found = ((stored.target.scaled, stored.target.policy()) for stored in targets(documents))
    return {scaled: policy for scaled, policy in found if policy is not None}


def targets(documents: Documents) -> list[StoredTarget]:
    """Every target, by endpoint and variant."""
    return [_read(document) for document in documents.list(KIND)]


def get_target(documents: Documents, scaled: ScaledVariant) -> StoredTarget:
    """A variant's target.

    Raises:
        NotFound: none is registered.
    """
    try:
        return _read(documents.get(KIND, scaled.resource))
    except NotFound:
        raise NotFound("no scalable target is registered", scaled.resource, "Register it first.") from None


def write_target(documents: Documents, target: ScalingTarget, revision: int) -> None:
    """Write a target over a revision.

    Raises:
        Conflict: somebody else wrote meanwhile.
    """
    documents.put(KIND, target.scaled.resource, target.model_dump(mode="json"), revision=revision)


def delete_target(documents: Documents, scaled: ScaledVariant) -> None:
    """Remove a target with its policies; raises as `get_target`."""
    try:
        documents.delete(KIND, scaled.resource)
    except NotFound:
        raise NotFound("no scalable target is registered", scaled.resource) from None


def forget_targets(documents: Documents, endpoint: str) -> None:
    """Remove every target of an endpoint that goes."""
    for stored in targets(documents):
        if stored.target.endpoint == endpoint:
            with suppress(NotFound):
                delete_target(documents, stored.target.scaled)


def _read(document: Document) -> StoredTarget:
    try:
        target = ScalingTarget.model_validate(dict(document.body))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise Invalid(f"the scaling target cannot be read: {place}: {first['msg']}", document.name) from None
    return StoredTarget(target, document.revision, document.created.timestamp())
