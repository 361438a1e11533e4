"""boto3's `application-autoscaling` client: what it declares, and what the executor gets of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from botocore.exceptions import ClientError

from octavo.serving.autoscaling.policy import ScalingPolicy
from octavo.serving.autoscaling.targets import ScaledVariant, scaling_policies
from octavo.settings import load_settings
from octavo.storage.database import Database
from octavo.storage.documents import Documents

from ..live import Up
from .conftest import Declared, model_tar, user

VARIANT = "endpoint/{}/variant/{}"
REQUESTS = {"PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}}
MEMORY = {
    "CustomizedMetricSpecification": {
        "MetricName": "MemoryUtilization",
        "Namespace": "/aws/sagemaker/Endpoints",
        "Statistic": "Average",
        "Unit": "Percent",
    }
}


def place(resource: str) -> dict[str, str]:
    dimension = "sagemaker:variant:DesiredInstanceCount"
    return {"ServiceNamespace": "sagemaker", "ResourceId": resource, "ScalableDimension": dimension}


def track(client: Any, resource: str, name: str, target: float, metric: dict[str, Any], **more: Any) -> Any:
    configuration = {"TargetValue": target} | metric | more
    return client.put_scaling_policy(
        **place(resource),
        PolicyName=name,
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration=configuration,
    )


def policies(server: Up) -> dict[ScaledVariant, ScalingPolicy]:
    database = Database(load_settings(server.workspace).database_url)
    try:
        return scaling_policies(Documents(database))
    finally:
        database.close()


def test_bounds_and_policies(
    autoscaling: Any, declared: Declared, upload: Callable[[str, bytes], str], server: Up
) -> None:
    declared.model("scaled", upload("scaled.tar.gz", model_tar(2)))
    declared.config("scaled", "scaled")
    declared.endpoint("scaled", "scaled")
    resource = VARIANT.format("scaled", "scaled")
    scaled = ScaledVariant("scaled", "scaled")
    made = autoscaling.register_scalable_target(**place(resource), MinCapacity=2, MaxCapacity=6)
    assert scaled not in policies(server), "nothing is tracked yet"
    requests = track(autoscaling, resource, "requests", 300, REQUESTS, ScaleOutCooldown=60, ScaleInCooldown=600)
    track(autoscaling, resource, "memory", 70, MEMORY, DisableScaleIn=True)
    assert policies(server)[scaled] == ScalingPolicy(
        min_capacity=2,
        max_capacity=6,
        memory_utilisation=70,
        invocations_per_instance=300,
        scale_out_cooldown=300,
        scale_in_cooldown=600,
    )
    track(autoscaling, resource, "requests", 200, REQUESTS)
    assert policies(server)[scaled].invocations_per_instance == 200
    autoscaling.register_scalable_target(**place(resource), MaxCapacity=8)
    found = autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker", ResourceIds=[resource])
    target = found["ScalableTargets"][0]
    assert (target["MinCapacity"], target["MaxCapacity"]) == (2, 8)
    assert target["ScalableTargetARN"] == made["ScalableTargetARN"]
    pages = autoscaling.get_paginator("describe_scaling_policies").paginate(
        ServiceNamespace="sagemaker", ResourceId=resource, PaginationConfig={"PageSize": 1}
    )
    shown = [policy for page in pages for policy in page["ScalingPolicies"]]
    assert [policy["PolicyName"] for policy in shown] == ["memory", "requests"]
    assert shown[0]["TargetTrackingScalingPolicyConfiguration"] == {"TargetValue": 70, "DisableScaleIn": True} | MEMORY
    assert shown[1]["PolicyARN"] == requests["PolicyARN"]
    for suspended, held in (({"DynamicScalingInSuspended": True}, True), ({"DynamicScalingInSuspended": False}, False)):
        autoscaling.register_scalable_target(**place(resource), SuspendedState=suspended)
        assert policies(server)[scaled].disable_scale_in == held
    both = {"DynamicScalingInSuspended": True, "DynamicScalingOutSuspended": True}
    autoscaling.register_scalable_target(**place(resource), SuspendedState=both)
    assert scaled not in policies(server)
    autoscaling.delete_scaling_policy(**place(resource), PolicyName="memory")
    with pytest.raises(autoscaling.exceptions.ObjectNotFoundException):
        autoscaling.delete_scaling_policy(**place(resource), PolicyName="memory")
    autoscaling.deregister_scalable_target(**place(resource))
    with pytest.raises(autoscaling.exceptions.ObjectNotFoundException):
        autoscaling.deregister_scalable_target(**place(resource))
    assert not autoscaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]


def test_what_is_refused(autoscaling: Any, server: Up) -> None:
    wrong = autoscaling.exceptions.ValidationException
    model = VARIANT.format("double", "AllTraffic")  # a model of the repository is an endpoint with one variant
    for resource in (VARIANT.format("nothing", "AllTraffic"), VARIANT.format("double", "other"), "endpoint/double"):
        with pytest.raises(wrong):
            autoscaling.register_scalable_target(**place(resource), MinCapacity=1, MaxCapacity=2)
    with pytest.raises(wrong, match="both bounds"):
        autoscaling.register_scalable_target(**place(model), MinCapacity=1)
    with pytest.raises(wrong, match="over MaxCapacity"):
        autoscaling.register_scalable_target(**place(model), MinCapacity=3, MaxCapacity=2)
    with pytest.raises(autoscaling.exceptions.ObjectNotFoundException, match="Register it first"):
        track(autoscaling, model, "p", 100, REQUESTS)
    autoscaling.register_scalable_target(**place(model), MinCapacity=1, MaxCapacity=2)
    suspended = {"DynamicScalingOutSuspended": True}
    with pytest.raises(wrong, match="scaling out alone"):
        autoscaling.register_scalable_target(**place(model), SuspendedState=suspended)
    other = {"PredefinedMetricSpecification": {"PredefinedMetricType": "ALBRequestCountPerTarget"}}
    with pytest.raises(wrong, match="not measured here"):
        track(autoscaling, model, "p", 100, other)
    with pytest.raises(wrong, match="over 100 percent"):
        track(autoscaling, model, "p", 101, MEMORY)
    with pytest.raises(wrong, match="TargetValue"):
        track(autoscaling, model, "p", 0, REQUESTS)
    with pytest.raises(wrong, match="StepScaling"):
        autoscaling.put_scaling_policy(**place(model), PolicyName="p", PolicyType="StepScaling")
    with pytest.raises(autoscaling.exceptions.InvalidNextTokenException):
        autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker", NextToken="nonsense")
    with pytest.raises(wrong, match="nothing of 'ecs'"):
        autoscaling.describe_scalable_targets(ServiceNamespace="ecs")
    for number in range(50):
        track(autoscaling, model, f"policy-{number}", 100, REQUESTS)
    with pytest.raises(autoscaling.exceptions.LimitExceededException):
        track(autoscaling, model, "policy-50", 100, REQUESTS)
    viewer = user(server, "victor", "viewer").client("application-autoscaling")
    assert viewer.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"]
    with pytest.raises(ClientError) as caught:
        viewer.deregister_scalable_target(**place(model))
    assert caught.value.response["Error"]["Code"] == "AccessDeniedException"
    autoscaling.deregister_scalable_target(**place(model))
