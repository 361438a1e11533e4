"""SageMaker's contract of a multi-model container: what the platform asks of one.

Loading brings a model of the repository into memory. A model that is not there is published first when `url` is a
folder below `serving.model_sources`.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from octavo.errors import Conflict, Forbidden, Invalid, NotFound
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply
from octavo.serving.protocols.sagemaker_body import GIVEN, TAKEN
from octavo.serving.protocols.sagemaker_runtime import container_error
from octavo.serving.protocols.sagemaker_target import TARGET, ask, find_target, only_model, target_names

if TYPE_CHECKING:
    from octavo.settings import Settings

_SMALL_BODY = 2**16
_PAGE, _MAX_PAGE = 100, 1000
_ARCHIVES = (".tar.gz", ".tgz", ".tar", ".zip")


async def ping(_door: Door, _call: Call) -> Reply:
    """Say that the server takes requests."""
    return Reply(200, b"")


async def invocations(door: Door, call: Call) -> Reply:
    """Ask the model of the header `X-Amzn-SageMaker-Target-Model`, or the only one."""
    target = (call.header(TARGET) or b"").decode("latin-1")
    return await _ask(door, call, await find_target(door, "", target) if target else await only_model(door))


async def invoke(door: Door, call: Call) -> Reply:
    """Ask a model."""
    return await _ask(door, call, await find_target(door, "", _named(call)))


async def _ask(door: Door, call: Call, model: str) -> Reply:
    call.require("infer", model)
    reply, _ = await ask(door, call, model)
    return reply


async def models(door: Door, call: Call) -> Reply:
    """The models in memory, in pages: `?limit=100&next_page_token=...`."""
    query = parse_qs(call.scope["query_string"].decode("latin-1"), max_num_fields=20)
    last = (query.get("next_page_token") or query.get("nextPageToken") or [""])[0]
    limit = (query.get("limit") or [str(_PAGE)])[0]
    if not limit.isascii() or not limit.isdigit() or not 1 <= int(limit[:9]) <= _MAX_PAGE:
        raise Invalid(f"{limit[:20]!r} is no number of models", "limit", f"Ask for 1 to {_MAX_PAGE}.")
    names = sorted({model.name for model in door.service.residency().models})
    visible = call.visible(names)
    left = [name for name in names if name in visible and name > last]
    page = left[: int(limit)]
    told: dict[str, Any] = {"models": [_described(door, name) for name in page]}
    if len(left) > len(page):
        told["nextPageToken"] = page[-1]
    return json_reply(told)


async def model(door: Door, call: Call) -> Reply:
    """A model in memory."""
    return json_reply(_described(door, await _loaded(door, call, "view")))


async def load(door: Door, call: Call) -> Reply:
    """Bring a model into memory: 409 when it is there already, 507 when there is no room."""
    given = await call.json(_SMALL_BODY)
    name, url = given.get("model_name"), given.get("url", "")
    if not isinstance(name, str) or not isinstance(url, str):
        fix = 'Send {"model_name": "minilm", "url": "/folder/of/it"}.'
        raise Invalid("'model_name' or 'url' is not a text", "body", fix)
    try:
        found = await find_target(door, "", name)
        call.require("edit", found)
    except NotFound:
        found = target_names("", name)[0]
        call.require("edit", found)
        folder = await asyncio.to_thread(source_folder, url, door.settings)
        await asyncio.to_thread(door.service.repository.publish, found, folder)
    if door.service.in_memory(found):
        raise Conflict("the model is loaded already", found, "DELETE /models/{name} unloads it.")
    await door.service.load(found)
    return json_reply(_described(door, found))


def source_folder(url: str, settings: Settings) -> Path:
    """The folder that a model which is not in the repository may be published from.

    Raises:
        NotFound: there is no such folder.
        Invalid: an archive, or S3.
        Forbidden: not below `serving.model_sources`, links followed.
    """
    path = url.removeprefix("file://")
    if path.endswith(_ARCHIVES) or "://" in path:
        what = "the model is not in the repository, and only folders are published by a load"
        raise Invalid(what, url[:200], "Publish it first: octavo models publish, or octavo models deploy.")
    root = settings.serving.model_sources
    if not root or not path:
        what = "the model is not in the repository, and loads publish nothing here"
        raise NotFound(what, "serving.model_sources", "Publish it first: octavo models publish")
    try:
        folder = Path(path).resolve(strict=True)
        allowed = folder.is_relative_to(Path(root).expanduser().resolve(strict=True))
    except (OSError, ValueError, RuntimeError):
        folder, allowed = Path(path), True
    if not allowed:
        raise Forbidden("this folder may not be published", url[:200], "Put it below serving.model_sources.")
    if not folder.is_dir():
        raise NotFound("there is no such folder", url[:200], "Put the model's folder there.")
    return folder


async def unload(door: Door, call: Call) -> Reply:
    """Send a model out of memory; 404 when it is not there."""
    name = await _loaded(door, call, "edit")
    told = _described(door, name)
    await door.service.unload(name)
    return json_reply(told)


def _named(call: Call) -> str:
    name: str = call.scope["path_params"]["model"]
    return name


async def _loaded(door: Door, call: Call, action: Any) -> str:
    """The model in the path; raises `NotFound` when it is not in memory."""
    name = await find_target(door, "", _named(call))
    call.require(action, name)
    if not door.service.in_memory(name):
        raise NotFound("the model is not loaded", name, "POST /models loads it.")
    return name


def _described(door: Door, name: str) -> dict[str, str]:
    return {"modelName": name, "modelUrl": f"{door.service.repository.where}/{name}"}


PROTOCOL = Protocol(
    "SageMaker container",
    (
        Operation("GET", "/ping", ping, "Whether the server takes requests"),
        Operation("POST", "/invocations", invocations, "Ask a model", TAKEN, GIVEN),
        Operation("GET", "/models", models, "The models in memory", page=True),
        Operation("POST", "/models", load, "Bring a model into memory", ("application/json",), page=True),
        Operation("POST", "/models/{model:path}/invoke", invoke, "Ask a model", TAKEN, GIVEN, page=True),
        Operation("GET", "/models/{model:path}", model, "A model in memory", page=True),
        Operation("DELETE", "/models/{model:path}", unload, "Send a model out of memory", page=True),
    ),
    container_error,
)
