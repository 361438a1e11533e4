"""octavo's own JSON API of the costs: what each tenant and model used, and what of the machine's bill that is."""

from __future__ import annotations

import orjson

from octavo.access import allowed, require
from octavo.errors import Invalid, OctavoError
from octavo.serving.protocols.exchange import Call, Door, Operation, Protocol, Reply, json_reply, query_of

_PATH = "/api/serving/costs"
_CSV = "text/csv; charset=utf-8"


async def costs(door: Door, call: Call) -> Reply:
    """Usage and money since a time: `since` (24h, 7d, 4w or a time), `by` (tenant or model), `price` and
    `instance_price` per hour, `format` (json or csv). An admin of all models sees everything, others their own lines.
    """
    everything = allowed(call.principal, "admin", "models/*")
    if not everything and call.principal.kind == "anonymous":
        require(call.principal, "admin", "models/*")
    given = query_of(call, ("since", "by", "price", "instance_price", "format"))
    form = given.pop("format", "json")
    if form not in ("json", "csv"):
        raise Invalid(f"unknown format {form!r:.60}", "format", "Use json or csv.")
    report = await door.service.costs(given, None if everything else call.principal.name)
    if form == "csv":
        disposition = (b"content-disposition", b'attachment; filename="costs.csv"')
        return Reply(200, report.csv().encode(), _CSV.encode(), (disposition,))
    return json_reply(report.plain())


def _error_body(error: OctavoError) -> bytes:
    return orjson.dumps(error.problem())


PROTOCOL = Protocol(
    "octavo costs",
    (Operation("GET", _PATH, costs, "What tenants and models used and cost", gives=("application/json", "text/csv")),),
    _error_body,
    b"application/problem+json",
)
