"""SageMaker's control plane: models, and the tags of all its resources."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from pydantic import Field

from octavo.errors import Invalid
from octavo.serving.protocols.aws_json import Asked, Form, Handler
from octavo.serving.protocols.aws_lists import ListForm, PageForm, Row, listed, paged
from octavo.serving.protocols.exchange import Door
from octavo.serving.sagemaker.images import family_of
from octavo.serving.sagemaker.names import arn_of, check_name, parse_arn
from octavo.serving.sagemaker.records import Container, ModelRecord
from octavo.serving.sagemaker.sources import check_source
from octavo.serving.sagemaker.tags import MAX_TAGS

_DEFAULT_MODEL = "SAGEMAKER_TRITON_DEFAULT_MODEL_NAME"
_MODEL_IDS = ("HF_MODEL_ID", "OPTION_MODEL_ID")


class Tag(Form):
    """A tag."""

    key: str = Field(min_length=1, max_length=128)
    value: str = Field(max_length=256)


TagList = Annotated[list[Tag], Field(max_length=MAX_TAGS)]


class _S3Source(Form):
    s3_uri: str = Field(max_length=1024)


class _Source(Form):
    s3_data_source: _S3Source


class _Container(Form):
    image: str = Field("", max_length=255)
    mode: Literal["SingleModel", "MultiModel"] = "SingleModel"
    model_data_url: str = Field("", max_length=1024)
    model_data_source: _Source | None = None
    model_package_name: str = ""
    environment: dict[str, str] = {}


class _Create(Form):
    model_name: str
    primary_container: _Container | None = None
    containers: list[_Container] = []
    tags: TagList = []


class ModelName(Form):
    """Which model."""

    model_name: str


class _Tagged(PageForm):
    resource_arn: str
    tags: TagList = []
    tag_keys: list[str] = []


async def create_model(door: Door, asked: Asked) -> dict[str, Any]:
    """Declare a model; its data is fetched when an endpoint of it is made."""
    form = asked.read(_Create)
    name = check_name(form.model_name, "ModelName")
    asked.call.require("edit", name)
    given = [form.primary_container] if form.primary_container else form.containers
    if len(given) != 1:
        what = f"the model has {len(given)} containers"
        raise Invalid(what, name, "Give one PrimaryContainer; chain models as an ensemble of Triton's.")
    container = await _container(door, asked, given[0])
    kept = {key: value for key, value in asked.given.items() if key != "Tags"}
    plane = door.service.sagemaker
    await asyncio.to_thread(plane.models.create, ModelRecord(name=name, given=kept, container=container))
    await asyncio.to_thread(plane.tags.change, "model", name, tags_of(form.tags))
    return {"ModelArn": arn_of("model", name, asked.region)}


async def _container(door: Door, asked: Asked, form: _Container) -> Container:
    """What a container of the request runs.

    Raises:
        Invalid: an image or a form that is not understood.
        Forbidden, NotFound: its data may not come from there, or is not there.
    """
    if form.model_package_name:
        raise Invalid("model packages are not known here", "ModelPackageName", "Give Image and ModelDataUrl.")
    family_of(form.image)
    source = form.model_data_url or (form.model_data_source.s3_data_source.s3_uri if form.model_data_source else "")
    multi = form.mode == "MultiModel"
    if source:
        await asyncio.to_thread(check_source, source, door.settings)
        main = form.environment.get(_DEFAULT_MODEL, "")
        return Container(image=form.image, source=source, multi=multi, main=main)
    if multi:
        raise Invalid("a MultiModel model has no data", "ModelDataUrl", "Give the prefix its archives lie below.")
    known = await _known(door, form.environment)
    asked.call.require("infer", known)
    return Container(image=form.image, known=known)


async def _known(door: Door, environment: dict[str, str]) -> str:
    """The model of the repository that the environment names, whole or behind its owner's name and a slash."""
    for variable in _MODEL_IDS:
        called = environment.get(variable, "")
        for name in (called, called.rpartition("/")[2]):
            if name and "/" not in name and await door.service.knows(name):
                return name
    wanted = " or ".join(_MODEL_IDS)
    what = "the model has no data, and its environment names no model of the repository"
    raise Invalid(what, "ModelDataUrl", f"Give ModelDataUrl, or a published model in {wanted}.")


