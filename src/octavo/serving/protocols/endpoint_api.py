"""octavo's own JSON API of endpoints: what is declared, who gets which share, and what each variant did."""

from __future__ import annotations

from typing import Any

import orjson

from octavo.errors import Invalid, OctavoError
from octavo.serving.endpoint import Endpoint, parse_endpoint
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply
from octavo.storage.documents import Document

_SMALL_BODY = 2**16
_BASE = "/api/serving/endpoints"


async def endpoints(door: Door, call: Call) -> Reply:
    """Every endpoint with its variants."""
    found = door.service.endpoints.all()
    visible = call.visible([endpoint.name for endpoint in found])
    return json_reply([endpoint.model_dump(mode="json") for endpoint in found if endpoint.name in visible])


async def endpoint(door: Door, call: Call) -> Reply:
    """One endpoint, its revision, and what its variants did since the server started."""
    name = call.model
    call.require("view", name)
    return json_reply(_shown(door, *await door.service.endpoints.get(name)))


async def declare(door: Door, call: Call) -> Reply:
    """Make an endpoint or change it, whole; with `revision` only over that revision."""
    name = call.model
    call.require("edit", name)
    given = await call.json(_SMALL_BODY)
    revision = given.pop("revision", None)
    if revision is not None and type(revision) is not int:
        raise Invalid("'revision' is not a whole number", name, "Send the one you read, or leave it out.")
    if given.setdefault("name", name) != name:
        raise Invalid("the body names another endpoint", name, "Leave `name` out, or send the path's.")
    wanted = parse_endpoint(given)
    _require_models(call, wanted)
    return json_reply(_shown(door, wanted, await door.service.declare_endpoint(wanted, revision)))


async def remove(door: Door, call: Call) -> Reply:
    """Take an endpoint away; its models stay."""
    name = call.model
    call.require("edit", name)
    await door.service.endpoints.delete(name)
    return json_reply({"name": name, "removed": True})


def _require_models(call: Call, wanted: Endpoint) -> None:
    """Who sends traffic to a model must be allowed to ask it: an endpoint is no way around its access."""
    for variant in wanted.variants:
        call.require("infer", variant.model)


def _shown(door: Door, found: Endpoint, document: Document) -> dict[str, Any]:
    shown = found.model_dump(mode="json")
    shown |= {"revision": document.revision, "updated": document.updated.isoformat()}
    shown["statistics"] = [counts.plain() for counts in door.service.traffic.statistics(found.name)]
    return shown


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


_ONE = f"{_BASE}/{{model}}"

PROTOCOL = Protocol(
    "octavo endpoints",
    (
        Operation("GET", _BASE, endpoints, "Every endpoint"),
        Operation("GET", _ONE, endpoint, "One endpoint, and what its variants did"),
        Operation("PUT", _ONE, declare, "Make or change an endpoint", ("application/json",)),
        Operation("DELETE", _ONE, remove, "Take an endpoint away"),
    ),
    _error_body,
    b"application/problem+json",
)
