"""KServe v2 over HTTP: the operations, with the repository, statistics and configuration extensions of Triton."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from typing import Any

import orjson

import octavo
from octavo.errors import Invalid, OctavoError
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply, parsed
from octavo.serving.protocols.kserve import HEADER_LENGTH, check_load, check_unload, parse, serialise
from octavo.serving.statistics import Duration, ModelStatistics
from octavo.serving.tensors import TensorSpec

EXTENSIONS = ["binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics"]
_SMALL_BODY = 2**20  # bytes a control request may have
_WORTH_PACKING = 1024
_BINARY = "application/octet-stream"


async def infer(door: Door, call: Call) -> Reply:
    """Ask a model."""
    model = call.model
    call.require("infer", model)
    body = await call.body(door.settings.web.max_body)
    inference = await parsed(body, parse, call.header(HEADER_LENGTH), model, call.version, call.principal.name)
    answer = await call.while_connected(door.service.infer(inference.request))
    return _packed(serialise(answer, inference), call.header(b"accept-encoding"))


def _packed(reply: Reply, accepted: bytes | None) -> Reply:
    """Pack the answer for a client that names just one packing, as Triton's do when they are told to.

    Those that offer a list by habit get it plain: packing numbers costs more than sending them.
    """
    if accepted not in (b"gzip", b"deflate") or len(reply.body) < _WORTH_PACKING:
        return reply
    body = gzip.compress(reply.body, 1, mtime=0) if accepted == b"gzip" else zlib.compress(reply.body, 1)
    return reply._replace(body=body, headers=(*reply.headers, (b"content-encoding", accepted)))


async def server(_door: Door, _call: Call) -> Reply:
    """What this server is."""
    return json_reply({"name": "octavo", "version": octavo.__version__, "extensions": EXTENSIONS})


async def healthy(_door: Door, _call: Call) -> Reply:
    """Say that the server answers; models load on demand, so it is ready as soon as it is live."""
    return Reply(200, b"")


async def model_ready(door: Door, call: Call) -> Reply:
    """Whether a model answers: status 200 or 400."""
    model = call.model
    call.require("view", model)
    if door.service.ready(model, call.version):
        return Reply(200, b"")
    raise Invalid("the model is not ready", model, "The repository index says why.")


async def metadata(door: Door, call: Call) -> Reply:
    """A model's versions, inputs and outputs."""
    model = call.model
    call.require("view", model)
    found = await call.while_connected(door.service.metadata(model, call.version))
    return json_reply(
        {
            "name": found.name,
            "versions": found.versions,
            "platform": found.platform,
            "inputs": [_tensor(spec) for spec in found.inputs],
            "outputs": [_tensor(spec) for spec in found.outputs],
        }
    )


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": spec.datatype, "shape": spec.shape}


async def config(door: Door, call: Call) -> Reply:
    """A model's configuration."""
    from octavo.serving.pbtxt import to_json

    model = call.model
    call.require("view", model)
    return json_reply(to_json(await asyncio.to_thread(door.service.repository.config, model, call.version)))


async def model_statistics(door: Door, call: Call) -> Reply:
    """What one model did since the server started."""
    model = call.model
    call.require("view", model)
    return json_reply({"model_stats": [statistics_row(one) for one in door.service.statistics(model, call.version)]})


async def all_statistics(door: Door, call: Call) -> Reply:
    """What every model did since the server started."""
    found = door.service.statistics()
    visible = call.visible([one.name for one in found])
    return json_reply({"model_stats": [statistics_row(one) for one in found if one.name in visible]})


def statistics_row(model: ModelStatistics) -> dict[str, Any]:
    """What one model version did, in the form of the statistics extension."""
    nothing = Duration()
    return {
        "name": model.name,
        "version": model.version,
        "last_inference": int(model.last_inference * 1000),
        "inference_count": model.rows,
        "execution_count": model.compute.count,
        "inference_stats": {
            "success": _duration(model.success),
            "fail": _duration(model.fail),
            "queue": _duration(model.queue),
            "compute_input": _duration(nothing),
            "compute_infer": _duration(model.compute),
            "compute_output": _duration(nothing),
            "cache_hit": _duration(nothing),
            "cache_miss": _duration(nothing),
        },
        "batch_stats": [
            {
                "batch_size": rows,
                "compute_input": _duration(nothing),
                "compute_infer": _duration(spent),
                "compute_output": _duration(nothing),
            }
            for rows, spent in sorted(model.batches.items())
        ],
    }


