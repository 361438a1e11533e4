"""octavo's own JSON API of the server: what is in memory and what it costs, pins, default versions."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from octavo.errors import Invalid, OctavoError
from octavo.serving.input_type import DEFAULT as DEFAULT_INPUT_TYPE
from octavo.serving.input_type import DOCUMENT
from octavo.serving.pair import parse_encoder, publish_pair
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply

_SMALL_BODY = 2**16
_BASE = "/api/serving"


async def residency(door: Door, call: Call) -> Reply:
    """The memory budget and who holds what of it."""
    snapshot = await door.service.measure()
    visible = call.visible([model.name for model in snapshot.models])
    found = asdict(snapshot)
    found["models"] = [model for model in found["models"] if model["name"] in visible]
    return json_reply(found)


async def models(door: Door, call: Call) -> Reply:
    """Every served version of every model: state, bytes in memory, pinned, default, latencies in milliseconds."""
    found = await door.service.index()
    visible = call.visible([status.name for status in found])
    counts = {(one.name, one.version): one for one in door.service.statistics()}
    rows: list[dict[str, Any]] = []
    for status in found:
        if status.name not in visible:
            continue
        row = asdict(status)
        count = counts.get((status.name, status.version))
        if count is not None:
            row["requests"] = count.success.count + count.fail.count
            row |= {f"p{share}_ms": count.latency.percentile(share / 100) * 1000 for share in (50, 99)}
        rows.append(row)
    return json_reply(rows)


async def pin(door: Door, call: Call) -> Reply:
    """Keep a model in memory, loading it if need be."""
    return await _pin(door, call, pinned=True)


async def unpin(door: Door, call: Call) -> Reply:
    """Let a model be evicted again."""
    return await _pin(door, call, pinned=False)


async def _pin(door: Door, call: Call, pinned: bool) -> Reply:
    model = call.model
    call.require("edit", model)
    await door.service.pin(model, pinned)
    return json_reply({"name": model, "pinned": pinned})


async def use_version(door: Door, call: Call) -> Reply:
    """Serve another version by default; nothing is deleted."""
    model = call.model
    call.require("edit", model)
    version = (await call.json(_SMALL_BODY)).get("version")
    if type(version) is int:
        version = str(version)
    if not isinstance(version, str) or not version:
        raise Invalid("'version' is missing", model, 'Send {"version": "2"}.')
    return json_reply({"name": model, "version": await door.service.use_version(model, version)})


async def set_label(door: Door, call: Call) -> Reply:
    """Point a label at a version; an empty version takes the label away."""
    model = call.model
    call.require("edit", model)
    given = await call.json(_SMALL_BODY)
    label, version = given.get("label"), given.get("version", "")
    if type(version) is int:
        version = str(version)
    if not isinstance(label, str) or not isinstance(version, str):
        raise Invalid("'label' or 'version' is not a text", model, 'Send {"label": "stable", "version": "2"}.')
    await door.service.set_label(model, label, version)
    return json_reply({"name": model, "label": label, "version": version})


async def pair(door: Door, call: Call) -> Reply:
    """Publish two encoders behind one name."""
    model = call.model
    call.require("edit", model)
    given = await call.json(_SMALL_BODY)
    query, document, default = (given.get(key) for key in ("query", "document", DEFAULT_INPUT_TYPE))
    if not isinstance(query, str) or not isinstance(document, str) or not isinstance(default, str | None):
        raise Invalid("'query' or 'document' is not a text", model, 'Send {"query": "MODEL", "document": "MODEL"}.')
    for encoder in (query, document):
        call.require("infer", parse_encoder(encoder)[0])
    return json_reply(asdict(await publish_pair(door.service, model, query, document, default or DOCUMENT)))


async def roll_back(door: Door, call: Call) -> Reply:
    """Serve the version before the current one by default."""
    model = call.model
    call.require("edit", model)
    version = await door.service.roll_back(model)
    return json_reply({"name": model, "version": version})


async def roll_forward(door: Door, call: Call) -> Reply:
    """Serve what the version policy says again, the newest mostly."""
    model = call.model
    call.require("edit", model)
    version = await door.service.roll_forward(model)
    return json_reply({"name": model, "version": version})


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


PROTOCOL = Protocol(
    "octavo serving",
    (
        Operation("GET", f"{_BASE}/residency", residency, "The memory budget and who holds what of it"),
        Operation("GET", f"{_BASE}/models", models, "Every served version of every model"),
        Operation("POST", f"{_BASE}/models/{{model}}/pin", pin, "Keep a model in memory"),
        Operation("POST", f"{_BASE}/models/{{model}}/unpin", unpin, "Let a model be evicted again"),
        Operation(
            "POST", f"{_BASE}/models/{{model}}/default-version", use_version, "Serve a version", ("application/json",)
        ),
        Operation("POST", f"{_BASE}/models/{{model}}/labels", set_label, "Label a version", ("application/json",)),
        Operation(
            "POST", f"{_BASE}/models/{{model}}/pair", pair, "Put two encoders behind a name", ("application/json",)
        ),
        Operation("POST", f"{_BASE}/models/{{model}}/roll-back", roll_back, "Serve the version before"),
        Operation("POST", f"{_BASE}/models/{{model}}/roll-forward", roll_forward, "Serve the newest version again"),
    ),
    _error_body,
    b"application/problem+json",
)
