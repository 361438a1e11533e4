"""Application Auto Scaling's control plane, for variants of endpoints: bounds, and target tracking policies."""

from __future__ import annotations

import asyncio
import re
import time
import uuid
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.aws_errors import AwsError
from octavo.errors import Invalid, NotFound
from octavo.serving.autoscaling.policy import MAX_INSTANCES
from octavo.serving.autoscaling.targets import (
    MAX_POLICIES,
    Metric,
    ScaledVariant,
    ScalingTarget,
    StoredTarget,
    TargetTracking,
    delete_target,
    get_target,
    targets,
    write_target,
)
from octavo.serving.model_config import is_name
from octavo.serving.protocols.aws_json import Asked, AwsService, Form, Handler
from octavo.serving.protocols.aws_lists import PageForm, Row, paged
from octavo.serving.protocols.exchange import Door
from octavo.serving.protocols.sagemaker_runtime import ONLY_VARIANT
from octavo.serving.sagemaker.names import ACCOUNT

DIMENSION = "sagemaker:variant:DesiredInstanceCount"
NAMESPACE = "sagemaker"

_RESOURCE = re.compile(r"endpoint/([^/]{1,128})/variant/([A-Za-z0-9](?:-*[A-Za-z0-9]){0,62})")
_INVOCATIONS = "SageMakerVariantInvocationsPerInstance"
_MEMORY = "MemoryUtilization"
_POLICY_TYPE = "TargetTrackingScaling"

Capacity = Annotated[int, Field(ge=1, le=MAX_INSTANCES)]
Cooldown = Annotated[int, Field(ge=0, le=86400)]


class _Namespace(Form):
    service_namespace: str


class _Resource(_Namespace):
    resource_id: str
    scalable_dimension: str


class _Suspended(Form):
    dynamic_scaling_in_suspended: bool = False
    dynamic_scaling_out_suspended: bool = False


class _Register(_Resource):
    min_capacity: Capacity | None = None
    max_capacity: Capacity | None = None
    role_arn: str = Field("", alias="RoleARN", max_length=1600)
    suspended_state: _Suspended | None = None


class _DescribeTargets(_Namespace, PageForm):
    resource_ids: list[str] = []
    scalable_dimension: str = DIMENSION


class _Predefined(Form):
    predefined_metric_type: str


class _Customised(Form):
    metric_name: str = ""
    statistic: Literal["Average", "Minimum", "Maximum", "SampleCount", "Sum"] = "Average"


class _Tracking(Form):
    target_value: float = Field(gt=0, allow_inf_nan=False)
    predefined_metric_specification: _Predefined | None = None
    customized_metric_specification: _Customised | None = None
    scale_out_cooldown: Cooldown = 300
    scale_in_cooldown: Cooldown = 300
    disable_scale_in: bool = False


class _PolicyName(_Resource):
    policy_name: str = Field(min_length=1, max_length=256)


class _PutPolicy(_PolicyName):
    policy_type: str = ""
    target_tracking_scaling_policy_configuration: _Tracking | None = None


class _DescribePolicies(_Namespace, PageForm):
    policy_names: list[str] = []
    resource_id: str = ""
    scalable_dimension: str = DIMENSION


async def register_target(door: Door, asked: Asked) -> dict[str, Any]:
    """Say between which bounds a variant is scaled; what is not given stays as it was."""
    form = asked.read(_Register)
    scaled = _scaled(form)
    asked.call.require("edit", scaled.endpoint)
    await _check_variant(door, scaled)
    documents = door.service.documents
    try:
        stored = await asyncio.to_thread(get_target, documents, scaled)
    except NotFound:
        if form.min_capacity is None or form.max_capacity is None:
            what = "a new target needs both bounds"
            raise Invalid(what, form.resource_id, "Give MinCapacity and MaxCapacity.") from None
        stored = StoredTarget(ScalingTarget(endpoint=scaled.endpoint, variant=scaled.variant), 0, 0.0)
    await asyncio.to_thread(write_target, documents, _registered(stored.target, form), stored.revision)
    return {"ScalableTargetARN": _target_arn(scaled, asked.region)}


def _registered(target: ScalingTarget, form: _Register) -> ScalingTarget:
    """The target with what a request says; raises `Invalid` for bounds that cannot be."""
    suspended = form.suspended_state or _Suspended(
        dynamic_scaling_in_suspended=target.in_suspended, dynamic_scaling_out_suspended=target.out_suspended
    )
    least = form.min_capacity or target.min_capacity
    most = form.max_capacity or target.max_capacity
    if least > most:
        raise Invalid(f"MinCapacity {least} is over MaxCapacity {most}", form.resource_id, "Give a lower one.")
    if suspended.dynamic_scaling_out_suspended and not suspended.dynamic_scaling_in_suspended:
        raise Invalid("scaling out alone is suspended", "SuspendedState", "Suspend scaling in too.")
    return target.model_copy(
        update={
            "min_capacity": least,
            "max_capacity": most,
            "in_suspended": suspended.dynamic_scaling_in_suspended,
            "out_suspended": suspended.dynamic_scaling_out_suspended,
            "role": form.role_arn or target.role,
        }
    )


