"""The HTTP door of serving: every protocol's operations as routes, and their description."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from octavo.serving.protocols import (
    application_autoscaling,
    aws_json,
    control,
    cost_api,
    deployment_api,
    endpoint_api,
    fleet_api,
    kserve_http,
    openai,
    sagemaker_container,
    sagemaker_endpoints,
    sagemaker_runtime,
    tenant_api,
)
from octavo.serving.protocols.exchange import Door, Endpoint, Operation, Protocol

if TYPE_CHECKING:
    from octavo.jobs import Jobs
    from octavo.serving.service import Serving
    from octavo.settings import Settings

PROTOCOLS: tuple[Protocol, ...] = (
    kserve_http.PROTOCOL,
    openai.PROTOCOL,
    control.PROTOCOL,
    endpoint_api.PROTOCOL,
    cost_api.PROTOCOL,
    fleet_api.PROTOCOL,
    deployment_api.PROTOCOL,
    tenant_api.PROTOCOL,
    sagemaker_runtime.PROTOCOL,
    sagemaker_container.PROTOCOL,
    aws_json.protocol(sagemaker_endpoints.SERVICE, application_autoscaling.SERVICE),
)
"""Another protocol over HTTP is one more line here."""


def routes(service: Serving, settings: Settings, jobs: Jobs | None = None) -> list[BaseRoute]:
    """Bare routes, those that answer requests first; each reads `octavo.access.Principal` at `state.principal`."""
    door = Door(service, settings, jobs)
    return [
        (_BesidePage if operation.page else Route)(
            operation.path, Endpoint(door, protocol, operation), methods=[operation.method]
        )
        for protocol in PROTOCOLS
        for operation in protocol.operations
    ]


class _BesidePage(Route):
    """A route at the address of a page of the console: a browser that opens the page passes by.

    So does everybody who opens it where nothing but the page can be opened.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """As `Route`, but for those."""
        opens = scope.get("method") in ("GET", "HEAD")
        if opens and "GET" not in (self.methods or ()):
            return Match.NONE, {}
        if opens and any(name == b"accept" and b"text/html" in value for name, value in scope.get("headers", ())):
            return Match.NONE, {}
        return super().matches(scope)


def openapi_paths() -> dict[str, Any]:
    """The path items (OpenAPI 3.1) of all routes; bare routes do not describe themselves."""
    paths: dict[str, Any] = {}
    for protocol in PROTOCOLS:
        for operation in (one for one in protocol.operations if one.described):
            paths.setdefault(operation.path.replace(":path", ""), {})[operation.method.lower()] = _describe(
                protocol, operation
            )
    return paths


def _describe(protocol: Protocol, operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "tags": [protocol.name],
        "summary": operation.summary,
        "description": operation.handle.__doc__ or "",
        "operationId": re.sub(r"\W+", "_", f"{operation.method} {operation.path}").strip("_").lower(),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in re.findall(r"{(\w+)(?::path)?}", operation.path)
        ],
        "responses": {
            "200": {"description": "Done", "content": _content(operation.gives)},
            "default": {"description": "An error", "content": _content((protocol.error_media_type.decode(),))},
        },
    }
    if operation.takes:
        described["requestBody"] = {"content": _content(operation.takes)}
    return described


def _content(media_types: tuple[str, ...]) -> dict[str, Any]:
    return {
        name: {"schema": {"type": "object"} if name.endswith("json") else {"type": "string", "format": "binary"}}
        for name in media_types
    }
