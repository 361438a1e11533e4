"""Bad input, as hostile as clients get: each gets one clear sentence, and the server lives on unharmed."""

from __future__ import annotations

import contextlib
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from .conftest import BODY_SECONDS, MAX_BODY
from .live_server import BEARER, LiveServer, check_refused, check_sentence, x_of
from .raw_http import exchange, head_of, read_answer, read_until_closed

INFER = "/v2/models/adder/infer"


def tensor(**changes: Any) -> dict[str, Any]:
    """A request for `adder` with something changed."""
    given = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changes
    return {"inputs": [{key: value for key, value in given.items() if value is not ...}]}


BAD_REQUESTS = {
    "no inputs": {},
    "inputs not a list": {"inputs": {"x": 1}},
    "input not an object": {"inputs": [1]},
    "zero rows": tensor(shape=[0, 4], data=[]),
    "zero columns": tensor(shape=[1, 0], data=[]),
    "too few values": tensor(shape=[2, 4]),
    "too many values": tensor(shape=[1, 4], data=[1] * 400),
    "negative axis": tensor(shape=[-1, 4]),
    "huge shape": tensor(shape=[2**31, 2**31]),
    "overflowing shape": tensor(shape=[2**32, 2**32, 0]),
    "fractional shape": tensor(shape=[1.5, 4]),
    "shape of text": tensor(shape=["1", 4]),
    "no shape": tensor(shape=...),
    "a hundred axes": tensor(shape=[1] * 100, data=[1]),
    "other rank": tensor(shape=[4]),
    "other width": tensor(shape=[1, 5], data=[1] * 5),
    "too many rows": tensor(shape=[65, 4], data=[1] * 260),
    "unknown datatype": tensor(datatype="FP128"),
    "other datatype": tensor(datatype="INT64"),
    "text as numbers": tensor(data=["1", "2", "3", "4"]),
    "null": tensor(data=[1, 2, 3, None]),
    "booleans": tensor(data=[True, False, True, True]),
    "too large for FP32": tensor(data=[1e300, 0, 0, 0]),
    "no data": tensor(data=...),
    "uneven nesting": tensor(data=[[1, 2], [3]]),
    "unknown input": tensor(name="z"),
    "the same input twice": {"inputs": tensor()["inputs"] * 2},
    "unknown output": tensor() | {"outputs": [{"name": "nothing"}]},
    "binary size without data": tensor(data=..., parameters={"binary_data_size": 16}),
    "negative binary size": tensor(data=..., parameters={"binary_data_size": -1}),
    "shared memory": tensor(data=..., parameters={"shared_memory_region": "r", "shared_memory_byte_size": 16}),
    "a timeout of text": tensor() | {"parameters": {"timeout": "soon"}},
    "an object as parameter": tensor() | {"parameters": {"a": {}}},
}

BAD_JSON = {
    "nothing": b"",
    "no JSON": b"hello",
    "cut off": b'{"inputs": [',
    "a list": b"[]",
    "NaN": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[NaN,0,0,0]}]}',
    "infinity": b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,4],"data":[Infinity,0,0,0]}]}',
    "not UTF-8": b'{"inputs": "\xff\xfe"}',
    "nested without end": b'{"inputs":' + b"[" * 100_000,
    "a lone surrogate": b'{"inputs":[{"name":"\\ud800","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}',
    "NUL in a name": b'{"inputs":[{"name":"x\\u0000","datatype":"FP32","shape":[1,4],"data":[1,2,3,4]}]}',
}


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_a_request_that_does_not_fit(server: LiveServer, case: str) -> None:
    check_refused(server.client.post(INFER, json=BAD_REQUESTS[case]), 400)


