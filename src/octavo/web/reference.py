"""The HTTP interface described: `/openapi.json`, and `/docs`, which shows it without the internet."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Route

from octavo.access import require
from octavo.errors import NotFound
from octavo.web.house import House

_ASSETS = ("swagger-ui-bundle.js", "swagger-ui.css")


def routes(app: FastAPI, house: House) -> list[BaseRoute]:
    """The description, the page, and the page's own files."""
    folder = _asset_folder()
    described: list[bytes] = []

    async def description(request: Request) -> Response:
        require(request.state.principal, "view", "docs")
        if not described:
            described.append(orjson.dumps(describe(app, house)))
        return Response(described[0], media_type="application/json")

    async def page(request: Request) -> Response:
        require(request.state.principal, "view", "docs")
        return get_swagger_ui_html(
            openapi_url="/openapi.json",
            title="HTTP interface · octavo",
            swagger_js_url="/docs/assets/swagger-ui-bundle.js",
            swagger_css_url="/docs/assets/swagger-ui.css",
            swagger_favicon_url="/static/octavo.svg",
            swagger_ui_parameters={"defaultModelsExpandDepth": -1, "docExpansion": "list"},
        )

    async def asset(request: Request) -> Response:
        name = request.path_params["name"]
        if name not in _ASSETS:
            raise NotFound("there is no such file", name)
        return FileResponse(folder / name, headers={"cache-control": "public, max-age=86400"})

    return [Route("/openapi.json", description), Route("/docs", page), Route("/docs/assets/{name}", asset)]


def describe(app: FastAPI, house: House) -> dict[str, Any]:
    """The OpenAPI description: FastAPI's own routes, and what the wings tell of their bare ones."""
    description = dict(app.openapi())
    paths = dict(description.get("paths", {}))
    for wing, _ in house.installed():
        tell = getattr(wing.door("routes"), "openapi_paths", None)
        if tell is not None:
            paths |= tell()
    schemes = {"token": {"type": "http", "scheme": "bearer"}}
    description["paths"] = paths
    description["components"] = description.get("components", {}) | {"securitySchemes": schemes}
    description["security"] = [{"token": []}]
    return description


def _asset_folder() -> Path:
    """Where the package fastapi-offline keeps Swagger UI; it is not imported."""
    spec = find_spec("fastapi_offline")
    if spec is None or spec.origin is None:
        raise RuntimeError("fastapi-offline is a dependency of octavo and is not installed")
    return Path(spec.origin).parent / "static"
