"""AWS Signature Version 4, the verifying side: who signed a request with which secret. Pure: no database, no network.

A request is signed over its method, path, query, chosen headers and the SHA-256 of its body; the signature is made with
a key that is derived from the secret, the day, the region and the service. Any region is taken.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote

from octavo.aws_errors import AwsError

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICES = frozenset({"sagemaker", "application-autoscaling"})
MAX_SKEW = timedelta(minutes=5)
UNSIGNED = "UNSIGNED-PAYLOAD"

_MOMENT = "%Y%m%dT%H%M%SZ"
_MAX_LENGTH = 8192
_HASH = re.compile(r"[0-9a-f]{64}")
_MUST_BE_SIGNED = ("x-amz-", "x-amzn-sagemaker-")
_UNSIGNED_HEADERS = frozenset({"x-amzn-trace-id"})  # a proxy may add it

Headers = Sequence[tuple[bytes, bytes]]


class SignatureRefused(AwsError):
    """The signature cannot be accepted; status 403 with a code as AWS words it."""

    def __init__(self, code: str, what: str, fix: str = "") -> None:
        super().__init__(code, 403, what, "Authorization", fix)


@dataclass(frozen=True, slots=True)
class Claim:
    """What the `Authorization` header says, not verified.

    Attributes:
        access_key: the access key id.
        day: `YYYYMMDD`, as in the scope.
        signed: names of the signed headers, lower case, in the header's order.
        signature: 64 hexadecimal digits.
    """

    access_key: str
    day: str
    region: str
    service: str
    signed: tuple[str, ...]
    signature: str

    @property
    def scope(self) -> str:
        """The credential's scope."""
        return f"{self.day}/{self.region}/{self.service}/aws4_request"


def parse_authorization(value: str) -> Claim:
    """The parts of an `Authorization: AWS4-HMAC-SHA256 ...` header.

    Raises:
        SignatureRefused: not of that form, or for a service that is not served here.
    """
    given = value[len(ALGORITHM) :]
    parts = dict(part.strip().partition("=")[::2] for part in given.split(",")) if len(value) <= _MAX_LENGTH else {}
    credential = parts.get("Credential", "").split("/")
    signed = tuple(parts.get("SignedHeaders", "").split(";"))
    signature = parts.get("Signature", "")
    whole = len(credential) == 5 and credential[4] == "aws4_request" and all(credential)
    if not whole or not _HASH.fullmatch(signature) or list(signed) != sorted(set(signed)):
        raise SignatureRefused(
            "IncompleteSignatureException",
            "the Authorization header is not a whole signature",
            "It has Credential=KEY/DAY/REGION/SERVICE/aws4_request, SignedHeaders in order, and Signature.",
        )
    access_key, day, region, service, _ = credential
    if service not in SERVICES:
        known = ", ".join(sorted(SERVICES))
        raise SignatureRefused("SignatureDoesNotMatch", f"signed for {service[:40]!r}", f"Sign for one of {known}.")
    return Claim(access_key, day, region, service, signed, signature)


def check_moment(moment: str, day: str, now: datetime) -> None:
    """Raise `SignatureRefused` unless `x-amz-date` is within five minutes of `now` and of the scope's day."""
    try:
        signed_at = datetime.strptime(moment, _MOMENT).replace(tzinfo=UTC)
    except ValueError:
        raise SignatureRefused(
            "IncompleteSignatureException", "x-amz-date is missing or no time", "Send it as 20260131T235959Z."
        ) from None
    if signed_at.strftime("%Y%m%d") != day:
        raise SignatureRefused("SignatureDoesNotMatch", f"the scope's day {day[:20]!r} is not that of {moment}")
    if abs(now - signed_at) > MAX_SKEW:
        here = now.astimezone(UTC).strftime(_MOMENT)
        raise SignatureRefused(
            "RequestTimeTooSkewed",
            f"the request was signed at {moment} by the client's clock, it is {here} by the server's",
            "Set both clocks right; at most 5 minutes may lie between them.",
        )


def check_signed_headers(claim: Claim, headers: Headers) -> None:
    """Raise `SignatureRefused` unless the host, the date and every header that AWS gives a meaning to are signed."""
    present = {name.decode("latin-1").lower() for name, _ in headers}
    needed = {name for name in present if name.startswith(_MUST_BE_SIGNED)} - _UNSIGNED_HEADERS
    left = sorted((needed | {"host", "x-amz-date"}) - set(claim.signed))
    if left:
        raise SignatureRefused("SignatureDoesNotMatch", f"the header {left[0][:80]!r} is not signed", "Sign it too.")


def payload_hash(declared: str | None, body: bytes) -> str:
    """What stands for the body in the canonical request.

    Args:
        declared: the header `x-amz-content-sha256`; None when it was not sent.
        body: the whole body as sent.

    Raises:
        SignatureRefused: the declared hash is not the body's, or the body is signed in chunks.
    """
    if declared == UNSIGNED:
        return UNSIGNED
    found = hashlib.sha256(body).hexdigest()
    if declared is not None and not hmac.compare_digest(declared.encode(), found.encode()):
        raise SignatureRefused(
            "InvalidSignatureException", "the body is not the one that was signed", "Do not change it on its way."
        )
    return found


def canonical_request(
    method: str, path: bytes, query: bytes, headers: Headers, signed: Iterable[str], payload: str
) -> bytes:
    """The text that is hashed and signed.

    Args:
        method: in any case.
        path: as sent, percent-encoded; for services other than S3 it is encoded once more.
        query: as sent, without `?`.
        headers: of the request; a name that comes twice counts with both values.
        signed: names of the signed headers, in order.
        payload: of `payload_hash`.
    """
    values: dict[str, list[str]] = {}
    for name, value in headers:
        values.setdefault(name.decode("latin-1").lower(), []).append(b" ".join(value.split()).decode("latin-1"))
    names = list(signed)
    lines = [
        method.upper(),
        _canonical_path(path),
        _canonical_query(query),
        *(f"{name}:{','.join(values.get(name, []))}" for name in names),
        "",
        ";".join(names),
        payload,
    ]
    return "\n".join(lines).encode("latin-1")


def sign(secret: str, claim: Claim, moment: str, canonical: bytes) -> str:
    """The signature, hexadecimal, that whoever holds `secret` makes."""
    key = f"AWS4{secret}".encode()
    for part in (claim.day, claim.region, claim.service, "aws4_request"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join((ALGORITHM, moment, claim.scope, hashlib.sha256(canonical).hexdigest()))
    return hmac.digest(key, text.encode(), "sha256").hex()


def matches(secret: str, claim: Claim, moment: str, canonical: bytes) -> bool:
    """Whether the claimed signature is the one made with `secret`; takes the same time either way."""
    return hmac.compare_digest(sign(secret, claim, moment, canonical), claim.signature)


def _canonical_path(path: bytes) -> str:
    """Without empty segments and those of dots, and encoded once more."""
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    last = "/" if kept and path.endswith(b"/") else ""
    return "/" + quote(b"/".join(kept), safe="/~") + last


def _canonical_query(query: bytes) -> str:
    """Pairs in order of names and values, as the client wrote them: it has encoded them once already."""
    pairs = [part.partition("=")[::2] for part in query.decode("latin-1").split("&")] if query else []
    return "&".join(f"{name}={value}" for name, value in sorted(pairs))