async def describe_model(door: Door, asked: Asked) -> dict[str, Any]:
    """A model as it was declared."""
    name = _model_name(asked)
    asked.call.require("view", name)
    stored = await asyncio.to_thread(door.service.sagemaker.models.get, name)
    told = {"ModelArn": arn_of("model", name, asked.region), "CreationTime": stored.created.timestamp()}
    return stored.record.given | {"ModelName": name} | told


async def list_models(door: Door, asked: Asked) -> dict[str, Any]:
    """The models that were declared."""
    found = await asyncio.to_thread(door.service.sagemaker.models.all)
    visible = asked.call.visible([stored.record.name for stored in found])
    rows = []
    for stored in found:
        name, created = stored.record.name, stored.created.timestamp()
        shown = {"ModelName": name, "ModelArn": arn_of("model", name, asked.region), "CreationTime": created}
        if name in visible:
            rows.append(Row(name, created, created, shown))
    return listed(rows, asked.read(ListForm), "Models")


async def delete_model(door: Door, asked: Asked) -> dict[str, Any]:
    """Forget a model; endpoints of it go on, and what was published of it stays in the repository."""
    name = _model_name(asked)
    asked.call.require("edit", name)
    plane = door.service.sagemaker
    await asyncio.to_thread(plane.models.delete, name)
    await asyncio.to_thread(plane.tags.forget, "model", name)
    return {}


def _model_name(asked: Asked) -> str:
    return check_name(asked.read(ModelName).model_name, "ModelName")


async def add_tags(door: Door, asked: Asked) -> dict[str, Any]:
    """Tag a resource."""
    form, kind, name = await _tagged(door, asked, "edit")
    changed = await asyncio.to_thread(door.service.sagemaker.tags.change, kind, name, tags_of(form.tags))
    return {"Tags": _shown(changed)}


async def delete_tags(door: Door, asked: Asked) -> dict[str, Any]:
    """Take tags from a resource."""
    form, kind, name = await _tagged(door, asked, "edit")
    await asyncio.to_thread(door.service.sagemaker.tags.change, kind, name, {}, form.tag_keys)
    return {}


async def list_tags(door: Door, asked: Asked) -> dict[str, Any]:
    """A resource's tags."""
    form, kind, name = await _tagged(door, asked, "view")
    found = await asyncio.to_thread(door.service.sagemaker.tags.of, kind, name)
    return paged([Row(tag["Key"], 0, 0, tag) for tag in _shown(found)], form, "Tags")


async def _tagged(door: Door, asked: Asked, action: Literal["view", "edit"]) -> tuple[_Tagged, Any, str]:
    """The request, and what it is about; raises `NotFound` for what is not there."""
    form = asked.read(_Tagged)
    kind, name = parse_arn(form.resource_arn)
    asked.call.require(action, name)
    plane = door.service.sagemaker
    look = {"model": plane.models.get, "endpoint-config": plane.configs.get, "endpoint": plane.endpoints.get}[kind]
    await asyncio.to_thread(look, name)
    return form, kind, name


def tags_of(tags: list[Tag]) -> dict[str, str]:
    """Tags by key."""
    return {tag.key: tag.value for tag in tags}


def _shown(tags: dict[str, str]) -> list[dict[str, str]]:
    return [{"Key": key, "Value": value} for key, value in tags.items()]


OPERATIONS: dict[str, Handler] = {
    "CreateModel": create_model,
    "DescribeModel": describe_model,
    "ListModels": list_models,
    "DeleteModel": delete_model,
    "AddTags": add_tags,
    "DeleteTags": delete_tags,
    "ListTags": list_tags,
}