async def describe_targets(door: Door, asked: Asked) -> dict[str, Any]:
    """The registered targets."""
    form = asked.read(_DescribeTargets)
    _check_kind(form.service_namespace, form.scalable_dimension)
    rows = [
        Row(stored.target.scaled.resource, stored.created, 0, _shown(stored, asked.region))
        for stored in await _visible(door, asked)
        if not form.resource_ids or stored.target.scaled.resource in form.resource_ids
    ]
    return paged(rows, form, "ScalableTargets")


async def deregister_target(door: Door, asked: Asked) -> dict[str, Any]:
    """Forget a target with its policies; the variant stays as large as it is."""
    scaled = _scaled(asked.read(_Resource))
    asked.call.require("edit", scaled.endpoint)
    await asyncio.to_thread(delete_target, door.service.documents, scaled)
    return {}


async def put_policy(door: Door, asked: Asked) -> dict[str, Any]:
    """Track a target; a policy of the same name is replaced."""
    form = asked.read(_PutPolicy)
    scaled = _scaled(form)
    asked.call.require("edit", scaled.endpoint)
    tracking = form.target_tracking_scaling_policy_configuration
    if form.policy_type not in ("", _POLICY_TYPE) or tracking is None:
        what = f"the policy type {form.policy_type[:40]!r} is not known, or its configuration is missing"
        raise Invalid(what, "PolicyType", f"Send {_POLICY_TYPE} with TargetTrackingScalingPolicyConfiguration.")
    documents = door.service.documents
    stored = await asyncio.to_thread(get_target, documents, scaled)
    given = asked.given["TargetTrackingScalingPolicyConfiguration"]
    policy = _policy(form.policy_name, tracking, given)
    others = [each for each in stored.target.policies if each.name != policy.name]
    if len(others) >= MAX_POLICIES:
        what = f"a target has at most {MAX_POLICIES} policies"
        raise AwsError("LimitExceededException", 400, what, scaled.resource, "Delete one first.")
    changed = stored.target.model_copy(update={"policies": (*others, policy)})
    await asyncio.to_thread(write_target, documents, changed, stored.revision)
    return {"PolicyARN": _policy_arn(scaled, policy.name, asked.region), "Alarms": []}


def _policy(name: str, tracking: _Tracking, given: dict[str, Any]) -> TargetTracking:
    metric = _metric(tracking)
    if metric == "memory_utilisation" and tracking.target_value > 100:
        raise Invalid(f"the target {tracking.target_value:g} is over 100 percent", "TargetValue", "Give up to 100.")
    return TargetTracking(
        name=name,
        metric=metric,
        target=tracking.target_value,
        scale_out_cooldown=tracking.scale_out_cooldown,
        scale_in_cooldown=tracking.scale_in_cooldown,
        disable_scale_in=tracking.disable_scale_in,
        given=given,
        created=time.time(),
    )


def _metric(tracking: _Tracking) -> Metric:
    """The metric that is tracked.

    Raises:
        Invalid: not one of the two that are measured, or both at once.
    """
    predefined, customised = tracking.predefined_metric_specification, tracking.customized_metric_specification
    if predefined is not None and customised is None and predefined.predefined_metric_type == _INVOCATIONS:
        return "invocations_per_instance"
    if customised is not None and predefined is None and customised.metric_name == _MEMORY:
        return "memory_utilisation"
    fix = f"Use the predefined metric {_INVOCATIONS}, or a customized one called {_MEMORY}."
    raise Invalid("the metric is not measured here", "TargetTrackingScalingPolicyConfiguration", fix)


async def describe_policies(door: Door, asked: Asked) -> dict[str, Any]:
    """The policies there are."""
    form = asked.read(_DescribePolicies)
    _check_kind(form.service_namespace, form.scalable_dimension)
    rows = [
        Row(f"{stored.target.scaled.resource} {policy.name}", 0, 0, _shown_policy(stored, policy, asked.region))
        for stored in await _visible(door, asked)
        if form.resource_id in ("", stored.target.scaled.resource)
        for policy in stored.target.policies
        if not form.policy_names or policy.name in form.policy_names
    ]
    return paged(rows, form, "ScalingPolicies")


