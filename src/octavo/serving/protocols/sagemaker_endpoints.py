"""SageMaker's control plane: endpoints, and the service as a whole."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from octavo.errors import Invalid
from octavo.serving.endpoint import MAX_VARIANTS
from octavo.serving.protocols import sagemaker_configs, sagemaker_models
from octavo.serving.protocols.aws_json import Asked, AwsService, Form, Handler
from octavo.serving.protocols.aws_lists import ListForm, Row, listed
from octavo.serving.protocols.exchange import Door
from octavo.serving.protocols.sagemaker_configs import Count, Weight
from octavo.serving.protocols.sagemaker_models import TagList, tags_of
from octavo.serving.sagemaker.names import arn_of, check_name
from octavo.serving.sagemaker.records import EndpointRecord, Plan, ServedVariant, Stored

_COUNT, _WEIGHT = "DesiredInstanceCount", "DesiredWeight"


class _Name(Form):
    endpoint_name: str


class _Create(_Name):
    endpoint_config_name: str
    tags: TagList = []


class _Property(Form):
    variant_property_type: str


class _Update(_Name):
    endpoint_config_name: str
    retain_all_variant_properties: bool = False
    exclude_retained_variant_properties: list[_Property] = []


class _Desired(Form):
    variant_name: str
    desired_weight: Weight | None = None
    desired_instance_count: Count | None = None


class _Weights(_Name):
    desired_weights_and_capacities: Annotated[list[_Desired], Field(min_length=1, max_length=MAX_VARIANTS + 1)]


async def create_endpoint(door: Door, asked: Asked) -> dict[str, Any]:
    """Begin to publish a configuration's models and to serve them under one name."""
    form = asked.read(_Create)
    name = check_name(form.endpoint_name, "EndpointName")
    asked.call.require("edit", name)
    plan = await _plan(door, asked, form.endpoint_config_name)
    plane = door.service.sagemaker
    kept = {key: value for key, value in asked.given.items() if key != "Tags"}
    await plane.create(EndpointRecord(name=name, given=kept, status="Creating", plan=plan))
    await asyncio.to_thread(plane.tags.change, "endpoint", name, tags_of(form.tags))
    return _arn(name, asked)


async def update_endpoint(door: Door, asked: Asked) -> dict[str, Any]:
    """Begin to serve another configuration; until that answers, the present one does."""
    form = asked.read(_Update)
    name = check_name(form.endpoint_name, "EndpointName")
    asked.call.require("edit", name)
    wanted = await _plan(door, asked, form.endpoint_config_name)
    excluded = {each.variant_property_type for each in form.exclude_retained_variant_properties}
    kept = {_COUNT: "count", _WEIGHT: "weight"} if form.retain_all_variant_properties else {}
    retained = [field for member, field in kept.items() if member not in excluded]

    def change(record: EndpointRecord) -> Plan:
        present = {variant.name: variant for variant in record.plan.variants}
        return _changed(
            wanted,
            {name: {field: getattr(variant, field) for field in retained} for name, variant in present.items()},
        )

    await door.service.sagemaker.update(name, change)
    return _arn(name, asked)


async def update_weights(door: Door, asked: Asked) -> dict[str, Any]:
    """Give variants other shares of the traffic, or other numbers of instances."""
    form = asked.read(_Weights)
    name = check_name(form.endpoint_name, "EndpointName")
    asked.call.require("edit", name)
    wanted = {
        each.variant_name: {
            field: value
            for field, value in (("weight", each.desired_weight), ("count", each.desired_instance_count))
            if value is not None
        }
        for each in form.desired_weights_and_capacities
    }

    def change(record: EndpointRecord) -> Plan:
        known = [variant.name for variant in record.plan.variants]
        for variant in wanted:
            if variant not in known:
                raise Invalid(f"there is no variant {variant[:63]!r}", name, f"It has {', '.join(known)}.")
        if not record.served:
            raise Invalid("the endpoint does not serve", record.status, "Update it to a configuration that does.")
        return _changed(record.plan, wanted)

    await door.service.sagemaker.update(name, change)
    return _arn(name, asked)


def _changed(plan: Plan, changes: dict[str, dict[str, Any]]) -> Plan:
    """The plan with other values of some variants."""
    variants = tuple(variant.model_copy(update=changes.get(variant.name, {})) for variant in plan.variants)
    return plan.model_copy(update={"variants": variants})


