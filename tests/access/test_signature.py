"""Signatures of AWS's kind, against botocore's own signer."""

from __future__ import annotations

import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from octavo.access.service import Access
from octavo.access.signature import (
    SignatureRefused,
    canonical_request,
    check_moment,
    check_signed_headers,
    matches,
    parse_authorization,
    payload_hash,
)
from octavo.access.signing_key import KEY_FILE, SigningKey
from octavo.errors import Invalid, NotFound
from octavo.settings import load_settings
from octavo.storage import Database

SECRET = "a-secret"
SEGMENTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=6).map(
    lambda text: quote(text, safe="~:@!$'()*,;=")
)
PATHS = st.lists(st.one_of(SEGMENTS, st.sampled_from(["", ".", "..", "%2F", "%2e%2e"])), max_size=6).map("/".join)
QUERIES = st.lists(
    st.one_of(st.tuples(SEGMENTS, SEGMENTS).map("=".join), st.sampled_from(["a", "a=", "=", "b=1", "b=%20", "a=+"])),
    max_size=5,
).map("&".join)


def signed(method: str, path: str, query: str, body: bytes, more: dict[str, str] | None = None) -> tuple[Any, Any]:
    """A request signed by botocore, as the server sees it: the prepared request and its headers."""
    url = f"http://127.0.0.1:8600/{path}" + (f"?{query}" if query else "")
    request = AWSRequest(method, url, headers={"Host": "127.0.0.1:8600"} | (more or {}), data=body)
    SigV4Auth(Credentials("abc", SECRET), "sagemaker", "eu-west-3").add_auth(request)
    return request, [(name.lower().encode(), value.encode()) for name, value in request.headers.items()]


def verified(request: Any, headers: Any, body: bytes, secret: str = SECRET) -> bool:
    fields = {name.decode(): value.decode() for name, value in headers}
    claim = parse_authorization(fields["authorization"])
    check_signed_headers(claim, headers)
    parts = urlsplit(request.url)
    payload = payload_hash(fields.get("x-amz-content-sha256"), body)
    canonical = canonical_request(
        request.method, parts.path.encode(), parts.query.encode(), headers, claim.signed, payload
    )
    return matches(secret, claim, fields["x-amz-date"], canonical)


@given(PATHS, QUERIES, st.binary(max_size=40))
def test_what_botocore_signs_is_verified(path: str, query: str, body: bytes) -> None:
    request, headers = signed("POST", path, query, body, {"X-Amzn-SageMaker-Target-Model": "  a   b.tar.gz "})
    assert verified(request, headers, body)
    assert not verified(request, headers, body, "another")
    assert not verified(request, headers, body + b"!")


@pytest.mark.parametrize("name", [b"x-amz-date", b"x-amzn-sagemaker-target-model", b"host"])
def test_a_changed_header_does_not_fit(name: bytes) -> None:
    request, headers = signed("POST", "endpoints/a/invocations", "", b"x", {"X-Amzn-SageMaker-Target-Model": "a"})
    changed = [(key, b"20200101T000000Z" if key == name else value) for key, value in headers]
    assert not verified(request, changed, b"x")


def test_a_header_added_on_the_way_is_refused() -> None:
    request, headers = signed("POST", "endpoints/a/invocations", "", b"x")
    assert verified(request, [*headers, (b"x-amzn-trace-id", b"Root=1")], b"x")
    with pytest.raises(SignatureRefused, match="target-variant' is not signed"):
        verified(request, [*headers, (b"x-amzn-sagemaker-target-variant", b"b")], b"x")


def test_a_declared_hash_is_that_of_the_body() -> None:
    request, headers = signed("POST", "a", "", b"x", {"X-Amz-Content-SHA256": "UNSIGNED-PAYLOAD"})
    assert verified(request, headers, b"anything")
    request, headers = signed("POST", "a", "", b"x", {"X-Amz-Content-SHA256": "0" * 64})
    with pytest.raises(SignatureRefused, match="not the one that was signed"):
        verified(request, headers, b"x")


@pytest.mark.parametrize("minutes", [-6, 6])
def test_clocks_apart_are_both_named(minutes: int) -> None:
    now = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
    moment = (now + timedelta(minutes=minutes)).strftime("%Y%m%dT%H%M%SZ")
    with pytest.raises(SignatureRefused) as caught:
        check_moment(moment, "20260504", now)
    assert caught.value.code == "RequestTimeTooSkewed"
    assert moment in str(caught.value)
    assert "20260504T120000Z" in str(caught.value)
    check_moment("20260504T115600Z", "20260504", now)


@pytest.mark.parametrize(("moment", "day"), [("", "20260504"), ("now", "20260504"), ("20260504T120000Z", "20260503")])
def test_a_moment_that_is_none(moment: str, day: str) -> None:
    with pytest.raises(SignatureRefused):
        check_moment(moment, day, datetime(2026, 5, 4, 12, 0, tzinfo=UTC))


GOOD = f"AWS4-HMAC-SHA256 Credential=k/20260504/r/sagemaker/aws4_request, SignedHeaders=a;b, Signature={'0' * 64}"


@pytest.mark.parametrize(
    "value",
    [
        "AWS4-HMAC-SHA256 ",
        GOOD.replace("/aws4_request", ""),
        GOOD.replace("sagemaker", "s3"),
        GOOD.replace("a;b", "b;a"),
        GOOD.replace("a;b", "a;a"),
        GOOD[:-1],
        GOOD.replace("k/", "/"),
        GOOD + "x" * 9000,
    ],
)
def test_a_header_that_is_no_signature(value: str) -> None:
    assert parse_authorization(GOOD).signed == ("a", "b")
    with pytest.raises(SignatureRefused):
        parse_authorization(value)


@given(st.text(max_size=200))
def test_any_text_is_a_signature_or_refused(text: str) -> None:
    with pytest.raises(SignatureRefused):
        parse_authorization("AWS4-HMAC-SHA256 " + text)


def test_the_signing_key_is_made_once_for_one_user(tmp_path: Path) -> None:
    one = SigningKey(tmp_path).secret_of("abc")
    assert SigningKey(tmp_path).secret_of("abc") == one != SigningKey(tmp_path).secret_of("abd")
    assert stat.S_IMODE((tmp_path / KEY_FILE).stat().st_mode) == 0o600
    (tmp_path / KEY_FILE).write_text("nonsense")
    with pytest.raises(Invalid, match="signing key"):
        SigningKey(tmp_path).secret_of("abc")


def test_who_signs(tmp_path: Path, database_url: str) -> None:
    database = Database(database_url)
    database.upgrade()
    clock = [datetime.now(UTC)]
    access = Access.open(database, load_settings(tmp_path), lambda: clock[0])
    access.add_user("ann", role="viewer")
    key = access.create_key("ann")
    assert access.aws_credentials(key.prefix).access_key_id == key.prefix
    signer = access.signer(key.prefix)
    assert signer is not None
    assert signer.name == "ann"
    assert access.remembered_signer(key.prefix) == signer
    access.revoke_key(key.prefix)
    assert access.remembered_signer(key.prefix) is None
    assert access.signer(key.prefix) is None
    with pytest.raises(NotFound):
        access.aws_credentials(key.prefix)
    short = access.create_key("ann", expires=clock[0] + timedelta(hours=1))
    clock[0] += timedelta(hours=2)
    assert access.signer(short.prefix) is None
    assert access.signer("x" * 9999) is None
    assert access.authenticate(f"aws:{short.prefix}") is None
    database.close()
