"""Which model a SageMaker request is for: the rule from `TargetModel` to a name of the repository, and the asking."""

from __future__ import annotations

import asyncio

from octavo.errors import Invalid, NotFound
from octavo.serving.inference import InferAnswer
from octavo.serving.model_config import MAX_NAME, check_name, is_name
from octavo.serving.protocols.exchange import Call, Door, Reply, parsed
from octavo.serving.protocols.kserve import HEADER_LENGTH, Inference
from octavo.serving.protocols.sagemaker_body import decode, request_of, tensors, write

TARGET = b"x-amzn-sagemaker-target-model"
MAX_TARGET = 1024

_ARCHIVES = (".tar.gz", ".tgz")


def target_names(endpoint: str, target: str) -> tuple[str, ...]:
    """The names of the repository that a target may mean, the first that exists is meant.

    A target is a path below the endpoint's models in S3. `.tar.gz` falls off and each `/` becomes a `.`; then the name
    is looked for behind the endpoint's own and a dot, and alone: `cust-1/enc_v1.tar.gz` of `front` is
    `front.cust-1.enc_v1`, or else `cust-1.enc_v1`.

    Args:
        endpoint: its name; empty for none.
        target: as sent.

    Raises:
        Invalid: nothing in the repository can have such a name.
    """
    stem = target.removeprefix("/")
    for ending in _ARCHIVES:
        stem = stem.removesuffix(ending)
    segments = stem.split("/")
    alone = ".".join(segments)
    if len(target) > MAX_TARGET or any(part.strip(".") == "" for part in segments) or not is_name(alone):
        raise Invalid(
            f"{target[:100]!r} cannot be a model",
            "TargetModel",
            f"Use letters, digits, '.', '_', '-' and single slashes, up to {MAX_NAME} in all.",
        )
    behind = f"{endpoint}.{alone}"
    return (behind, alone) if endpoint and is_name(behind) else (alone,)


async def find_target(door: Door, endpoint: str, target: str) -> str:
    """The model or endpoint that a target means.

    Raises:
        Invalid: as `target_names`.
        NotFound: there is none of these names.
    """
    names = target_names(endpoint, target)
    for name in names:
        if await door.service.knows(name):
            return name
    tried = " or ".join(repr(name) for name in names)
    raise NotFound(f"there is no model {tried}", f"TargetModel {target[:100]!r}", "Publish it: octavo models publish")


async def only_model(door: Door) -> str:
    """The model of requests that name none: `serving.default_model`, or the only one of the repository.

    Raises:
        Invalid: there are several, or none.
    """
    if door.settings.serving.default_model:
        return check_name(door.settings.serving.default_model)
    names = await asyncio.to_thread(door.service.repository.names)
    if len(names) != 1:
        fix = "Name one in X-Amzn-SageMaker-Target-Model, or set serving.default_model."
        raise Invalid(f"the request names no model, and the repository has {len(names)}", "TargetModel", fix)
    return names[0]


async def ask(door: Door, call: Call, model: str, variant: str = "", session: str = "") -> tuple[Reply, InferAnswer]:
    """Put the body's question to a model or endpoint; the answer as the client accepts it.

    Args:
        door: the service and the settings.
        call: the request; its body is read here.
        model: a name that is known.
        variant: of an endpoint, the one wanted.
        session: requests of one session go to one variant.

    Raises:
        OctavoError: the body or the model's inputs do not fit, or what the model said.
    """
    limits = door.settings
    body = await call.body(limits.web.max_body)
    caller = call.principal.name
    given = await parsed(
        body, decode, call.header(b"content-type"), call.header(HEADER_LENGTH), model, caller, limits.serving.max_inputs
    )
    if isinstance(given, Inference):
        request = given.request
    else:
        takes = await call.while_connected(door.service.inputs(model))
        rows = given
        read = await parsed(body, lambda _: tensors(rows, takes, model))
        request = request_of(rows, read, model, caller)
    request.variant, request.session = variant or request.variant, session or request.session
    answer = await call.while_connected(door.service.infer(request))
    return write(answer, given, call.header(b"accept")), answer
