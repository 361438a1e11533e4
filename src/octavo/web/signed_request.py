"""A request that is signed instead of carrying a token: read whole, verified, handed on with its body."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from starlette.types import Message, Receive, Scope

from octavo.access import Principal
from octavo.access.signature import (
    ALGORITHM,
    Claim,
    SignatureRefused,
    canonical_request,
    check_moment,
    check_signed_headers,
    matches,
    parse_authorization,
    payload_hash,
)
from octavo.errors import Cancelled

if TYPE_CHECKING:
    from octavo.access import Access

_OFF_LOOP = 2**18  # bytes; larger bodies are hashed in a thread


def is_signed(fields: dict[bytes, bytes]) -> bool:
    """Whether a request comes with a signature of AWS's kind."""
    return fields.get(b"authorization", b"").startswith(ALGORITHM.encode() + b" ")


async def signer_of(access: Access, scope: Scope, receive: Receive) -> tuple[Principal, Receive]:
    """Who signed the request, and a `receive` that gives its body again.

    What needs no body is looked at first, so that a stranger makes nobody read one.

    Args:
        access: who knows the keys.
        scope: the request's.
        receive: the request's; limits of size and time are its own.

    Raises:
        SignatureRefused: unknown or ended key, wrong secret, clocks apart, or the request was changed on its way.
        Cancelled: the client left before it had sent the body.
    """
    fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    claim = parse_authorization(fields["authorization"])
    moment = fields.get("x-amz-date", "")
    check_moment(moment, claim.day, datetime.now(UTC))
    check_signed_headers(claim, scope["headers"])
    key = claim.access_key
    principal = access.remembered_signer(key) or await asyncio.to_thread(access.signer, key)
    if principal is None:
        raise SignatureRefused(
            "UnrecognizedClientException",
            f"the access key id {key[:40]!r} is not known, or has ended",
            "It is the prefix of an API key; `octavo users aws-credentials` shows the pair.",
        )
    body = await _read(receive)
    secret = await asyncio.to_thread(access.signing_key.secret_of, key)
    check = (secret, claim, moment, scope, fields.get("x-amz-content-sha256"), body)
    right = await asyncio.to_thread(_verify, *check) if len(body) > _OFF_LOOP else _verify(*check)
    if not right:
        raise SignatureRefused(
            "SignatureDoesNotMatch",
            "the signature does not fit the request",
            "Check the secret access key, and that nothing on the way changes the request.",
        )
    return principal, _replay(body, receive)


def _verify(secret: str, claim: Claim, moment: str, scope: Scope, declared: str | None, body: bytes) -> bool:
    payload = payload_hash(declared, body)
    path = scope.get("raw_path") or scope["path"].encode()
    canonical = canonical_request(scope["method"], path, scope["query_string"], scope["headers"], claim.signed, payload)
    return matches(secret, claim, moment, canonical)


async def _read(receive: Receive) -> bytes:
    parts = []
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Cancelled("the client left before it had sent the whole body", "body")
        parts.append(message.get("body", b""))
        if not message.get("more_body"):
            return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    told = False

    async def replayed() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
