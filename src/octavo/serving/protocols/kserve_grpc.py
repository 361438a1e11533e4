"""KServe v2 over gRPC: the calls of `GRPCInferenceService`, as Triton's clients make them.

A token comes as call metadata, `authorization: Bearer ...` or `x-api-key`. Health needs none, as over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

import octavo
from octavo.access import ANONYMOUS, Action, Principal, allowed, require
from octavo.errors import Invalid, NotFound, OctavoError, Unauthenticated, Unavailable
from octavo.serving.model_config import check_name, check_version
from octavo.serving.protocols import inference_pb2 as pb
from octavo.serving.protocols.exchange import parsed
from octavo.serving.protocols.kserve import check_load, check_unload
from octavo.serving.protocols.kserve_http import EXTENSIONS, statistics_row
from octavo.serving.protocols.kserve_messages import parse_message, to_message, wants_final
from octavo.serving.rpc import Call, Code, Method, Refused

if TYPE_CHECKING:
    from octavo.serving.service import Serving

SERVICE = "inference.GRPCInferenceService"
HEALTH = "/grpc.health.v1.Health/Check"
MAX_IN_STREAM = 64
"""Requests of one stream worked on at once; its client waits with the next."""

Authenticate = Callable[[str], Awaitable[Principal | None]]

log = logging.getLogger("octavo.serving.grpc")

_CODES = {
    400: Code.INVALID_ARGUMENT,
    401: Code.UNAUTHENTICATED,
    403: Code.PERMISSION_DENIED,
    404: Code.NOT_FOUND,
    409: Code.FAILED_PRECONDITION,
    413: Code.RESOURCE_EXHAUSTED,
    429: Code.RESOURCE_EXHAUSTED,
    499: Code.CANCELLED,
    501: Code.UNIMPLEMENTED,
    503: Code.UNAVAILABLE,
    504: Code.DEADLINE_EXCEEDED,
    507: Code.RESOURCE_EXHAUSTED,
}
_FAILED = "the server failed; its log says why"
_SHARED_MEMORY = [
    f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in ("Status", "Register", "Unregister")
]


class InferenceCalls:
    """The calls, on the event loop of the service.

    Args:
        service: answers.
        authenticate: whose token this is; None when nobody's.
    """

    def __init__(self, service: Serving, authenticate: Authenticate) -> None:
        self._service = service
        self._authenticate = authenticate

    def methods(self) -> dict[str, Method]:
        """What a gRPC server is given, by path."""
        calls = {
            "ServerLive": (self._live, pb.ServerLiveRequest),
            "ServerReady": (self._ready, pb.ServerReadyRequest),
            "ServerMetadata": (self._server, pb.ServerMetadataRequest),
            "ModelReady": (self._model_ready, pb.ModelRequest),
            "ModelMetadata": (self._metadata, pb.ModelRequest),
            "ModelConfig": (self._config, pb.ModelRequest),
            "ModelStatistics": (self._statistics, pb.ModelRequest),
            "RepositoryIndex": (self._index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._load, pb.RepositoryModelRequest),
            "RepositoryModelUnload": (self._unload, pb.RepositoryModelRequest),
            "TraceSetting": (_not_here, pb.Refused),
            "LogSettings": (_not_here, pb.Refused),
            **dict.fromkeys(_SHARED_MEMORY, (_no_shared_memory, pb.Refused)),
        }
        methods = {name: Method(unary=_told(_on_message(*both))) for name, both in calls.items()}
        methods["ModelInfer"] = Method(unary=_told(self._infer))
        methods["ModelStreamInfer"] = Method(stream=self._stream)
        found = {f"/{SERVICE}/{name}": method for name, method in methods.items()}
        # gRPC's own health check, for probes: its messages have the same form as these two.
        return found | {HEALTH: Method(unary=_told(_on_message(self._health, pb.ModelRequest)))}

    async def admit(self, metadata: Mapping[str, str]) -> None:
        """Refuse large messages from nobody in particular, before they come."""
        try:
            if (await self._principal(metadata)) is ANONYMOUS:
                raise Unauthenticated("sign in first", "", "Send a token as metadata `authorization: Bearer ...`.")
        except OctavoError as error:
            raise _refused(error) from None

    async def _principal(self, metadata: Mapping[str, str]) -> Principal:
        token = metadata.get("authorization", "")
        token = token[7:].strip() if token[:7].lower() == "bearer " else metadata.get("x-api-key", "")
        if not token:
            return ANONYMOUS
        found = await self._authenticate(token)
        if found is None:
            raise Unauthenticated("this token is not known", "", "Check it, or ask an admin for another.")
        return found

    async def _may(self, call: Call, action: Action, model: str) -> Principal:
        principal = await self._principal(call.metadata)
        require(principal, action, f"models/{check_name(model)}")
        return principal

    async def _live(self, _message: Any, _call: Call) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _message: Any, _call: Call) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def _health(self, message: Any, _call: Call) -> Any:
        if message.name not in ("", SERVICE):
            raise NotFound("no such service", message.name[:100], f"Leave it out, or name {SERVICE}.")
        return pb.ServerReadyResponse(ready=True)

    async def _server(self, _message: Any, call: Call) -> Any:
        if (await self._principal(call.metadata)) is ANONYMOUS:
            raise Unauthenticated("sign in first", "", "Send a token as metadata `authorization: Bearer ...`.")
        return pb.ServerMetadataResponse(name="octavo", version=octavo.__version__, extensions=EXTENSIONS)

    async def _model_ready(self, message: Any, call: Call) -> Any:
        await self._may(call, "view", message.name)
        return pb.ModelReadyResponse(ready=self._service.ready(message.name, check_version(message.version)))

    async def _metadata(self, message: Any, call: Call) -> Any:
        await self._may(call, "view", message.name)
        found = await self._service.metadata(message.name, check_version(message.version))
        tensor = pb.ModelMetadataResponse.TensorMetadata
        sides = [
            [tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in side]
            for side in (found.inputs, found.outputs)
        ]
        return pb.ModelMetadataResponse(
            name=found.name, versions=found.versions, platform=found.platform, inputs=sides[0], outputs=sides[1]
        )

    async def _config(self, message: Any, call: Call) -> Any:
        from octavo.serving.pbtxt import to_message as config_message

        await self._may(call, "view", message.name)
        version = check_version(message.version)
        config = await asyncio.to_thread(self._service.repository.config, message.name, version)
        return pb.ModelConfigResponse(config=config_message(config))

    async def _statistics(self, message: Any, call: Call) -> Any:
        if message.name:
            await self._may(call, "view", message.name)
            rows = self._service.statistics(message.name, check_version(message.version))
        else:
            principal = await self._principal(call.metadata)
            if principal is ANONYMOUS:
                require(principal, "view", "models/*")
            rows = [one for one in self._service.statistics() if allowed(principal, "view", f"models/{one.name}")]
        return ParseDict({"model_stats": [statistics_row(one) for one in rows]}, pb.ModelStatisticsResponse())

    async def _infer(self, raw: bytes, call: Call) -> bytes:
        principal = await self._principal(call.metadata)
        message = await parsed(raw, _message, pb.ModelInferRequest)
        require(principal, "infer", f"models/{check_name(message.model_name)}")
        inference = parse_message(message, call.seconds_left(), principal.name)
        return _bytes(to_message(await self._service.infer(inference.request), inference))

    async def _stream(self, call: Call) -> None:
        """Answers in the order of the requests, several worked on at once; one that fails does not end the stream."""
        try:
            principal = await self._principal(call.metadata)
        except OctavoError as error:
            raise _refused(error) from None
        waiting: asyncio.Queue[asyncio.Task[bytes] | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_IN_STREAM)
        tasks: set[asyncio.Task[bytes]] = set()

        async def read() -> None:
            try:
                async for raw in call.messages():
                    await room.acquire()
                    task = asyncio.create_task(self._streamed(raw, principal))
                    tasks.add(task)
                    waiting.put_nowait(task)
            finally:
                waiting.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await waiting.get()) is not None:
                await call.send(await task)
                tasks.discard(task)
                room.release()
            await reader  # what it was refused for
        finally:
            for left in (reader, *tasks):
                left.cancel()

    async def _streamed(self, raw: bytes, principal: Principal) -> bytes:
        message = pb.ModelInferRequest()
        try:
            message = await parsed(raw, _message, pb.ModelInferRequest)
            require(principal, "infer", f"models/{check_name(message.model_name)}")
            inference = parse_message(message, None, principal.name)
            answer = to_message(await self._service.infer(inference.request), inference)
        except OctavoError as error:
            answer = pb.ModelInferResponse(id=message.id)
            return _bytes(pb.ModelStreamInferResponse(error_message=str(error), infer_response=answer))
        except Exception:
            log.exception("a request of a stream failed")
            answer = pb.ModelInferResponse(id=message.id)
            return _bytes(pb.ModelStreamInferResponse(error_message=_FAILED, infer_response=answer))
        if wants_final(message):
            answer.parameters["triton_final_response"].bool_param = True
        return _bytes(pb.ModelStreamInferResponse(infer_response=answer))

    async def _index(self, message: Any, call: Call) -> Any:
        principal = await self._principal(call.metadata)
        if principal is ANONYMOUS:
            require(principal, "view", "models/*")
        row = pb.RepositoryIndexResponse.ModelIndex
        return pb.RepositoryIndexResponse(
            models=[
                row(name=status.name, version=status.version, state=status.state, reason=status.reason)
                for status in await self._service.index()
                if allowed(principal, "view", f"models/{status.name}")
                and (status.state == "READY" or not message.ready)
            ]
        )

    async def _load(self, message: Any, call: Call) -> Any:
        await self._may(call, "edit", message.model_name)
        check_load(message.parameters, message.model_name)
        await self._service.load(message.model_name)
        return pb.RepositoryModelResponse()

    async def _unload(self, message: Any, call: Call) -> Any:
        await self._may(call, "edit", message.model_name)
        check_unload(message.parameters, message.model_name)
        await self._service.unload(message.model_name)
        return pb.RepositoryModelResponse()


def _on_message(handle: Callable[[Any, Call], Awaitable[Any]], kind: Any) -> Callable[[bytes, Call], Awaitable[bytes]]:
    """`handle`, which takes a message of a kind and gives another, on bytes."""

    async def on_bytes(raw: bytes, call: Call) -> bytes:
        return _bytes(await handle(await parsed(raw, _message, kind), call))

    return on_bytes


def _told(handle: Callable[[bytes, Call], Awaitable[bytes]]) -> Callable[[bytes, Call], Awaitable[bytes]]:
    """`handle`, whose errors become gRPC's."""

    async def told(raw: bytes, call: Call) -> bytes:
        try:
            return await handle(raw, call)
        except OctavoError as error:
            raise _refused(error) from None

    return told


def _refused(error: OctavoError) -> Refused:
    metadata = (("retry-after", f"{error.retry_after:g}"),) if isinstance(error, Unavailable) else ()
    return Refused(_CODES.get(error.status, Code.INTERNAL), str(error), metadata)


def _message(raw: bytes, kind: Any) -> Any:
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise Invalid(f"the bytes are no {kind.DESCRIPTOR.name}", "message", "Use the protocol's messages.") from None


async def _no_shared_memory(_message: Any, _call: Call) -> Any:
    raise Invalid("shared memory regions are not taken", "shared memory", "Send tensors in the message.")


async def _not_here(_message: Any, _call: Call) -> Any:
    raise _NotOffered("tracing and logging are not set over this protocol", "", "See `log_level` in settings.")


class _NotOffered(OctavoError):
    """A call of the protocol that octavo does not have."""

    status, title = 501, "Not offered"


def _bytes(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written
