"""SageMaker's runtime, the platform's side: what boto3's `sagemaker-runtime` client asks of its `endpoint_url`.

An endpoint is one of octavo's, or a model of the repository; with `TargetModel` its name stands for the whole
repository.
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta

import orjson

from octavo.aws_errors import AwsError, aws_body, aws_code
from octavo.errors import DeadlineExceeded, Invalid, NotFound, OctavoError, TooLarge, Unavailable
from octavo.serving.inference import InferAnswer
from octavo.serving.protocols.event_stream import MEDIA_TYPE, frames
from octavo.serving.protocols.exchange import Call, Door, Headers, Operation, Protocol, Reply
from octavo.serving.protocols.sagemaker_body import GIVEN, TAKEN
from octavo.serving.protocols.sagemaker_target import TARGET, ask, find_target, target_names

ONLY_VARIANT = "AllTraffic"
"""The variant of an endpoint that is a model."""

_PREFIX = b"x-amzn-sagemaker-"
_COMPONENT = _PREFIX + b"inference-component"
_MAX_ATTRIBUTES = 1024
_MAX_SHORT = 256
_SESSION = timedelta(hours=1)


async def invoke(door: Door, call: Call) -> Reply:
    """Ask a model of an endpoint."""
    reply, told = await _invoke(door, call)
    return reply._replace(headers=(*reply.headers, *told))


async def invoke_streaming(door: Door, call: Call) -> Reply:
    """Ask a model of an endpoint; the answer comes in frames of an event stream."""
    reply, told = await _invoke(door, call)
    told.append((_PREFIX + b"content-type", reply.media_type))
    return Reply(200, b"", MEDIA_TYPE, told, frames(_one(reply.body)))


async def _one(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def _invoke(door: Door, call: Call) -> tuple[Reply, list[tuple[bytes, bytes]]]:
    attributes = _text(call, b"custom-attributes", _MAX_ATTRIBUTES)
    _text(call, b"inference-id", 64)  # it names the request in captured data, of which there is none
    served, variant = await _served(door, call)
    call.require("infer", served)
    session = _text(call, b"session-id", _MAX_SHORT)
    begun = secrets.token_hex(16) if session == "NEW_SESSION" else ""
    try:
        reply, answer = await ask(door, call, served, variant, begun or session)
    except OctavoError as error:
        raise _refusal(door, served, error) from None
    told = [(b"x-amzn-invoked-production-variant", _variant_of(answer, variant))]
    if attributes:
        told.append((_PREFIX + b"custom-attributes", attributes.encode("latin-1")))
    if begun:
        ends = (datetime.now(UTC) + _SESSION).strftime("%Y-%m-%dT%H:%M:%SZ")
        told.append((_PREFIX + b"new-session-id", f"{begun}; Expires={ends}".encode()))
    return reply, told


def _variant_of(answer: InferAnswer, asked: str) -> bytes:
    return (answer.variant or asked or ONLY_VARIANT).encode()


async def _served(door: Door, call: Call) -> tuple[str, str]:
    """The model or endpoint to ask, and the variant wanted.

    Raises:
        Invalid, NotFound: no such endpoint, target or variant.
    """
    endpoint = call.model
    variant = _text(call, b"target-variant", _MAX_SHORT)
    declared = door.service.endpoints.find(endpoint)
    target = (call.header(TARGET) or call.header(_COMPONENT) or b"").decode("latin-1")
    archives = door.service.sagemaker.archives
    of_archives = await archives.variant(endpoint) if target and declared is None else ""
    only = of_archives or ONLY_VARIANT
    if declared is not None and variant:
        declared.variant(variant)
    elif declared is None and variant not in ("", only):
        raise NotFound(f"the endpoint has no variant {variant[:64]!r}", endpoint, f"It has {only}.")
    if of_archives:
        name = target_names(endpoint, target)[0]
        return await archives.find(endpoint, target, name, lambda model: call.require("infer", model)), of_archives
    if target:
        served = await find_target(door, endpoint, target)
        return served, variant if served == endpoint else ""
    if not await door.service.knows(endpoint):
        if await archives.variant(endpoint):
            raise Invalid("the request names no archive of this MultiModel endpoint", "TargetModel", "Name one.")
        fix = "Name a model of the repository, an endpoint, or a TargetModel."
        raise NotFound(f"there is no endpoint or model {endpoint!r}", "EndpointName", fix)
    return endpoint, variant if declared is not None else ""


def _text(call: Call, name: bytes, most: int) -> str:
    """One of SageMaker's headers: printable ASCII up to a length; empty when it was not sent."""
    text = (call.header(_PREFIX + name) or b"").decode("latin-1")
    if len(text) > most or not (text.isascii() and text.isprintable()):
        where = f"X-Amzn-SageMaker-{name.decode().title()}"
        raise Invalid("the header cannot be used", where, f"Send up to {most} printable ASCII characters.")
    return text


def _refusal(door: Door, served: str, error: OctavoError) -> OctavoError:
    """What the platform says of an error: its own errors as they are, those of the container as a `ModelError`."""
    if isinstance(error, (NotFound, TooLarge, Unavailable)) or error.status in (401, 403, 408, 499):
        return error
    if isinstance(error, DeadlineExceeded) and not door.service.in_memory(served):
        return AwsError(
            "ModelNotReadyException", 429, f"the model is still loading: {error.what}", served, "Ask again."
        )
    return AwsError(
        "ModelError",
        424,
        f"Received client error ({error.status}) from model: {error.what}"
        if error.status < 500
        else f"Received server error ({error.status}) from model: {error.what}",
        error.where,
        error.fix,
        {"OriginalStatusCode": error.status, "OriginalMessage": container_error(error).decode(), "LogStreamArn": ""},
    )


def container_error(error: OctavoError) -> bytes:
    """An error's body as a container writes it."""
    return orjson.dumps({"code": error.status, "type": error.title, "message": str(error)})


def _error_head(error: OctavoError) -> tuple[int, Headers]:
    code, status = aws_code(error)
    return status, ((b"x-amzn-errortype", code.encode()),)


PROTOCOL = Protocol(
    "SageMaker runtime",
    (
        Operation("POST", "/endpoints/{model}/invocations", invoke, "Ask a model", TAKEN, GIVEN),
        Operation(
            "POST",
            "/endpoints/{model}/invocations-response-stream",
            invoke_streaming,
            "Ask a model, the answer in frames",
            TAKEN,
            (MEDIA_TYPE.decode(),),
        ),
    ),
    aws_body,
    error_head=_error_head,
)
