"""OpenAI's embeddings and models endpoints, as its clients speak them.

Two things differ from OpenAI's own server: an empty text is embedded, not refused, and `dimensions` works for every
model: the vector is cut to that length and scaled back to length 1. Of an endpoint, requests with the same `user` go to
one variant. `input_type` ("query" or "document", as other embedding services have it) counts where a model tells the
two apart.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from octavo.errors import Invalid, NotFound, OctavoError
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.input_type import PARAMETER as INPUT_TYPE
from octavo.serving.model_config import check_name
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply, parse_object, parsed
from octavo.serving.tensors import Array, Tensors

MAX_TOKENS = 8192

_OUTPUT = "embedding"
_MAX_USER = 1024
_TYPE_OF_STATUS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODE_OF_STATUS = {401: "invalid_api_key", 404: "model_not_found", 429: "rate_limit_exceeded"}
_FIELDS = ("model", "input", "encoding_format", "dimensions", INPUT_TYPE)


@dataclass(frozen=True, slots=True)
class EmbeddingsRequest:
    """A parsed `POST /v1/embeddings`; `dimensions` 0 means all."""

    request: InferRequest
    base64: bool
    dimensions: int


def parse(body: bytes, max_inputs: int, caller: str = "") -> EmbeddingsRequest:
    """One embeddings request.

    Args:
        body: JSON.
        max_inputs: texts it may have.
        caller: the principal's name.

    Raises:
        Invalid: anything not as OpenAI's API has it; `where` names the field.
    """
    given = parse_object(body)
    model = given.get("model")
    if not isinstance(model, str):
        raise Invalid("'model' is not a string", "model", "Name a model; GET /v1/models lists them.")
    form = given.get("encoding_format")
    if form not in (None, "float", "base64"):
        raise Invalid("unknown encoding format", "encoding_format", "Use 'float' or 'base64'.")
    dimensions = given.get("dimensions")
    if dimensions is not None and (type(dimensions) is not int or dimensions < 1):
        raise Invalid("'dimensions' is not a whole number of 1 or more", "dimensions")
    user = given.get("user") or ""
    if not isinstance(user, str) or len(user) > _MAX_USER:
        raise Invalid("'user' is not a short text", "user", f"Send up to {_MAX_USER} characters.")
    said = given.get(INPUT_TYPE)
    if said is not None and not isinstance(said, str):
        raise Invalid("'input_type' is not a text", INPUT_TYPE, "Send query or document.")
    request = InferRequest(
        check_name(model), _inputs(given.get("input"), max_inputs), outputs=(_OUTPUT,), caller=caller, session=user
    )
    request.parameters = {INPUT_TYPE: said} if said else {}
    return EmbeddingsRequest(request, form == "base64", dimensions or 0)


def _inputs(given: object, most: int) -> Tensors:
    """`text` (BYTES [n]), or `input_ids` and `attention_mask` (INT64 [n, longest])."""
    if isinstance(given, str):
        return _texts([given])
    if not isinstance(given, list) or not given:
        raise Invalid("'input' is empty or of a wrong type", "input", "Send a text, a list of texts, or tokens.")
    if type(given[0]) is int:
        return _tokens([given])
    if len(given) > most:
        raise Invalid(f"'input' has {len(given)} texts", "input", f"Send at most {most} in one request.")
    return _tokens(given) if isinstance(given[0], list) else _texts(given)


def _texts(given: list[Any]) -> Tensors:
    if not all(isinstance(text, str) for text in given):
        raise Invalid("'input' holds something that is not a text", "input", "Send texts only, or tokens only.")
    array = np.empty(len(given), dtype=np.object_)
    array[:] = [text.encode() for text in given]
    return {"text": array}


def _tokens(rows: list[Any]) -> Tensors:
    longest = 0
    for row in rows:
        if not isinstance(row, list) or not 0 < len(row) <= MAX_TOKENS:
            raise Invalid(
                "'input' holds a list of tokens that is empty or too long", "input", f"Send 1 to {MAX_TOKENS}."
            )
        if not all(type(token) is int and 0 <= token < 2**31 for token in row):
            raise Invalid("'input' holds something that is not a token", "input", "Tokens are whole numbers from 0.")
        longest = max(longest, len(row))
    ids = np.zeros((len(rows), longest), dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
        mask[at, : len(row)] = 1
    return {"input_ids": ids, "attention_mask": mask}


def serialise(answer: InferAnswer, asked: EmbeddingsRequest) -> Reply:
    """The answer in OpenAI's form.

    Raises:
        Invalid: the model does not give embeddings, or not of so many dimensions.
    """
    vectors = answer.outputs.get(_OUTPUT)
    if vectors is None or vectors.ndim != 2 or vectors.dtype.kind != "f":
        raise Invalid("this model does not give embeddings", "model", "GET /v1/models lists the models.")
    vectors = _cut(np.ascontiguousarray(vectors, dtype="<f4"), asked.dimensions)
    if not np.isfinite(vectors).all() and not asked.base64:
        raise Invalid("JSON has no way to write NaN or infinity, which the model answered", "input", "Ask for base64.")
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": base64.b64encode(vector.tobytes()).decode() if asked.base64 else vector,
        }
        for index, vector in enumerate(vectors)
    ]
    usage = {"prompt_tokens": answer.usage, "total_tokens": answer.usage}
    written = {"object": "list", "data": data, "model": answer.model, "usage": usage}
    return Reply(200, orjson.dumps(written, option=orjson.OPT_SERIALIZE_NUMPY))


def _cut(vectors: Array, dimensions: int) -> Array:
    if not dimensions:
        return vectors
    if dimensions > vectors.shape[1]:
        raise Invalid(f"the model has {vectors.shape[1]} dimensions", "dimensions", "Ask for that many or fewer.")
    kept = vectors[:, :dimensions].astype(np.float32)
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return np.ascontiguousarray(kept / np.where(lengths > 0, lengths, 1), dtype=np.float32)


async def embeddings(door: Door, call: Call) -> Reply:
    """Turn texts into vectors."""
    body = await call.body(door.settings.web.max_body)
    asked = await parsed(body, parse, door.settings.serving.max_inputs, call.principal.name)
    call.require("infer", asked.request.model)
    return serialise(await call.while_connected(door.service.infer(asked.request)), asked)


async def models(door: Door, call: Call) -> Reply:
    """List the models."""
    names = sorted(await _names(door))
    visible = call.visible(names)
    return json_reply({"object": "list", "data": [_model(name) for name in names if name in visible]})


async def model(door: Door, call: Call) -> Reply:
    """One model."""
    name = call.model
    call.require("view", name)
    if name not in await _names(door):
        raise NotFound(f"the model {name!r} does not exist", "model", "GET /v1/models lists what does.")
    return json_reply(_model(name))


async def _names(door: Door) -> set[str]:
    """Models of the repository, and endpoints."""
    endpoints = {endpoint.name for endpoint in door.service.endpoints.all()}
    return {status.name for status in await door.service.index()} | endpoints


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "octavo"}


def _error_body(error: OctavoError) -> bytes:
    status = error.status
    kind = _TYPE_OF_STATUS.get(status, "invalid_request_error" if status < 500 else "server_error")
    param = error.where if error.where in _FIELDS else None
    return orjson.dumps(
        {"error": {"message": str(error), "type": kind, "param": param, "code": _CODE_OF_STATUS.get(status)}}
    )


PROTOCOL = Protocol(
    "OpenAI",
    (
        Operation("POST", "/v1/embeddings", embeddings, "Turn texts into vectors", ("application/json",)),
        Operation("GET", "/v1/models", models, "List the models"),
        Operation("GET", "/v1/models/{model}", model, "One model"),
    ),
    _error_body,
)
