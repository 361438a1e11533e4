"""What a notebook does, with boto3 as it is: from an upload to the endpoint's end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from .conftest import QUICK, REGION, ROW, TRITON, Declared, model_tar

Upload = Callable[[str, bytes], str]


def test_a_notebook_from_upload_to_delete(
    sagemaker: Any, runtime: Any, autoscaling: Any, upload: Upload, declared: Declared
) -> None:
    for number, factor in ((1, 2), (2, 3)):
        made = sagemaker.create_model(
            ModelName=f"intents-v{number}",
            PrimaryContainer={"Image": TRITON, "ModelDataUrl": upload(f"v{number}/model.tar.gz", model_tar(factor))},
            ExecutionRoleArn="arn:aws:iam::123456789012:role/SageMakerRole",
            Tags=[{"Key": "team", "Value": "ml"}],
        )
        assert made["ModelArn"] == f"arn:aws:sagemaker:{REGION}:000000000000:model/intents-v{number}"
        sagemaker.create_endpoint_config(
            EndpointConfigName=f"intents-config-{number}",
            ProductionVariants=[
                {
                    "VariantName": "AllTraffic",
                    "ModelName": f"intents-v{number}",
                    "InstanceType": "ml.g4dn.xlarge",
                    "InitialInstanceCount": 2,
                }
            ],
        )
    sagemaker.create_endpoint(EndpointName="intents", EndpointConfigName="intents-config-1")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="intents", WaiterConfig=QUICK)
    found = sagemaker.describe_endpoint(EndpointName="intents")
    variant = found["ProductionVariants"][0]
    assert (variant["CurrentInstanceCount"], variant["CurrentWeight"]) == (2, 1.0)
    assert variant["DeployedImages"][0]["SpecifiedImage"] == TRITON
    answer = runtime.invoke_endpoint(EndpointName="intents", Body=ROW, ContentType="application/json")
    assert json.loads(answer["Body"].read())["predictions"] == [[2, 4, 6, 8]]
    assert answer["InvokedProductionVariant"] == "AllTraffic"

    sagemaker.update_endpoint(EndpointName="intents", EndpointConfigName="intents-config-2")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="intents", WaiterConfig=QUICK)
    assert sagemaker.describe_endpoint(EndpointName="intents")["EndpointConfigName"] == "intents-config-2"
    assert declared.ask("intents") == 3

    scaled = {
        "ServiceNamespace": "sagemaker",
        "ResourceId": "endpoint/intents/variant/AllTraffic",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
    }
    autoscaling.register_scalable_target(**scaled, MinCapacity=1, MaxCapacity=4)
    autoscaling.put_scaling_policy(
        **scaled,
        PolicyName="requests",
        PolicyType="TargetTrackingScaling",
        TargetTrackingScalingPolicyConfiguration={
            "TargetValue": 225.0,
            "PredefinedMetricSpecification": {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"},
        },
    )
    policies = autoscaling.describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert [policy["PolicyName"] for policy in policies] == ["requests"]

    sagemaker.delete_endpoint(EndpointName="intents")
    sagemaker.get_waiter("endpoint_deleted").wait(EndpointName="intents", WaiterConfig=QUICK)
    assert autoscaling.describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"] == []
    for number in (1, 2):
        sagemaker.delete_endpoint_config(EndpointConfigName=f"intents-config-{number}")
        sagemaker.delete_model(ModelName=f"intents-v{number}")
    with pytest.raises(runtime.exceptions.ValidationError, match="no endpoint"):
        declared.ask("intents")
