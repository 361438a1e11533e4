"""Frames of an event stream, read by botocore."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from botocore.eventstream import EventStreamBuffer
from hypothesis import given
from hypothesis import strategies as st

from octavo.errors import DeadlineExceeded, ModelFailed
from octavo.serving.protocols.event_stream import MAX_PAYLOAD, frame, frames


def read(raw: bytes) -> list[tuple[dict[str, str], bytes]]:
    buffer = EventStreamBuffer()
    buffer.add_data(raw)
    return [(event.headers, event.payload) for event in buffer]


@given(st.dictionaries(st.text(min_size=1, max_size=20), st.text(max_size=50), max_size=5), st.binary(max_size=200))
def test_a_frame_comes_back(headers: dict[str, str], payload: bytes) -> None:
    headers = {name: value for name, value in headers.items() if name.isascii()}
    assert read(frame(headers, payload) * 2) == [(headers, payload)] * 2


async def streamed(*parts: bytes | Exception) -> list[tuple[dict[str, str], bytes]]:
    async def made() -> AsyncIterator[bytes]:
        for part in parts:
            if isinstance(part, Exception):
                raise part
            yield part

    return read(b"".join([one async for one in frames(made())]))


async def test_parts_are_events_and_large_ones_several() -> None:
    found = await streamed(b"a", b"b" * (MAX_PAYLOAD + 1), b"")
    assert [len(payload) for _, payload in found] == [1, MAX_PAYLOAD, 1]
    assert {headers[":event-type"] for headers, _ in found} == {"PayloadPart"}


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (ModelFailed("it broke", "m"), "ModelStreamError", b"StreamBroken"),
        (DeadlineExceeded("too late", "m"), "ModelStreamError", b"ModelInvocationTimeExceeded"),
        (ZeroDivisionError("secret"), "InternalStreamFailure", b"unexpected"),
    ],
)
async def test_an_error_on_the_way_is_the_last_frame(error: Exception, kind: str, says: bytes) -> None:
    (first, _), (last, payload) = await streamed(b"a", error, b"never")
    assert first[":message-type"] == "event"
    assert (last[":message-type"], last[":exception-type"]) == ("exception", kind)
    assert says in payload
    assert b"secret" not in payload
