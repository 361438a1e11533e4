"""octavo's own JSON API of tenants: who there is, and training on a CSV as a durable job."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

import orjson

from octavo.access import require
from octavo.errors import Invalid, NotFound, OctavoError, Unavailable
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply
from octavo.serving.tenants.evaluation import Remembered
from octavo.serving.tenants.listing import TenantModel, TenantSummary, seen_by, summarise
from octavo.serving.tenants.metadata import tenant_model
from octavo.serving.tenants.submission import TRAIN, require_training, submit_training

if TYPE_CHECKING:
    from octavo.jobs import Job, Jobs

_BASE = "/api/serving/tenants"


async def tenants(door: Door, call: Call) -> Reply:
    """Every tenant: base, examples, categories, bytes, when it was trained, its last evaluation, its models."""
    found = await _summaries(door, call)
    if not found and call.principal.kind == "anonymous":
        require(call.principal, "view", "models/*")
    resident = _resident(door)
    return json_reply([_shown(one, resident) for one in found])


async def tenant(door: Door, call: Call) -> Reply:
    """One tenant."""
    name = _tenant(call)
    for one in await _summaries(door, call):
        if one.tenant == name:
            return json_reply(_shown(one, _resident(door)))
    call.require("view", tenant_model(name))  # before telling whether there is such a tenant
    raise NotFound("there is no such tenant", name, "Train one: send its examples to this address with POST.")


async def train(door: Door, call: Call) -> Reply:
    """Train a tenant on a CSV (columns text and category; `oos` is out of scope) over `base`; a durable job."""
    name, jobs = _tenant(call), _jobs(door)
    base = _base(call)
    require_training(call.principal, name, base)
    raw = await call.body(door.settings.web.max_body)
    owner = call.principal.name
    done = await asyncio.to_thread(submit_training, door.service.repository, jobs, name, base, raw, "body", owner)
    where = f"{_BASE}/{name}/trainings/{done.job}"
    return Reply(202, orjson.dumps(asdict(done)), headers=((b"location", where.encode()),))


async def training(door: Door, call: Call) -> Reply:
    """How far a training is."""
    name, identity = _tenant(call), call.scope["path_params"]["job"]
    call.require("view", tenant_model(name))
    job = await asyncio.to_thread(_jobs(door).get, identity)
    if job.kind != TRAIN or job.arguments.get("tenant") != name:
        raise NotFound("this tenant has no such training", f"{name}, {identity[:40]}", "See the answer that began it.")
    return json_reply(_progress(job))


async def _summaries(door: Door, call: Call) -> list[TenantSummary]:
    found = await asyncio.to_thread(summarise, door.service.repository, door.service.documents)
    return seen_by(call.principal, found)


def _resident(door: Door) -> set[str]:
    return {model.name for model in door.service.residency().models}


def _shown(one: TenantSummary, resident: set[str]) -> dict[str, Any]:
    newest = one.newest
    return {
        "tenant": one.tenant,
        "base": newest.base,
        "examples": newest.examples or None,
        "categories": newest.categories or None,
        "bytes": one.bytes,
        "trained": _time(newest.trained),
        "evaluation": _evaluation(one.evaluation) if one.evaluation else None,
        "models": [_model(model, resident) for model in one.models],
    }


def _evaluation(last: Remembered) -> dict[str, Any]:
    return asdict(last.found) | {"at": last.at.isoformat()}


def _model(model: TenantModel, resident: set[str]) -> dict[str, Any]:
    shown = {name: getattr(model, name) for name in ("model", "version", "kind", "bytes")}
    return shown | {"in_memory": model.model in resident}


def _progress(job: Job) -> dict[str, Any]:
    body = job.body()
    return {name: body[name] for name in ("id", "state", "progress", "message", "error", "result")}


def _time(seconds: float) -> str | None:
    return datetime.fromtimestamp(seconds, UTC).isoformat() if seconds else None


def _tenant(call: Call) -> str:
    """The tenant in the path; raises `Invalid` for a name that cannot be part of a model's."""
    name: str = call.scope["path_params"]["tenant"]
    tenant_model(name)
    return name


def _base(call: Call) -> str:
    try:
        given = dict(parse_qsl(call.scope["query_string"].decode("latin-1"), max_num_fields=5))
    except ValueError:
        raise Invalid("too many parameters", "query", "Send base.") from None
    unknown = sorted(given.keys() - {"base"})
    if unknown:
        raise Invalid(f"unknown parameter {unknown[0][:60]!r}", "query", "Known is base.")
    base: str = given.get("base", "minilm")
    return base


def _jobs(door: Door) -> Jobs:
    if door.jobs is None:
        raise Unavailable("this server runs no jobs", "training", "Use octavo tenants train on its machine.")
    return door.jobs


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


_ONE = f"{_BASE}/{{tenant}}"

PROTOCOL = Protocol(
    "octavo tenants",
    (
        Operation("GET", _BASE, tenants, "Every tenant"),
        Operation("GET", _ONE, tenant, "One tenant"),
        Operation("POST", _ONE, train, "Train a tenant on its examples", ("text/csv",)),
        Operation("GET", f"{_ONE}/trainings/{{job}}", training, "How far a training is"),
    ),
    _error_body,
    b"application/problem+json",
)
