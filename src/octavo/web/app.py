"""The HTTP door: one ASGI app over an open house.

    house = await House.open(settings)
    app = create_app(house)

A request's way: front door (id, counts, errors) -> body limits -> identity -> the wings' bare routes, or else the
console (FastAPI with NiceGUI mounted on it), which the hot path never enters.
"""

from __future__ import annotations

import mimetypes
from pathlib import Path

from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Receive, Scope, Send

from octavo import __version__
from octavo.access import require
from octavo.errors import OctavoError
from octavo.jobs.routes import routes as job_routes
from octavo.web import health, login, reference
from octavo.web.body import BodyLimit
from octavo.web.front_door import FrontDoor
from octavo.web.house import House
from octavo.web.identity import Identity, loopback_hosts
from octavo.web.problems import problem_response, readable

STATIC = Path(__file__).parent / "static"


def create_app(house: House) -> ASGIApp:
    """The server's ASGI app. Once per process: NiceGUI's own app, which it mounts, is global."""
    console = FastAPI(title="octavo", version=__version__, openapi_url=None, docs_url=None, redoc_url=None)
    answer_errors(console)
    bare: list[BaseRoute] = []
    for route in _offered(house):
        if isinstance(route, APIRouter):
            console.include_router(route)
        else:
            bare.append(route)
    bare += [*health.routes(house), *login.routes(house.access, house.settings), *reference.routes(console, house)]
    bare.append(Route("/favicon.ico", _favicon))
    bare.append(Mount("/static", StaticFiles(directory=STATIC), name="static"))
    _mount_pages(console, house)
    web = house.settings.web
    inside = _Fork(Router(bare, redirect_slashes=False, default=console), console)
    identity = Identity(inside, house.access, loopback_hosts(web.host, web.allowed_hosts))
    return FrontDoor(BodyLimit(identity, web.max_body, web.body_timeout))


def _offered(house: House) -> list[BaseRoute | APIRouter]:
    """What jobs and the wings answer."""
    offered: list[BaseRoute | APIRouter] = [job_routes(house.jobs, require)] if house.jobs else []
    for wing, service in house.installed():
        door = wing.door("routes")
        offered += door.routes(service, house.settings, house.jobs) if door else ()
    return offered


class _Fork:
    """Requests go to the bare routes first, lifespan events to the console."""

    def __init__(self, router: Router, console: FastAPI) -> None:
        self.router = router
        self.console = console

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.console(scope, receive, send)
            return
        scope["app"] = self.console
        await self.router(scope, receive, send)


def answer_errors(app: FastAPI) -> None:
    """Make `app` answer every error as the house does."""
    for kind in (OctavoError, HTTPException, RequestValidationError, Exception):
        app.add_exception_handler(kind, _answer)


async def _answer(request: Request, error: Exception) -> Response:
    return problem_response(request.scope, readable(error, request.scope["path"]))


async def _favicon(_: Request) -> Response:
    return RedirectResponse("/static/octavo.svg", 301)


def _mount_pages(console: FastAPI, house: House) -> None:
    """The console's pages, through NiceGUI."""
    from nicegui import app as pages
    from nicegui import ui

    from octavo.jobs import pages as job_pages
    from octavo.web import dashboard
    from octavo.web.shell import Shell

    mimetypes.add_type("image/svg+xml", ".svg")
    frame = Shell(house).frame
    dashboard.register(house, frame)
    for wing, service in house.installed():
        door = wing.door("pages")
        if door:
            door.register(service, frame, house.settings, house.jobs)
    if house.jobs is not None:
        job_pages.register(house.jobs, frame, require)
    answer_errors(pages)
    pages.exception_handlers.pop(404, None)  # NiceGUI's own page; unknown addresses look like every other error here
    ui.run_with(
        console, title="octavo", favicon=str(STATIC / "octavo.svg"), dark=None, show_welcome_message=False,
        reconnect_timeout=5.0,
    )  # fmt: skip
