"""AWS JSON 1.1: every operation is `POST /`, its name stands in `X-Amz-Target`, as `SageMaker.CreateModel`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_pascal

from octavo.access.signature import SignatureRefused, parse_authorization
from octavo.aws_errors import AwsError, aws_body, aws_code
from octavo.errors import Conflict, Invalid, NotFound, OctavoError
from octavo.serving.protocols.exchange import Call, Door, Headers, Operation, Protocol, Reply
from octavo.serving.sagemaker.names import REGION
from octavo.serving.sagemaker.records import parse

MEDIA_TYPE = b"application/x-amz-json-1.1"
MAX_BODY = 2**18
MAX_DEPTH = 32


class WrongToken(Invalid):
    """`NextToken` is none that an answer held."""


class Form(BaseModel):
    """A request, or a part of one, in AWS's spelling; what has no meaning here is passed over."""

    model_config = ConfigDict(alias_generator=to_pascal, extra="ignore", frozen=True, strict=True)


F = TypeVar("F", bound=Form)


class Asked(NamedTuple):
    """What an operation is asked: who asks, the request's members, and the region of its signature."""

    call: Call
    given: dict[str, Any]
    region: str

    def read(self, form: type[F]) -> F:
        """The request in a form; raises `Invalid` naming the member that does not fit."""
        return parse(form, self.given, "request")


Handler = Callable[[Door, Asked], Awaitable[Mapping[str, Any]]]


class AwsService(NamedTuple):
    """A service's operations by name, and the codes it has for errors.

    Attributes:
        prefix: of its operations in `X-Amz-Target`.
    """

    prefix: str
    operations: Mapping[str, Handler]
    not_found: str
    conflict: str
    wrong_token: str


def protocol(*services: AwsService) -> Protocol:
    """The protocol that answers for several services."""
    known = {service.prefix: service for service in services}

    async def answer(door: Door, call: Call) -> Reply:
        """Do the operation that `X-Amz-Target` names."""
        target = (call.header(b"x-amz-target") or b"").decode("latin-1")
        prefix, _, name = target.partition(".")
        service = known.get(prefix)
        operation = service.operations.get(name) if service else None
        if service is None or operation is None:
            what = f"the operation {target[:100]!r} is not known" if target else "X-Amz-Target names no operation"
            there = ", ".join(service.operations) if service else ", ".join(f"{one}.*" for one in known)
            raise AwsError("UnknownOperationException", 400, what, "X-Amz-Target", f"There are: {there}.")
        try:
            given = await call.json(MAX_BODY)
            _check_depth(given)
            told = await operation(door, Asked(call, given, _region(call)))
        except OctavoError as error:
            raise _worded(service, error) from None
        return Reply(200, orjson.dumps(told), MEDIA_TYPE)

    operation = Operation(
        "POST", "/", answer, "SageMaker and Application Auto Scaling", (MEDIA_TYPE.decode(),), page=True
    )
    return Protocol("AWS control plane", (operation,), aws_body, MEDIA_TYPE, _error_head)


def _worded(service: AwsService, error: OctavoError) -> OctavoError:
    """An error under the code that the service has for it."""
    if isinstance(error, AwsError):
        return error
    code, status = aws_code(error)
    if isinstance(error, NotFound):
        code = service.not_found
    elif isinstance(error, Conflict):
        code = service.conflict
    elif isinstance(error, WrongToken):
        code = service.wrong_token
    elif code == "ValidationError":
        code = "ValidationException"
    return AwsError(code, status, error.what, error.where, error.fix)


def _region(call: Call) -> str:
    """The region that the request was signed for; whoever sends a token instead names none."""
    try:
        return parse_authorization((call.header(b"authorization") or b"").decode("latin-1")).region
    except SignatureRefused:
        return REGION


def _check_depth(given: Any) -> None:
    """Raise `Invalid` for a body so nested that it could not be kept."""
    level = [given]
    for _ in range(MAX_DEPTH):
        level = [
            inner
            for value in level
            if isinstance(value, (dict, list))
            for inner in (value.values() if isinstance(value, dict) else value)
        ]
        if not level:
            return
    raise Invalid(f"the body nests over {MAX_DEPTH} deep", "body", "Send what the operation takes.")


def _error_head(error: OctavoError) -> tuple[int, Headers]:
    code, status = aws_code(error)
    return status, ((b"x-amzn-errortype", code.encode()),)
