"""KServe v2 over gRPC: the calls of `GRPCInferenceService`, as Triton's clients make them.

A token comes as call metadata, `authorization: Bearer ...` or `x-api-key`. Health needs none, as over HTTP.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.json_format import ParseDict
from google.protobuf.message import DecodeError

import octavo
from octavo.access import ANONYMOUS, Action, Principal, allowed, require
from octavo.errors import Invalid, OctavoError, Unauthenticated, Unavailable
from octavo.serving.model_config import check_name, check_version
from octavo.serving.protocols import inference_pb2 as pb
from octavo.serving.protocols.kserve import check_load, check_unload
from octavo.serving.protocols.kserve_http import EXTENSIONS, statistics_row
from octavo.serving.protocols.kserve_messages import parse_message, to_message, wants_final

if TYPE_CHECKING:
    from octavo.serving.service import Serving

SERVICE = "inference.GRPCInferenceService"
MAX_IN_STREAM = 64
"""Requests of one stream worked on at once; its client waits with the next."""

Authenticate = Callable[[str], Awaitable[Principal | None]]
Context = Any

log = logging.getLogger("octavo.serving.grpc")

_CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    409: grpc.StatusCode.FAILED_PRECONDITION,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    499: grpc.StatusCode.CANCELLED,
    501: grpc.StatusCode.UNIMPLEMENTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
    507: grpc.StatusCode.RESOURCE_EXHAUSTED,
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

    def handler(self) -> Any:
        """What a gRPC server is given."""
        unary = {
            "ServerLive": (self._live, pb.ServerLiveRequest),
            "ServerReady": (self._ready, pb.ServerReadyRequest),
            "ServerMetadata": (self._server, pb.ServerMetadataRequest),
            "ModelReady": (self._model_ready, pb.ModelRequest),
            "ModelMetadata": (self._metadata, pb.ModelRequest),
            "ModelConfig": (self._config, pb.ModelRequest),
            "ModelStatistics": (self._statistics, pb.ModelRequest),
            "ModelInfer": (self._infer, pb.ModelInferRequest),
            "RepositoryIndex": (self._index, pb.RepositoryIndexRequest),
            "RepositoryModelLoad": (self._load, pb.RepositoryModelRequest),
            "RepositoryModelUnload": (self._unload, pb.RepositoryModelRequest),
            "TraceSetting": (_not_here, pb.Refused),
            "LogSettings": (_not_here, pb.Refused),
            **dict.fromkeys(_SHARED_MEMORY, (_no_shared_memory, pb.Refused)),
        }
        handlers: dict[str, Any] = {
            name: grpc.unary_unary_rpc_method_handler(_told(call, request), response_serializer=_bytes)
            for name, (call, request) in unary.items()
        }
        handlers["ModelStreamInfer"] = grpc.stream_stream_rpc_method_handler(self._stream, response_serializer=_bytes)
        return grpc.method_handlers_generic_handler(SERVICE, handlers)

    async def _principal(self, context: Context) -> Principal:
        token = ""
        for key, value in context.invocation_metadata() or ():
            if key == "authorization" and str(value)[:7].lower() == "bearer ":
                token = str(value)[7:].strip()
            elif key == "x-api-key":
                token = str(value)
        if not token:
            return ANONYMOUS
        found = await self._authenticate(token)
        if found is None:
            raise Unauthenticated("this token is not known", "", "Check it, or ask an admin for another.")
        return found

    async def _may(self, context: Context, action: Action, model: str) -> Principal:
        principal = await self._principal(context)
        require(principal, action, f"models/{check_name(model)}")
        return principal

    async def _live(self, _message: Any, _context: Context) -> Any:
        return pb.ServerLiveResponse(live=True)

    async def _ready(self, _message: Any, _context: Context) -> Any:
        return pb.ServerReadyResponse(ready=True)

    async def _server(self, _message: Any, context: Context) -> Any:
        if (await self._principal(context)) is ANONYMOUS:
            raise Unauthenticated("sign in first", "", "Send a token as metadata `authorization: Bearer ...`.")
        return pb.ServerMetadataResponse(name="octavo", version=octavo.__version__, extensions=EXTENSIONS)

    async def _model_ready(self, message: Any, context: Context) -> Any:
        await self._may(context, "view", message.name)
        return pb.ModelReadyResponse(ready=self._service.ready(message.name, check_version(message.version)))

    async def _metadata(self, message: Any, context: Context) -> Any:
        await self._may(context, "view", message.name)
        found = await self._service.metadata(message.name, check_version(message.version))
        tensor = pb.ModelMetadataResponse.TensorMetadata
        sides = [
            [tensor(name=spec.name, datatype=spec.datatype, shape=spec.shape) for spec in side]
            for side in (found.inputs, found.outputs)
        ]
        return pb.ModelMetadataResponse(
            name=found.name, versions=found.versions, platform=found.platform, inputs=sides[0], outputs=sides[1]
        )

    async def _config(self, message: Any, context: Context) -> Any:
        from octavo.serving.pbtxt import to_message as config_message

        await self._may(context, "view", message.name)
        version = check_version(message.version)
        config = await asyncio.to_thread(self._service.repository.config, message.name, version)
        return pb.ModelConfigResponse(config=config_message(config))

    async def _statistics(self, message: Any, context: Context) -> Any:
        if message.name:
            await self._may(context, "view", message.name)
            rows = self._service.statistics(message.name, check_version(message.version))
        else:
            principal = await self._principal(context)
            if principal is ANONYMOUS:
                require(principal, "view", "models/*")
            rows = [one for one in self._service.statistics() if allowed(principal, "view", f"models/{one.name}")]
        return ParseDict({"model_stats": [statistics_row(one) for one in rows]}, pb.ModelStatisticsResponse())

    async def _infer(self, message: Any, context: Context) -> Any:
        principal = await self._may(context, "infer", message.model_name)
        inference = parse_message(message, context.time_remaining(), principal.name)
        return to_message(await self._service.infer(inference.request), inference)

    async def _stream(self, messages: AsyncIterator[bytes], context: Context) -> AsyncIterator[Any]:
        """Answers in the order of the requests, several worked on at once; one that fails does not end the stream."""
        try:
            principal = await self._principal(context)
        except OctavoError as error:
            await _abort(context, error)
            return
        waiting: asyncio.Queue[asyncio.Task[Any] | None] = asyncio.Queue()
        room = asyncio.Semaphore(MAX_IN_STREAM)
        tasks: set[asyncio.Task[Any]] = set()

        async def read() -> None:
            try:
                async for message in messages:
                    await room.acquire()
                    task = asyncio.create_task(self._streamed(message, principal))
                    tasks.add(task)
                    waiting.put_nowait(task)
            finally:
                waiting.put_nowait(None)

        reader = asyncio.create_task(read())
        try:
            while (task := await waiting.get()) is not None:
                yield await task
                tasks.discard(task)
                room.release()
        finally:
            for left in (reader, *tasks):
                left.cancel()

    async def _streamed(self, raw: bytes, principal: Principal) -> Any:
        message = pb.ModelInferRequest()
        try:
            message = _parsed(raw, pb.ModelInferRequest)
            require(principal, "infer", f"models/{check_name(message.model_name)}")
            inference = parse_message(message, None, principal.name)
            answer = to_message(await self._service.infer(inference.request), inference)
        except OctavoError as error:
            answer = pb.ModelInferResponse(id=message.id)
            return pb.ModelStreamInferResponse(error_message=str(error), infer_response=answer)
        except Exception:
            log.exception("a request of a stream failed")
            return pb.ModelStreamInferResponse(
                error_message=_FAILED, infer_response=pb.ModelInferResponse(id=message.id)
            )
        if wants_final(message):
            answer.parameters["triton_final_response"].bool_param = True
        return pb.ModelStreamInferResponse(infer_response=answer)

    async def _index(self, message: Any, context: Context) -> Any:
        principal = await self._principal(context)
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

    async def _load(self, message: Any, context: Context) -> Any:
        await self._may(context, "edit", message.model_name)
        check_load(message.parameters, message.model_name)
        await self._service.load(message.model_name)
        return pb.RepositoryModelResponse()

    async def _unload(self, message: Any, context: Context) -> Any:
        await self._may(context, "edit", message.model_name)
        check_unload(message.parameters, message.model_name)
        await self._service.unload(message.model_name)
        return pb.RepositoryModelResponse()


def _told(call: Callable[[Any, Context], Awaitable[Any]], request: Any) -> Callable[[bytes, Context], Awaitable[Any]]:
    """`call` on the bytes of a `request` message; its errors become gRPC's."""

    async def answer(raw: bytes, context: Context) -> Any:
        try:
            return await call(_parsed(raw, request), context)
        except OctavoError as error:
            await _abort(context, error)
        except Exception:
            log.exception("a call failed")
            await context.abort(grpc.StatusCode.INTERNAL, _FAILED)

    return answer


def _parsed(raw: bytes, request: Any) -> Any:
    try:
        return request.FromString(raw)
    except DecodeError:
        raise Invalid(
            f"the bytes are no {request.DESCRIPTOR.name}", "message", "Use the protocol's messages."
        ) from None


async def _no_shared_memory(_message: Any, _context: Context) -> Any:
    raise Invalid("shared memory regions are not taken", "shared memory", "Send tensors in the message.")


async def _not_here(_message: Any, _context: Context) -> Any:
    raise _NotOffered("tracing and logging are not set over this protocol", "", "See `log_level` in settings.")


class _NotOffered(OctavoError):
    """A call of the protocol that octavo does not have."""

    status, title = 501, "Not offered"


async def _abort(context: Context, error: OctavoError) -> None:
    if isinstance(error, Unavailable):
        context.set_trailing_metadata((("retry-after", f"{error.retry_after:g}"),))
    await context.abort(_CODES.get(error.status, grpc.StatusCode.INTERNAL), str(error))


def _bytes(message: Any) -> bytes:
    written: bytes = message.SerializeToString()
    return written