@pytest.mark.parametrize("case", BAD_JSON)
def test_a_body_that_is_not_as_agreed(server: LiveServer, case: str) -> None:
    for path in (INFER, "/v1/embeddings"):
        check_refused(server.client.post(path, content=BAD_JSON[case]), 400)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"model": "embedder"},
        {"model": 1, "input": "hello"},
        {"model": "embedder", "input": []},
        {"model": "embedder", "input": [""] * 3000},
        {"model": "embedder", "input": ["hello", 1]},
        {"model": "embedder", "input": [[]]},
        {"model": "embedder", "input": [5, 10_000]},
        {"model": "embedder", "input": [-5]},
        {"model": "embedder", "input": [5] * 600},
        {"model": "embedder", "input": {"text": "hello"}},
        {"model": "embedder", "input": "hello", "encoding_format": "xml"},
        {"model": "embedder", "input": "hello", "dimensions": 0},
        {"model": "embedder", "input": "hello", "dimensions": 100_000},
        {"model": "adder", "input": "hello"},
    ],
    ids=lambda body: json.dumps(body)[:60],
)
def test_an_embeddings_request_that_does_not_fit(server: LiveServer, body: dict[str, Any]) -> None:
    check_refused(server.client.post("/v1/embeddings", json=body), 400)


@pytest.mark.parametrize("text", ["", " ", "\t\n  \u3000", "x" * 900, "\x00", "\U0001f600" * 50, "hello " * 5000])
def test_odd_texts_are_embedded(server: LiveServer, text: str) -> None:
    answer = server.embed([text, "hello"])
    assert answer.status_code == 200, answer.text
    first, second = (np.array(row["embedding"]) for row in answer.json()["data"])
    assert np.isfinite(first).all()
    assert np.linalg.norm(first) == pytest.approx(1, abs=1e-3)
    alone = np.array(server.embed("hello").json()["data"][0]["embedding"])
    np.testing.assert_allclose(second, alone, atol=1e-5)


def test_a_tokenizer_that_pads_to_128_costs_nothing(server: LiveServer) -> None:
    """MiniLM's file carries a fixed padding; a text of one word has three tokens all the same."""
    answer = server.embed("hello")
    assert answer.json()["usage"]["total_tokens"] == 3
    assert server.embed(["hello", "hello world", "a b c"]).json()["usage"]["total_tokens"] == 3 + 4 + 5


def test_nan_goes_in_and_out_in_binary_and_is_refused_in_json(server: LiveServer) -> None:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    given = triton.InferInput("x", [2, 4], "FP32")
    given.set_data_from_numpy(np.array([[1, np.nan, np.inf, 4], [1, 2, 3, 4]], np.float32))
    found = client.infer("adder", [given], headers=dict(BEARER)).as_numpy("y")
    np.testing.assert_array_equal(found, np.array([[2, np.nan, np.inf, 5], [2, 3, 4, 5]], np.float32))
    as_json = triton.InferRequestedOutput("y", binary_data=False)
    with pytest.raises(InferenceServerException, match="NaN"):
        client.infer("adder", [given], outputs=[as_json], headers=dict(BEARER))
    client.close()


@pytest.mark.parametrize(
    "raw",
    [
        struct.pack("<I", 100) + b"hello",
        struct.pack("<I", 2**32 - 1) + b"hello",
        b"\x05\x00",
        struct.pack("<I", 5) + b"hello" + b"\x00",
        struct.pack("<I", 5) + b"hello" + struct.pack("<I", 5) + b"world",
        struct.pack("<I", 2) + b"\xff\xfe",
        b"",
    ],
    ids=["too long", "4 GiB", "half a length", "left over", "two for one", "not UTF-8", "none"],
)
def test_bytes_of_wrong_length(server: LiveServer, raw: bytes) -> None:
    given = {"name": "text", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [given]}).encode()
    headers = {"inference-header-content-length": str(len(head))}
    check_refused(server.client.post("/v2/models/embedder/infer", content=head + raw, headers=headers), 400)


