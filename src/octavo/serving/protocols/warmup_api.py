"""octavo's own JSON API of the warm-up: its rules, what they would load now, and the cold starts they avoided."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import orjson

from octavo.access import allowed
from octavo.errors import Invalid, OctavoError
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply, query_of
from octavo.serving.warmup.rule import WarmupRule, parse_rule
from octavo.storage.documents import Document

_SMALL_BODY = 2**17
_BASE = "/api/serving/warmup"


async def rules(door: Door, call: Call) -> Reply:
    """Every rule about models that the caller may see."""
    found = await door.service.warmup.rules.all()
    visible = call.visible([model for rule in found for model in rule.models])
    return json_reply([rule.model_dump(mode="json") for rule in found if visible.issuperset(rule.models)])


async def rule(door: Door, call: Call) -> Reply:
    """One rule and its revision."""
    found, document = await door.service.warmup.rules.get(call.model)
    _require(call, "view", found)
    return json_reply(_shown(found, document))


async def declare(door: Door, call: Call) -> Reply:
    """Make a rule or change it, whole; with `revision` only over that revision. It takes effect at once."""
    name = call.model
    given = await call.json(_SMALL_BODY)
    revision = given.pop("revision", None)
    if revision is not None and type(revision) is not int:
        raise Invalid("'revision' is not a whole number", name, "Send the one you read, or leave it out.")
    if given.setdefault("name", name) != name:
        raise Invalid("the body names another rule", name, "Leave `name` out, or send the path's.")
    wanted = parse_rule(given)
    _require(call, "edit", wanted)
    before = {found.name: found for found in await door.service.warmup.rules.all()}.get(name)
    if before is not None:
        _require(call, "edit", before)
    document = await door.service.warmup.rules.put(wanted, revision)
    door.service.warmup.wake()
    return json_reply(_shown(wanted, document))


async def remove(door: Door, call: Call) -> Reply:
    """Take a rule away; what it loaded stays in memory until somebody needs the room."""
    found, _ = await door.service.warmup.rules.get(call.model)
    _require(call, "edit", found)
    await door.service.warmup.rules.delete(found.name)
    door.service.warmup.wake()
    return json_reply({"name": found.name, "removed": True})


async def plan(door: Door, call: Call) -> Reply:
    """What the rules would have this server load now (empty `reason`), and why not the rest."""
    call.visible([])
    found = await door.service.warmup.plan()
    steps = [asdict(step) for step in found.steps if _may_see(call, step.key)]
    for step in steps:
        step["leaving"] = [key for key in step["leaving"] if _may_see(call, key)]
    return json_reply({"steps": steps, "kept": sorted(key for key in found.kept if _may_see(call, key))})


async def report(door: Door, call: Call) -> Reply:
    """Cold starts avoided per day and model since a time: `since` (24h, 7d, 4w or a time), `by` (model or day)."""
    call.visible([])
    given = query_of(call, ("since", "by"))
    return json_reply((await door.service.warmup.report(given, lambda model: _may_see(call, model))).plain())


def _may_see(call: Call, key: str) -> bool:
    return allowed(call.principal, "view", f"models/{key.partition('/')[0]}")


def _require(call: Call, action: Any, found: WarmupRule) -> None:
    """A rule takes memory from everybody and loads models, so it needs the right on all it names, patterns included."""
    for model in found.models:
        call.require(action, model)


def _shown(found: WarmupRule, document: Document) -> dict[str, Any]:
    shown = found.model_dump(mode="json")
    return shown | {"revision": document.revision, "updated": document.updated.isoformat()}


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


_ONE = f"{_BASE}/rules/{{model}}"

PROTOCOL = Protocol(
    "octavo warm-up",
    (
        Operation("GET", f"{_BASE}/rules", rules, "Every warm-up rule"),
        Operation("GET", _ONE, rule, "One warm-up rule"),
        Operation("PUT", _ONE, declare, "Make or change a warm-up rule", ("application/json",)),
        Operation("DELETE", _ONE, remove, "Take a warm-up rule away"),
        Operation("GET", f"{_BASE}/plan", plan, "What would be loaded ahead now"),
        Operation("GET", f"{_BASE}/report", report, "Cold starts avoided"),
    ),
    _error_body,
    b"application/problem+json",
)
