"""An error becomes an answer, in the words of whoever asked.

`/v2/...` speaks Open Inference Protocol (`{"error": "..."}`), `/v1/...` OpenAI (`{"error": {...}}`), `/endpoints/...`
AWS, as do requests with `X-Amz-Target` and every refusal of a signature; a browser gets a page, everybody else
`application/problem+json` (RFC 9457).
"""

from __future__ import annotations

import html
import math
from collections.abc import MutableMapping
from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from octavo.aws_errors import AwsError, aws_body, aws_code
from octavo.errors import OctavoError, Unavailable
from octavo.telemetry import request_id
from octavo.web.plain import plain_page

Scope = MutableMapping[str, Any]

_CLOSE_AFTER = (408, 413)  # the rest of the body is not read, so the connection cannot be used again


class RequestProblem(OctavoError):
    """An error of the HTTP layer itself, with the status it has there."""

    def __init__(self, status: int, title: str, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what, where, fix)
        self.status = status
        self.title = title


def readable(error: BaseException, path: str) -> OctavoError:
    """Any exception as one with a reader; of an unexpected one, only the request id gets out."""
    if isinstance(error, OctavoError):
        return error
    if isinstance(error, HTTPException):
        return _of_http(error, path)
    errors = getattr(error, "errors", None)
    if callable(errors) and type(error).__name__ == "RequestValidationError":
        first = errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        return RequestProblem(422, "Invalid input", first["msg"], where, "See /docs for what is expected.")
    return RequestProblem(
        500,
        "Internal error",
        "something unexpected went wrong",
        f"request {request_id.get()}",
        "The server's log has the details under this request id.",
    )


def problem_response(scope: Scope, error: OctavoError) -> Response:
    """The answer that tells of `error`."""
    path: str = scope["path"]
    headers = {"cache-control": "no-store"}
    if isinstance(error, Unavailable):
        headers["retry-after"] = str(max(1, math.ceil(error.retry_after)))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.status in _CLOSE_AFTER:
        headers["connection"] = "close"
    aws = path.startswith("/endpoints/") or b"x-amz-target" in dict(scope["headers"])
    if aws or isinstance(error, AwsError):
        code, status = aws_code(error)
        return Response(aws_body(error), status, headers | {"x-amzn-errortype": code}, "application/json")
    if path.startswith("/v2"):
        return _json({"error": str(error)}, error.status, headers)
    if path.startswith("/v1"):
        kind = "invalid_request_error" if error.status < 500 else "server_error"
        inner = {"message": str(error), "type": kind, "param": None, "code": error.title.lower().replace(" ", "_")}
        return _json({"error": inner}, error.status, headers)
    if wants_page(scope):
        return HTMLResponse(_page(scope, error), error.status, headers)
    body = error.problem() | {"request_id": request_id.get()}
    return _json(body, error.status, headers, "application/problem+json")


def wants_page(scope: Scope) -> bool:
    """Whether a browser asks for a page to show."""
    if scope["method"] not in ("GET", "HEAD", "POST") or scope["path"].startswith(("/v1", "/v2", "/api/")):
        return False
    return b"text/html" in dict(scope["headers"]).get(b"accept", b"")


def _of_http(error: HTTPException, path: str) -> OctavoError:
    if error.status_code == 404:
        return RequestProblem(
            404, "Not found", "there is nothing at this address", path, "See /docs for what there is."
        )
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        fix = f"Use {allowed}." if allowed else "See /docs for what there is."
        return RequestProblem(405, "Method not allowed", "this address does not take this method", path, fix)
    return RequestProblem(error.status_code, "Request refused", str(error.detail), path)


def _json(body: object, status: int, headers: dict[str, str], media_type: str = "application/json") -> Response:
    return Response(orjson.dumps(body), status, headers, media_type)


def _page(scope: Scope, error: OctavoError) -> str:
    lines = [f"<p>{html.escape(_sentence(error.what))}</p>"]
    if error.where:
        lines.append(f'<p class="o-mono o-quiet">{html.escape(error.where)}</p>')
    if error.fix and error.status != 404:
        lines.append(f"<p>{html.escape(error.fix)}</p>")
    lines.append('<p><a class="o-button" href="/">Back to the console</a></p>')
    body = f'<p class="o-figure-value">{error.status}</p><h1>{html.escape(error.title)}</h1>{"".join(lines)}'
    return plain_page(scope, error.title, body)


def _sentence(text: str) -> str:
    text = text[:1].upper() + text[1:]
    return text if text.endswith((".", "!", "?")) else text + "."