@pytest.mark.parametrize("length", ["-1", "99999999", "abc", "1e3", "", "9" * 400])
def test_a_wrong_length_of_the_json_part(server: LiveServer, length: str) -> None:
    body = json.dumps(tensor()).encode()
    check_refused(server.client.post(INFER, content=body, headers={"inference-header-content-length": length}), 400)


def test_packed_bodies_that_lie(server: LiveServer) -> None:
    import gzip

    bomb = gzip.compress(b"[" * (64 * MAX_BODY))
    for coding, body, status in (
        ("gzip", b"hello", 400),
        ("gzip", gzip.compress(b"{}" * 100)[:20], 400),
        ("br", b"{}", 400),
        ("gzip", bomb, 413),
    ):
        check_refused(server.client.post(INFER, content=body, headers={"content-encoding": coding}), status)


HOSTILE_NAMES = [
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%2f..%2fetc%2fpasswd",
    "..%5c..%5cetc",
    "%2e%2e",
    "..",
    "%2fetc%2fpasswd",
    "adder%00",
    "adder%2f..%2fadder",
    "adder%0a",
    "adder%20",
    "%c0%ae%c0%ae%2f",
    ".octavo",
    "a" * 5000,
    "%f0%9f%98%80",
    "~root",
    "9" * 18,
    "9" * 5000,
    "C%3a%5cwindows",
]
ADDRESSES = [
    ("POST", "/v2/models/{}/infer"),
    ("POST", "/v2/models/{}/versions/1/infer"),
    ("GET", "/v2/models/{}"),
    ("GET", "/v2/models/{}/config"),
    ("GET", "/v2/models/{}/stats"),
    ("GET", "/v2/models/{}/ready"),
    ("GET", "/v2/models/adder/versions/{}"),
    ("POST", "/v2/models/adder/versions/{}/infer"),
    ("POST", "/v2/repository/models/{}/load"),
    ("POST", "/v2/repository/models/{}/unload"),
    ("GET", "/v1/models/{}"),
    ("POST", "/api/serving/models/{}/pin"),
    ("POST", "/api/serving/models/{}/unpin"),
    ("POST", "/api/serving/models/{}/roll-back"),
]


@pytest.mark.parametrize("name", HOSTILE_NAMES, ids=lambda name: name[:30])
def test_a_name_that_leads_elsewhere_in_an_address(server: LiveServer, name: str) -> None:
    """Sent as it stands: clients would tidy the path up first."""
    body = json.dumps(x_of([[1, 2, 3, 4]])).encode()
    for method, path in ADDRESSES:
        status, answer = exchange(server, method, path.format(name), body if "infer" in path else b"")
        assert status in (400, 404, 405), (path, status, answer)
        assert b"root:" not in answer
        assert str(server.workspace).encode() not in answer
        check_sentence(said(json.loads(answer)))


@pytest.mark.parametrize("name", ["../adder", "..\\adder", "/etc/passwd", "adder\x00", "", "a/b", ".", "a" * 5000])
def test_a_name_that_leads_elsewhere_in_a_body(server: LiveServer, name: str) -> None:
    sentence = check_refused(server.client.post("/v1/embeddings", json={"model": name, "input": "hello"}), 400, 404)
    assert str(server.workspace) not in sentence
    answer = server.client.post("/api/serving/models/adder/default-version", json={"version": name})
    check_refused(answer, 400, 404)


def test_a_body_of_a_gigabyte_is_refused_before_it_is_sent(server: LiveServer) -> None:
    before = server.memory()
    with server.connect() as wire:
        wire.sendall(head_of("POST", INFER, f"content-length: {2**30}"))
        status, headers, answer = read_answer(wire)
        assert status == 413
        assert "larger than" in said(json.loads(answer))
        assert headers.get("connection") == "close"
        assert read_until_closed(wire) < 1024
    assert server.memory() - before < 32 * 2**20


