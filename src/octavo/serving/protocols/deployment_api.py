"""octavo's own JSON API of deployments: what runs under a name, and how a new version gets its traffic."""

from __future__ import annotations

import re
from typing import Any

import orjson

from octavo.errors import Invalid, OctavoError
from octavo.serving.packaging.deploy import Deployer
from octavo.serving.packaging.deployment import Deployment
from octavo.serving.packaging.spec import Rollout
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply

_SMALL_BODY = 2**16
_BASE = "/api/serving/deployments"
_DIGEST = re.compile(r"[0-9a-f]{64}")


async def deployments(door: Door, call: Call) -> Reply:
    """Every deployment."""
    found = await Deployer(door.service, door.settings).all()
    visible = call.visible([deployment.name for deployment in found])
    return json_reply([shown(deployment) for deployment in found if deployment.name in visible])


async def deployment(door: Door, call: Call) -> Reply:
    """One deployment."""
    name = call.model
    call.require("view", name)
    return json_reply(shown(await Deployer(door.service, door.settings).get(name)))


async def deploy(door: Door, call: Call) -> Reply:
    """Publish a staged package, check it, and give it a `share` of the traffic or a `shadow` of copies."""
    name = call.model
    call.require("edit", name)
    given = await call.json(_SMALL_BODY)
    unknown = sorted(given.keys() - {"package", "share", "shadow"})
    if unknown:
        raise Invalid(f"unknown field {unknown[0][:60]!r}", name, "Known are package, share and shadow.")
    package = given.get("package")
    if not isinstance(package, str) or not _DIGEST.fullmatch(package):
        raise Invalid("'package' is not the SHA-256 of a staged package", name, "octavo models deploy stages it.")
    wanted = rollout(_share(given, "share", name), _share(given, "shadow", name), name)
    deployer = _deployer(door, call)
    return json_reply(shown(await deployer.deploy(name, package, wanted, lambda model: call.require("edit", model))))


async def roll_out(door: Door, call: Call) -> Reply:
    """Give the candidate another share of the traffic."""
    name = call.model
    call.require("edit", name)
    share = _share(await call.json(_SMALL_BODY), "share", name)
    if share is None:
        raise Invalid("'share' is missing", name, 'Send {"share": 0.5}.')
    return json_reply(shown(await _deployer(door, call).roll_out(name, share)))


async def promote(door: Door, call: Call) -> Reply:
    """Give the candidate all of the traffic."""
    name = call.model
    call.require("edit", name)
    return json_reply(shown(await _deployer(door, call).promote(name)))


async def roll_back(door: Door, call: Call) -> Reply:
    """Take the candidate back, or return to the version before."""
    name = call.model
    call.require("edit", name)
    return json_reply(shown(await _deployer(door, call).roll_back(name)))


def rollout(share: float | None, shadow: float | None, where: str) -> Rollout:
    """A share or copies, both over 0 and at most 1.

    Raises:
        Invalid: both are given, or one is no such share.
    """
    if share is not None and shadow is not None:
        raise Invalid("a version gets a share or copies, not both", where, "Give --share or --shadow.")
    for value in (share, shadow):
        if value is not None and not 0 < value <= 1:
            raise Invalid(f"not a share: {value:g}", where, "Give more than 0 and at most 1, or 100%.")
    return Rollout(share=share, shadow=shadow)


def shown(deployment: Deployment) -> dict[str, Any]:
    """A deployment as everybody sees it."""
    return deployment.model_dump(mode="json", exclude={"lease"})


def _deployer(door: Door, call: Call) -> Deployer:
    return Deployer(door.service, door.settings, call.principal.name)


def _share(given: dict[str, Any], field: str, where: str) -> float | None:
    value = given.get(field)
    if value is None:
        return None
    if type(value) not in (int, float):
        raise Invalid(f"{field!r} is not a number", where, "Give 0 to 1.")
    return float(value)


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


_ONE = f"{_BASE}/{{model}}"
_JSON = ("application/json",)

PROTOCOL = Protocol(
    "octavo deployments",
    (
        Operation("GET", _BASE, deployments, "Every deployment"),
        Operation("GET", _ONE, deployment, "One deployment"),
        Operation("POST", _ONE, deploy, "Deploy a staged package", _JSON),
        Operation("POST", f"{_ONE}/roll-out", roll_out, "Give the candidate another share", _JSON),
        Operation("POST", f"{_ONE}/promote", promote, "Give the candidate all of the traffic"),
        Operation("POST", f"{_ONE}/roll-back", roll_back, "Return to the version before"),
    ),
    _error_body,
    b"application/problem+json",
)