def _duration(spent: Duration) -> dict[str, int]:
    return {"count": spent.count, "ns": int(spent.seconds * 1e9)}


async def index(door: Door, call: Call) -> Reply:
    """The models of the repository, `{"ready": true}` for those only that answer."""
    wanted = await call.json(_SMALL_BODY)
    ready = wanted.get("ready", False)
    if not isinstance(ready, bool):
        raise Invalid("'ready' is not true or false", "body")
    found = await door.service.index()
    visible = call.visible([status.name for status in found])
    return json_reply(
        [
            {"name": status.name, "version": status.version, "state": status.state, "reason": status.reason}
            for status in found
            if status.name in visible and (status.state == "READY" or not ready)
        ]
    )


async def load(door: Door, call: Call) -> Reply:
    """Bring a model into memory."""
    model = call.model
    call.require("edit", model)
    check_load(await _parameters(call), model)
    await door.service.load(model)
    return Reply(200, b"")


async def unload(door: Door, call: Call) -> Reply:
    """Send a model out of memory; the next request loads it again."""
    model = call.model
    call.require("edit", model)
    parameters = await _parameters(call)
    check_unload(parameters, model)
    if not isinstance(parameters.get("unload_dependents", False), bool):
        raise Invalid("'unload_dependents' is not true or false", model)
    await door.service.unload(model)
    return Reply(200, b"")


async def _parameters(call: Call) -> dict[str, Any]:
    parameters = (await call.json(_SMALL_BODY)).get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Invalid("'parameters' is not an object", "body")
    return parameters


async def no_shared_memory(_door: Door, call: Call) -> Reply:
    """Refuse: tensors in shared memory are not taken."""
    raise Invalid("shared memory regions are not taken", call.scope["path"], "Send tensors in the body.")


async def not_here(_door: Door, _call: Call) -> Reply:
    """Refuse: traces and log settings are not changed over this protocol."""
    return json_reply({"error": "tracing and logging are not set over this protocol; see `log_level` in settings"}, 501)


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps({"error": str(error)})


def _for_versions(method: str, path: str, *rest: Any, **more: Any) -> tuple[Operation, Operation]:
    """The operation on a model, and on one version of it."""
    model = "/v2/models/{model}"
    version = "/v2/models/{model}/versions/{version}"
    return Operation(method, model + path, *rest, **more), Operation(method, version + path, *rest, **more)


_JSON_OR_BINARY = ("application/json", _BINARY)
_REFUSED = [
    f"/v2/{kind}sharedmemory{path}"
    for kind in ("system", "cuda")
    for path in ("/status", "/unregister", "/region/{region}/{action}")
]

PROTOCOL = Protocol(
    "KServe v2",
    (
        *_for_versions("POST", "/infer", infer, "Ask a model", takes=_JSON_OR_BINARY, gives=_JSON_OR_BINARY),
        Operation("GET", "/v2", server, "What this server is"),
        Operation("GET", "/v2/health/live", healthy, "Whether the server runs"),
        Operation("GET", "/v2/health/ready", healthy, "Whether the server takes requests"),
        Operation("GET", "/v2/models/stats", all_statistics, "What every model did"),
        *_for_versions("GET", "", metadata, "A model's versions, inputs and outputs"),
        *_for_versions("GET", "/ready", model_ready, "Whether a model answers"),
        *_for_versions("GET", "/config", config, "A model's configuration"),
        *_for_versions("GET", "/stats", model_statistics, "What a model did"),
        Operation("POST", "/v2/repository/index", index, "The models of the repository", ("application/json",)),
        Operation("POST", "/v2/repository/models/{model}/load", load, "Bring a model in", ("application/json",)),
        Operation("POST", "/v2/repository/models/{model}/unload", unload, "Send a model out", ("application/json",)),
        *(
            Operation(method, path, no_shared_memory, "Refused", described=False)
            for method in ("GET", "POST")
            for path in _REFUSED
        ),
        *(
            Operation(method, path, not_here, "Not offered", described=False)
            for method in ("GET", "POST")
            for path in ("/v2/logging", "/v2/trace/setting", "/v2/models/{model}/trace/setting")
        ),
    ),
    _error_body,
)