def test_an_endless_stream_is_cut_at_the_limit(server: LiveServer) -> None:
    before = server.memory()
    piece = b"%x\r\n" % 2**16 + b" " * 2**16 + b"\r\n"
    sent = 0
    with server.connect() as wire:
        wire.sendall(head_of("POST", INFER, "transfer-encoding: chunked"))
        with contextlib.suppress(OSError):  # the server hangs up, as it should
            while sent < 2**30:
                wire.sendall(piece)
                sent += 2**16
    assert sent < 64 * MAX_BODY
    assert server.memory() - before < 64 * 2**20


def test_a_stream_that_stops_at_the_limit_gets_its_413(server: LiveServer) -> None:
    with server.connect() as wire:
        wire.sendall(head_of("POST", INFER, "transfer-encoding: chunked"))
        wire.sendall(b"%x\r\n" % (MAX_BODY + 1) + b" " * (MAX_BODY + 1) + b"\r\n")
        status, _, answer = read_answer(wire)
    assert status == 413
    check_sentence(said(json.loads(answer)))


def test_a_body_that_drips_gets_408(server: LiveServer) -> None:
    with server.connect() as wire:
        wire.sendall(head_of("POST", INFER, "content-length: 1000"))
        begun = time.monotonic()
        wire.settimeout(0.2)
        answer = b""
        while not answer and time.monotonic() - begun < BODY_SECONDS + 30:
            try:
                wire.sendall(b" ")
                answer = wire.recv(2**16)
            except TimeoutError:
                continue
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_body_that_is_never_finished_leaves_nothing(server: LiveServer) -> None:
    for _ in range(20):
        with server.connect() as wire:
            wire.sendall(head_of("POST", INFER, "content-length: 1000") + b'{"inputs"')
    assert server.get("/api/serving/residency")["pending"] == 0


@pytest.mark.parametrize(
    "raw",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" * 20,
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: -5\r\n\r\n",
        b"POST " + INFER.encode() + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
        b"POST "
        + INFER.encode()
        + b" HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        b"GET /" + b"a" * 2**17 + b" HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nhost: 127.0.0.1\r\n" + b"x-a: " + b"b" * 2**17 + b"\r\n\r\n",
    ],
    ids=["TLS", "HTTP 9.9", "negative length", "length over 64 bits", "endless chunk", "long address", "long header"],
)
def test_what_is_hardly_http_is_refused(server: LiveServer, raw: bytes) -> None:
    with server.connect(20) as wire:
        try:
            wire.sendall(raw)
            answer = wire.recv(2**16)
        except ConnectionError:
            return
        assert answer == b"" or 400 <= int(answer.split(b" ", 2)[1]) < 500, answer


def test_tritons_client_hears_every_refusal(server: LiveServer) -> None:
    client = triton.InferenceServerClient(server.url.removeprefix("http://"))
    given = triton.InferInput("x", [1, 4], "FP32")
    given.set_data_from_numpy(np.zeros((1, 4), np.float32))
    for model, status in (("nowhere", "404"), ("..", "40"), ("cut_short", ""), ("bad_config", "")):
        with pytest.raises(InferenceServerException) as told:
            client.infer(model, [given], headers=dict(BEARER))
        assert status in str(told.value.status())
        check_sentence(told.value.message())
    client.close()


@pytest.fixture
def stranger(server: LiveServer) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        yield client


@pytest.mark.parametrize(("method", "path"), ADDRESSES)
def test_strangers_are_told_to_sign_in(stranger: httpx.Client, method: str, path: str) -> None:
    address = path.format("adder") if "/models/{}" in path else path.format("1")
    check_refused(stranger.request(method, address), 401)
    check_refused(stranger.request(method, address, headers={"authorization": "Bearer wrong"}), 401)


def said(body: dict[str, Any]) -> str:
    """The sentence of an error's body, in any protocol."""
    error = body.get("error", body.get("detail"))
    return str(error["message"] if isinstance(error, dict) else error)