async def _plan(door: Door, asked: Asked, config: str) -> Plan:
    """What a configuration comes to.

    Raises:
        NotFound: there is none, or not its models.
        Forbidden: the caller may not ask one of them: an endpoint is no way around a model's access.
    """
    plan = await door.service.sagemaker.plan(check_name(config, "EndpointConfigName"))
    for variant in plan.variants:
        asked.call.require("infer", variant.container.known or variant.model)
    return plan


async def describe_endpoint(door: Door, asked: Asked) -> dict[str, Any]:
    """An endpoint, and how far its last change has come."""
    name = check_name(asked.read(_Name).endpoint_name, "EndpointName")
    asked.call.require("view", name)
    stored = await door.service.sagemaker.look(name)
    record = stored.record
    told = _summary(stored, asked.region) | {"EndpointConfigName": record.plan.config}
    for member, shadow in (("ProductionVariants", False), ("ShadowProductionVariants", True)):
        variants = [_shown(variant, record.served) for variant in record.plan.variants if variant.shadow == shadow]
        told |= {member: variants} if variants else {}
    if record.failure:
        told["FailureReason"] = record.failure
    if record.next is not None:
        pending = [_shown(variant, False) for variant in record.next.variants if not variant.shadow]
        told["PendingDeploymentSummary"] = {"EndpointConfigName": record.next.config, "ProductionVariants": pending}
    if "DeploymentConfig" in record.given:
        told["LastDeploymentConfig"] = record.given["DeploymentConfig"]
    return told


def _shown(variant: ServedVariant, served: bool) -> dict[str, Any]:
    image = {"SpecifiedImage": variant.container.image, "ResolvedImage": variant.container.image}
    told: dict[str, Any] = {"VariantName": variant.name, "DeployedImages": [image]}
    serverless = variant.given.get("ServerlessConfig")
    size, value = ("ServerlessConfig", serverless) if serverless else ("InstanceCount", variant.count)
    for state in ("Desired", "Current") if served else ("Desired",):
        told |= {f"{state}Weight": variant.weight, f"{state}{size}": value}
    return told


async def list_endpoints(door: Door, asked: Asked) -> dict[str, Any]:
    """The endpoints that were declared."""
    found = await asyncio.to_thread(door.service.sagemaker.endpoints.all)
    visible = asked.call.visible([stored.record.name for stored in found])
    rows = [
        Row(
            stored.record.name,
            stored.created.timestamp(),
            stored.updated.timestamp(),
            _summary(stored, asked.region),
            stored.record.status,
        )
        for stored in found
        if stored.record.name in visible
    ]
    return listed(rows, asked.read(ListForm), "Endpoints")


def _summary(stored: Stored[EndpointRecord], region: str) -> dict[str, Any]:
    name = stored.record.name
    return {
        "EndpointName": name,
        "EndpointArn": arn_of("endpoint", name, region),
        "EndpointStatus": stored.record.status,
        "CreationTime": stored.created.timestamp(),
        "LastModifiedTime": stored.updated.timestamp(),
    }


async def delete_endpoint(door: Door, asked: Asked) -> dict[str, Any]:
    """Take an endpoint away, with its scaling and its archives' models; other models stay."""
    name = check_name(asked.read(_Name).endpoint_name, "EndpointName")
    asked.call.require("edit", name)
    await door.service.sagemaker.delete(name)
    return {}


def _arn(name: str, asked: Asked) -> dict[str, Any]:
    return {"EndpointArn": arn_of("endpoint", name, asked.region)}


_OPERATIONS: dict[str, Handler] = {
    "CreateEndpoint": create_endpoint,
    "UpdateEndpoint": update_endpoint,
    "UpdateEndpointWeightsAndCapacities": update_weights,
    "DescribeEndpoint": describe_endpoint,
    "ListEndpoints": list_endpoints,
    "DeleteEndpoint": delete_endpoint,
}

SERVICE = AwsService(
    "SageMaker",
    sagemaker_models.OPERATIONS | sagemaker_configs.OPERATIONS | _OPERATIONS,
    not_found="ValidationException",  # what SageMaker says, and what boto3's waiters look for
    conflict="ConflictException",
    wrong_token="ValidationException",
)