async def delete_policy(door: Door, asked: Asked) -> dict[str, Any]:
    """Track a target no longer."""
    form = asked.read(_PolicyName)
    scaled = _scaled(form)
    asked.call.require("edit", scaled.endpoint)
    documents = door.service.documents
    stored = await asyncio.to_thread(get_target, documents, scaled)
    left = tuple(each for each in stored.target.policies if each.name != form.policy_name)
    if len(left) == len(stored.target.policies):
        raise NotFound(f"there is no policy {form.policy_name!r}", scaled.resource)
    changed = stored.target.model_copy(update={"policies": left})
    await asyncio.to_thread(write_target, documents, changed, stored.revision)
    return {}


def _scaled(form: _Resource) -> ScaledVariant:
    """The variant that a request is about.

    Raises:
        Invalid: something else than a variant's count of instances.
    """
    _check_kind(form.service_namespace, form.scalable_dimension)
    found = _RESOURCE.fullmatch(form.resource_id)
    if found is None or not is_name(found[1]):
        what = f"{form.resource_id[:100]!r} is no variant of an endpoint"
        raise Invalid(what, "ResourceId", "It looks like endpoint/support/variant/AllTraffic.")
    return ScaledVariant(found[1], found[2])


def _check_kind(namespace: str, dimension: str) -> None:
    if namespace != NAMESPACE or dimension != DIMENSION:
        what = f"nothing of {namespace[:40]!r} is scaled in {dimension[:60]!r}"
        raise Invalid(what, "ScalableDimension", f"Here it is {NAMESPACE} and {DIMENSION}.")


async def _check_variant(door: Door, scaled: ScaledVariant) -> None:
    """Raise `Invalid` for a variant that there is not, however its endpoint was declared."""
    service = door.service
    try:
        record = (await asyncio.to_thread(service.sagemaker.endpoints.get, scaled.endpoint)).record
        names = {variant.name for variant in record.plan.variants}
    except NotFound:
        declared = service.endpoints.find(scaled.endpoint)
        names = {variant.name for variant in declared.variants} if declared else set()
        if declared is None and await service.knows(scaled.endpoint):
            names = {ONLY_VARIANT}
    if scaled.variant not in names:
        raise Invalid("there is no such variant", scaled.resource, "Make the endpoint first.")


async def _visible(door: Door, asked: Asked) -> list[StoredTarget]:
    found = await asyncio.to_thread(targets, door.service.documents)
    names = asked.call.visible([stored.target.endpoint for stored in found])
    return [stored for stored in found if stored.target.endpoint in names]


def _shown(stored: StoredTarget, region: str) -> dict[str, Any]:
    target = stored.target
    suspended = {
        "DynamicScalingInSuspended": target.in_suspended,
        "DynamicScalingOutSuspended": target.out_suspended,
        "ScheduledScalingSuspended": False,
    }
    return _place(target.scaled) | {
        "MinCapacity": target.min_capacity,
        "MaxCapacity": target.max_capacity,
        "RoleARN": target.role,
        "CreationTime": stored.created,
        "SuspendedState": suspended,
        "ScalableTargetARN": _target_arn(target.scaled, region),
    }


def _shown_policy(stored: StoredTarget, policy: TargetTracking, region: str) -> dict[str, Any]:
    return _place(stored.target.scaled) | {
        "PolicyARN": _policy_arn(stored.target.scaled, policy.name, region),
        "PolicyName": policy.name,
        "PolicyType": _POLICY_TYPE,
        "TargetTrackingScalingPolicyConfiguration": policy.given,
        "Alarms": [],
        "CreationTime": policy.created,
    }


def _place(scaled: ScaledVariant) -> dict[str, Any]:
    return {"ServiceNamespace": NAMESPACE, "ResourceId": scaled.resource, "ScalableDimension": DIMENSION}


def _target_arn(scaled: ScaledVariant, region: str) -> str:
    mark = uuid.uuid5(uuid.NAMESPACE_URL, scaled.resource).hex
    return f"arn:aws:application-autoscaling:{region}:{ACCOUNT}:scalable-target/{mark}"


def _policy_arn(scaled: ScaledVariant, name: str, region: str) -> str:
    mark = uuid.uuid5(uuid.NAMESPACE_URL, f"{scaled.resource} {name}")
    place = f"scalingPolicy:{mark}:resource/{NAMESPACE}/{scaled.resource}:policyName/{name}"
    return f"arn:aws:autoscaling:{region}:{ACCOUNT}:{place}"


_OPERATIONS: dict[str, Handler] = {
    "RegisterScalableTarget": register_target,
    "DescribeScalableTargets": describe_targets,
    "DeregisterScalableTarget": deregister_target,
    "PutScalingPolicy": put_policy,
    "DescribeScalingPolicies": describe_policies,
    "DeleteScalingPolicy": delete_policy,
}

SERVICE = AwsService(
    "AnyScaleFrontendService",
    _OPERATIONS,
    not_found="ObjectNotFoundException",
    conflict="ConcurrentUpdateException",
    wrong_token="InvalidNextTokenException",
)
