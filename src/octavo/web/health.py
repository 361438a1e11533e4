"""For machines: is it alive, is it ready, its metrics and its status."""

from __future__ import annotations

import asyncio
import os
import time

import orjson
from sqlalchemy import text
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from octavo import __version__
from octavo.access import require
from octavo.errors import OctavoError, Unavailable
from octavo.telemetry import exposition
from octavo.web.house import House, memory_bytes
from octavo.web.wings import Wing, wings

_PROBE_SECONDS = 3.0


def routes(house: House) -> list[BaseRoute]:
    """`/livez`, `/healthz` and `/readyz` for everybody, `/metrics` and `/api/status` for who may view."""

    async def live(_: Request) -> Response:
        return _json({"status": "live"})

    async def ready(_: Request) -> Response:
        try:
            await asyncio.wait_for(asyncio.to_thread(_ask_database, house), _PROBE_SECONDS)
        except (OctavoError, TimeoutError):
            raise Unavailable("the database does not answer", "storage.database", "Look at the log.", 5.0) from None
        return _json({"status": "ready"})

    async def metrics(request: Request) -> Response:
        require(request.state.principal, "view", "metrics")
        body = await asyncio.to_thread(exposition)
        return Response(body, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def status(request: Request) -> Response:
        require(request.state.principal, "view", "status")
        return _json(await asyncio.to_thread(status_of, house))

    return [
        Route("/livez", live),
        Route("/healthz", live),
        Route("/readyz", ready),
        Route("/metrics", metrics),
        Route("/api/status", status),
    ]


def status_of(house: House) -> dict[str, object]:
    """What `octavo status` and the dashboard show: version, times in seconds, memory in bytes, the wings' figures."""
    figures = []
    for wing in wings():
        entry: dict[str, object] = {"name": wing.name, "title": wing.title, "installed": wing.installed}
        if wing.name in house.services:
            entry |= _figure(wing, house.services[wing.name])
        else:
            entry |= {"command": wing.command}
        figures.append(entry)
    return {
        "version": __version__,
        "pid": os.getpid(),
        "workspace": str(house.settings.workspace),
        "uptime": time.time() - house.started,
        "memory": memory_bytes(),
        "jobs": _jobs_running(house),
        "wings": figures,
    }


def _figure(wing: Wing, service: object) -> dict[str, object]:
    """A wing's figure, or what keeps it from telling one."""
    try:
        figure = wing.figure(service)
    except OctavoError as error:
        return {"figure": "?", "caption": str(error)}
    return {"figure": figure.value, "caption": figure.caption}


def _jobs_running(house: House) -> int:
    return house.jobs.counts().get("running", 0) if house.jobs is not None else 0


def _ask_database(house: House) -> None:
    with house.database.session(read_only=True) as session:
        session.execute(text("SELECT 1"))


def _json(body: object) -> Response:
    return Response(orjson.dumps(body), media_type="application/json", headers={"cache-control": "no-store"})
