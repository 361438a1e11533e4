"""SageMaker's control plane: endpoint configurations."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from pydantic import Field

from octavo.errors import Invalid
from octavo.serving.autoscaling.policy import MAX_INSTANCES
from octavo.serving.endpoint import MAX_VARIANTS
from octavo.serving.protocols.aws_json import Asked, Form, Handler
from octavo.serving.protocols.aws_lists import ListForm, Row, listed
from octavo.serving.protocols.exchange import Door
from octavo.serving.protocols.sagemaker_models import TagList, tags_of
from octavo.serving.sagemaker.names import arn_of, check_name
from octavo.serving.sagemaker.records import ConfigRecord, ConfigVariant

Count = Annotated[int, Field(ge=1, le=MAX_INSTANCES)]
Weight = Annotated[float, Field(ge=0, le=1e6)]


class _Variant(Form):
    variant_name: str
    model_name: str = ""
    initial_instance_count: Count = 1
    initial_variant_weight: Weight = 1.0


class _Capture(Form):
    enable_capture: bool = False


class _Create(Form):
    endpoint_config_name: str
    production_variants: Annotated[list[_Variant], Field(min_length=1, max_length=MAX_VARIANTS)]
    shadow_production_variants: Annotated[list[_Variant], Field(max_length=1)] = []
    data_capture_config: _Capture | None = None
    async_inference_config: dict[str, Any] | None = None
    explainer_config: dict[str, Any] | None = None
    tags: TagList = []


class _Name(Form):
    endpoint_config_name: str


async def create_config(door: Door, asked: Asked) -> dict[str, Any]:
    """Declare how models share an endpoint's traffic."""
    form = asked.read(_Create)
    name = check_name(form.endpoint_config_name, "EndpointConfigName")
    asked.call.require("edit", name)
    _refuse_what_is_not_done(form)
    plane = door.service.sagemaker
    production = [_variant(each, raw) for each, raw in _pairs(form.production_variants, asked, "ProductionVariants")]
    shadows = _pairs(form.shadow_production_variants, asked, "ShadowProductionVariants")
    variants = (*production, *(_variant(each, raw, shadow=True) for each, raw in shadows))
    if len({variant.name for variant in variants}) < len(variants):
        raise Invalid("two variants have one name", "VariantName", "Give each its own.")
    for variant in variants:
        stored = await asyncio.to_thread(plane.models.get, variant.model)
        asked.call.require("infer", stored.record.container.known or variant.model)
    kept = {key: value for key, value in asked.given.items() if key != "Tags"}
    await asyncio.to_thread(plane.configs.create, ConfigRecord(name=name, given=kept, variants=variants))
    await asyncio.to_thread(plane.tags.change, "endpoint-config", name, tags_of(form.tags))
    return {"EndpointConfigArn": arn_of("endpoint-config", name, asked.region)}


def _refuse_what_is_not_done(form: _Create) -> None:
    """Raise `Invalid` for what would change answers or records if it were passed over."""
    fix = "Leave it out."
    if form.data_capture_config is not None and form.data_capture_config.enable_capture:
        raise Invalid("no data is captured here", "DataCaptureConfig", fix)
    if form.async_inference_config is not None:
        raise Invalid("there is no asynchronous inference here", "AsyncInferenceConfig", fix)
    if form.explainer_config is not None:
        raise Invalid("answers are not explained here", "ExplainerConfig", fix)


def _pairs(forms: list[_Variant], asked: Asked, member: str) -> list[tuple[_Variant, dict[str, Any]]]:
    return list(zip(forms, asked.given.get(member) or (), strict=True))


def _variant(form: _Variant, given: dict[str, Any], *, shadow: bool = False) -> ConfigVariant:
    if not form.model_name:
        raise Invalid("a variant has no model", form.variant_name[:63], "Inference components are not known here.")
    return ConfigVariant(
        name=check_name(form.variant_name, "VariantName"),
        model=check_name(form.model_name, "ModelName"),
        weight=form.initial_variant_weight,
        count=form.initial_instance_count,
        shadow=shadow,
        given=given,
    )


async def describe_config(door: Door, asked: Asked) -> dict[str, Any]:
    """An endpoint configuration as it was declared."""
    name = _name(asked)
    asked.call.require("view", name)
    stored = await asyncio.to_thread(door.service.sagemaker.configs.get, name)
    told = _summary(name, stored.created.timestamp(), asked.region)
    for member, shadow in (("ProductionVariants", False), ("ShadowProductionVariants", True)):
        variants = [_shown(variant) for variant in stored.record.variants if variant.shadow == shadow]
        told |= {member: variants} if variants else {}
    return stored.record.given | told


def _shown(variant: ConfigVariant) -> dict[str, Any]:
    usual: dict[str, Any] = {"InitialVariantWeight": variant.weight}
    if "ServerlessConfig" not in variant.given:
        usual["InitialInstanceCount"] = variant.count
    return usual | variant.given


async def list_configs(door: Door, asked: Asked) -> dict[str, Any]:
    """The endpoint configurations that were declared."""
    found = await asyncio.to_thread(door.service.sagemaker.configs.all)
    visible = asked.call.visible([stored.record.name for stored in found])
    rows = []
    for stored in found:
        name, created = stored.record.name, stored.created.timestamp()
        if name in visible:
            rows.append(Row(name, created, created, _summary(name, created, asked.region)))
    return listed(rows, asked.read(ListForm), "EndpointConfigs")


def _summary(name: str, created: float, region: str) -> dict[str, Any]:
    return {
        "EndpointConfigName": name,
        "EndpointConfigArn": arn_of("endpoint-config", name, region),
        "CreationTime": created,
    }


async def delete_config(door: Door, asked: Asked) -> dict[str, Any]:
    """Forget an endpoint configuration; endpoints made by it go on."""
    name = _name(asked)
    asked.call.require("edit", name)
    plane = door.service.sagemaker
    await asyncio.to_thread(plane.configs.delete, name)
    await asyncio.to_thread(plane.tags.forget, "endpoint-config", name)
    return {}


def _name(asked: Asked) -> str:
    return check_name(asked.read(_Name).endpoint_config_name, "EndpointConfigName")


OPERATIONS: dict[str, Handler] = {
    "CreateEndpointConfig": create_config,
    "DescribeEndpointConfig": describe_config,
    "ListEndpointConfigs": list_configs,
    "DeleteEndpointConfig": delete_config,
}
