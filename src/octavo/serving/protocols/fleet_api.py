"""octavo's own JSON API of the fleet: replicas and nodes, what they hold, routing's counts, scaling's decisions."""

from __future__ import annotations

import orjson

from octavo.access import require
from octavo.errors import NotFound, OctavoError
from octavo.serving.fleet.service import FleetServing
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply


async def fleet(door: Door, call: Call) -> Reply:
    """The fleet's replicas by node, the models in each, hit ratio of routing, policy and decisions."""
    require(call.principal, "view", "models/*")
    if not isinstance(door.service, FleetServing):
        raise NotFound("the server runs alone", "fleet.ray", "Start it with: octavo up --ray local")
    return json_reply((await door.service.fleet_status()).plain())


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


PROTOCOL = Protocol(
    "octavo fleet",
    (Operation("GET", "/api/serving/fleet", fleet, "Replicas, routing and scaling of the fleet"),),
    _error_body,
    b"application/problem+json",
)
