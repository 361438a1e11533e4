"""KServe v2: the parser against hostile bytes, and Triton's own client against the HTTP door."""

import gzip
import json
import socket

import httpx
import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferAnswer, InferRequest
from octavo.serving.protocols.kserve import OutputForm, best, parse, serialise
from octavo.serving.routes import openapi_paths
from octavo.serving.tensors import NUMPY_OF

from .fake_service import DIMENSIONS, FakeServing, fake_app, serve, small_settings

ADMIN = {"Authorization": "Bearer admin-token"}
VIEWER = {"Authorization": "Bearer viewer-token"}


@pytest.fixture(scope="module")
def service():
    return FakeServing()


@pytest.fixture(scope="module")
def address(service):
    with serve(fake_app(service, small_settings())) as found:
        yield found


@pytest.fixture
def client(address):
    with triton.InferenceServerClient(address) as made:
        made.register_plugin(_Token())
        yield made


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=f"http://{address}", headers=ADMIN) as made:
        yield made


class _Token(triton.InferenceServerClientPlugin):
    def __call__(self, request):
        request.headers.update(ADMIN)


def body(**tensor):
    one = {"name": "x", "shape": [2], "datatype": "FP32", "data": [1, 2]} | tensor
    return json.dumps({"inputs": [{key: value for key, value in one.items() if value is not None}]}).encode()


# The parser


def test_the_captured_binary_request(shared_data):
    lines = (shared_data / "serve" / "wire_captures.jsonl").read_text().splitlines()
    (capture,) = [found for found in map(json.loads, lines) if "body_hex" in found]
    length = capture["headers"]["Inference-Header-Content-Length"].encode()
    inference = parse(bytes.fromhex(capture["body_hex"]), length, "m")
    assert inference.request.inputs["text"].tolist() == [[b"hello"]]
    assert inference.request.inputs["ids"].tolist() == [[1, 2]]
    assert inference.request.inputs["ids"].flags.aligned
    assert inference.forms == {"o": OutputForm(binary=True)}


def test_the_captured_json_request(shared_data):
    lines = (shared_data / "serve" / "wire_captures.jsonl").read_text().splitlines()
    (capture,) = [c for c in map(json.loads, lines) if "json input" in c["call"]]
    inference = parse(capture["body"].encode(), None, "m", "2")
    request = inference.request
    assert (request.id, request.priority, request.version) == ("r1", 1, "2")
    assert request.deadline == pytest.approx(request.arrived + 0.001)
    assert inference.binary
    assert request.inputs["text"].tolist() == [[b"hello"]]


@pytest.mark.parametrize("datatype", [name for name in NUMPY_OF if name not in ("BYTES", "FP16")])
def test_each_datatype_as_json_and_nested(datatype):
    for data in ([1, 0, 1, 1], [[1, 0], [1, 1]]):
        if datatype == "BOOL":
            data = json.loads(json.dumps(data).replace("1", "true").replace("0", "false"))
        array = parse(body(datatype=datatype, shape=[2, 2], data=data), None, "m").request.inputs["x"]
        assert array.dtype == NUMPY_OF[datatype]
        assert array.astype(int).tolist() == [[1, 0], [1, 1]]


def test_extremes_of_integers_survive_json():
    for datatype in ("INT64", "UINT64", "INT8"):
        ends = np.iinfo(NUMPY_OF[datatype])
        array = parse(body(datatype=datatype, data=[ends.min, ends.max]), None, "m").request.inputs["x"]
        assert array.tolist() == [ends.min, ends.max]


BAD = {
    "cut off": b'{"inputs": [{"name"',
    "not an object": b"[1]",
    "empty": b"",
    "nested without end": b'{"inputs":' + b"[" * 100_000,
    "nan": b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[NaN]}]}',
    "no inputs": b"{}",
    "inputs of a wrong type": b'{"inputs": {"x": 1}}',
    "input of a wrong type": b'{"inputs": [3]}',
    "no name": body(name=None),
    "name of a wrong type": body(name=["x"]),
    "no shape": body(shape=None),
    "negative axis": body(shape=[-1]),
    "fractional axis": body(shape=[2.0]),
    "axis of a wrong type": body(shape=["2"]),
    "boolean axis": body(shape=[True, 2]),
    "endless shape": body(shape=[2**40]),
    "zero hides an endless shape": body(shape=[0, 2**62, 2**62], data=[]),
    "many axes": body(shape=[1] * 40),
    "unknown datatype": body(datatype="FP8"),
    "datatype of a wrong type": body(datatype=7),
    "no data": body(data=None),
    "too few values": body(data=[1]),
    "too many values": body(data=[1, 2, 3]),
    "uneven nesting": body(data=[[1, 2], [3]]),
    "deep data": body(data=json.loads("[" * 200 + "1" + "]" * 200)),
    "a text among numbers": body(data=[1, "2"]),
    "null among numbers": body(data=[1, None]),
    "fraction as integer": body(datatype="INT32", data=[1, 2.5]),
    "over the range": body(datatype="INT8", data=[1, 200]),
    "under the range": body(datatype="UINT8", data=[1, -1]),
    "beyond 64 bits": body(datatype="INT64", data=[1, 2**70]),
    "float over the range": body(data=[1, 1e300]),
    "numbers as booleans": body(datatype="BOOL", data=[1, 0]),
    "FP16 as JSON": body(datatype="FP16"),
    "number among texts": body(datatype="BYTES", data=["a", 1]),
    "uneven texts": body(datatype="BYTES", data=["a", ["b"]]),
    "binary size beyond the body": body(data=None, parameters={"binary_data_size": 8}),
    "negative binary size": body(data=None, parameters={"binary_data_size": -8}),
    "binary size of a wrong type": body(data=None, parameters={"binary_data_size": "8"}),
    "shared memory": body(data=None, parameters={"shared_memory_region": "r"}),
    "parameters of a wrong type": body(parameters=[1]),
}


@pytest.mark.parametrize("raw", BAD.values(), ids=BAD.keys())
def test_bad_requests_are_invalid_with_one_sentence(raw):
    with pytest.raises(Invalid) as caught:
        parse(raw, None, "m")
    assert 0 < len(str(caught.value)) < 400
    assert "\n" not in caught.value.what


@pytest.mark.parametrize(
    "extra",
    [
        {"outputs": {"name": "y"}},
        {"outputs": ["y"]},
        {"outputs": [{"name": "y"}, {"name": "y"}]},
        {"outputs": [{"name": "y", "parameters": {"binary_data": 1}}]},
        {"outputs": [{"name": "y", "parameters": {"classification": -1}}]},
        {"outputs": [{"name": "y", "parameters": {"shared_memory_region": "r"}}]},
        {"id": 7},
        {"parameters": {"sequence_id": 3}},
        {"parameters": {"sequence_id": "a", "sequence_start": True}},
        {"parameters": {"priority": -1}},
        {"parameters": {"priority": 1.5}},
        {"parameters": {"timeout": "soon"}},
        {"parameters": {"nested": {}}},
        {"parameters": {"binary_data_output": "yes"}},
    ],
)
def test_bad_fields_beside_good_inputs_are_invalid(extra):
    with pytest.raises(Invalid):
        parse(json.dumps(json.loads(body()) | extra).encode(), None, "m")


def test_duplicate_inputs_are_invalid():
    one = json.loads(body())["inputs"][0]
    with pytest.raises(Invalid, match="twice"):
        parse(json.dumps({"inputs": [one, one]}).encode(), None, "m")


@pytest.mark.parametrize("length", [b"-1", b"9999", b"x", b"1e3", b"", b"9" * 400, "²".encode()])
def test_bad_header_lengths_are_invalid(length):
    with pytest.raises(Invalid):
        parse(body(), length, "m")


def test_binary_data_that_belongs_to_no_input_is_invalid():
    raw = body()
    with pytest.raises(Invalid, match="belong to no input"):
        parse(raw + b"1234", str(len(raw)).encode(), "m")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)
shapes = st.lists(st.integers(-1, 3) | st.sampled_from([2**31, 2**63, 2**64]), max_size=4) | json_values
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": st.sampled_from(["a", "b", ""]) | json_values,
        "shape": shapes,
        "datatype": st.sampled_from([*NUMPY_OF, "BF16"]) | json_values,
        "data": st.lists(st.integers() | st.floats() | st.text(max_size=3) | st.booleans(), max_size=6) | json_values,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 40) | json_values}),
    },
)
requests = st.fixed_dictionaries(
    {"inputs": st.lists(tensors, max_size=3) | json_values},
    optional={"outputs": st.lists(tensors, max_size=2) | json_values, "parameters": json_values, "id": json_values},
)


@settings(max_examples=400, deadline=None)
@given(requests, st.binary(max_size=40), st.booleans())
def test_whatever_comes_is_parsed_or_refused(request, rest, exact):
    raw = json.dumps(request).encode("utf-8", "surrogatepass")
    try:
        parsed = parse(raw + rest, str(len(raw)).encode() if exact else None, "m")
    except OctavoError:
        return
    assert isinstance(parsed.request, InferRequest)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.none() | st.binary(max_size=4))
def test_any_bytes_are_parsed_or_refused(raw, length):
    try:
        parsed = parse(raw, length, "m")
    except OctavoError:
        return
    assert all(isinstance(array, np.ndarray) for array in parsed.request.inputs.values())


# The writer


def answered(array, form=None, binary=False):
    forms = {"y": form} if form else {}
    inference = parse(body(), None, "m")._replace(forms=forms, binary=binary)
    return serialise(InferAnswer("m", "1", {"y": array}), inference)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_json_cannot_hold_is_said_and_goes_in_binary(value):
    array = np.array([1, value], dtype=np.float32)
    with pytest.raises(Invalid, match="NaN or infinity"):
        answered(array)
    reply = answered(array, binary=True)
    np.testing.assert_array_equal(np.frombuffer(reply.body[-8:], np.float32), array)


def test_bytes_that_are_not_text_need_binary():
    array = np.array([b"\xff"], dtype=object)
    with pytest.raises(Invalid, match="UTF-8"):
        answered(array)
    assert answered(array, binary=True).body.endswith(b"\x01\0\0\0\xff")


def test_views_are_written_row_by_row():
    array = np.arange(6, dtype=np.float32).reshape(2, 3).T
    assert json.loads(answered(array).body)["outputs"][0]["data"] == [0, 3, 1, 4, 2, 5]


def test_classification_gives_the_best_of_each_row():
    found = best(np.array([[0.1, 0.9, 0.5], [3, 2, 1]], dtype=np.float32), 2)
    assert found.tolist() == [[b"0.900000:1", b"0.500000:2"], [b"3.000000:0", b"2.000000:1"]]
    assert best(np.array([1, 5], dtype=np.int64), 9).tolist() == [b"5.000000:1", b"1.000000:0"]
    assert best(np.empty((0, 4), dtype=np.float32), 2).size == 0


# Triton's client


def given_input(name, array, datatype, **how):
    tensor = triton.InferInput(name, list(array.shape), datatype)
    tensor.set_data_from_numpy(array, **how)
    return tensor


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_with_arrays_and_texts(client, binary_in, binary_out):
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    text = np.array(["hé".encode(), b""], dtype=object)
    inputs = [
        given_input("x", x, "FP32", binary_data=binary_in),
        given_input("t", text, "BYTES", binary_data=binary_in),
    ]
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("t", "x")]
    result = client.infer("echo", inputs, outputs=outputs, request_id="r7", priority=2, timeout=5_000_000)
    np.testing.assert_array_equal(result.as_numpy("x"), x)
    assert [str(item) if isinstance(item, str) else item.decode() for item in result.as_numpy("t")] == ["hé", ""]
    assert result.get_response()["id"] == "r7"


def test_what_the_service_is_asked(client, service):
    x = np.zeros((1,), dtype=np.float16)
    client.infer("echo", [given_input("x", x, "FP16")], model_version="2", priority=3, timeout=5_000_000)
    request = service.asked[-1]
    assert (request.model, request.version, request.priority, request.caller) == ("echo", "2", 3, "ada")
    assert request.deadline == pytest.approx(request.arrived + 5)
    assert request.inputs["x"].dtype == np.float16


def test_infer_without_naming_outputs_and_without_rows(client):
    result = client.infer("echo", [given_input("x", np.zeros((0, 3), dtype=np.int64), "INT64")])
    assert result.as_numpy("x").shape == (0, 3)


def test_async_infer(client):
    text = np.array([[b"a"], [b"bc"]], dtype=object)
    waiting = [client.async_infer("minilm", [given_input("text", text, "BYTES")]) for _ in range(5)]
    for one in waiting:
        assert one.get_result().as_numpy("embedding").shape == (2, DIMENSIONS)


def test_classification(client):
    x = np.array([[1, 3, 2]], dtype=np.float32)
    wanted = [triton.InferRequestedOutput("x", class_count=2)]
    found = client.infer("echo", [given_input("x", x, "FP32")], outputs=wanted).as_numpy("x")
    assert found.tolist() == [[b"3.000000:1", b"2.000000:2"]]


@pytest.mark.parametrize("packing", ["gzip", "deflate"])
def test_packed_both_ways(client, packing):
    x = np.zeros((20_000,), dtype=np.float32)
    result = client.infer(
        "echo",
        [given_input("x", x, "FP32")],
        request_compression_algorithm=packing,
        response_compression_algorithm=packing,
    )
    np.testing.assert_array_equal(result.as_numpy("x"), x)


def test_health_metadata_configuration_statistics(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("minilm")
    assert client.is_model_ready("minilm", "2")
    assert not client.is_model_ready("absent")
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    assert client.get_model_metadata("minilm", "1")["outputs"] == [
        {"name": "embedding", "datatype": "FP32", "shape": [-1, DIMENSIONS]}
    ]
    assert client.get_model_config("minilm")["max_batch_size"] == 8
    for stats in (client.get_inference_statistics("minilm"), client.get_inference_statistics()):
        (found,) = stats["model_stats"]
        assert found["inference_count"] == 3
        assert found["inference_stats"]["success"] == {"count": 1, "ns": 750_000_000}
        assert found["batch_stats"][0]["batch_size"] == 3


def test_repository(client, service):
    assert [model["name"] for model in client.get_model_repository_index()] == ["minilm", "broken"]
    client.load_model("minilm")
    assert "minilm" in service.loaded
    client.unload_model("minilm", unload_dependents=True)
    assert "minilm" not in service.loaded
    with pytest.raises(InferenceServerException, match="not in memory"):
        client.unload_model("minilm")
    with pytest.raises(InferenceServerException, match="as published"):
        client.load_model("minilm", config='{"max_batch_size": 1}')


def test_index_of_those_that_are_ready(http):
    found = http.post("/v2/repository/index", json={"ready": True}).json()
    assert found == [{"name": "minilm", "version": "2", "state": "READY", "reason": ""}]
    assert http.post("/v2/repository/index", json={"ready": 1}).status_code == 400


def test_what_is_not_offered_says_so(client):
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.get_system_shared_memory_status()
    with pytest.raises(InferenceServerException, match="shared memory"):
        client.register_system_shared_memory("r", "/key", 8)
    with pytest.raises(InferenceServerException, match="tracing and logging"):
        client.get_trace_settings()
    with pytest.raises(InferenceServerException, match="tracing and logging"):
        client.update_log_settings({"log_info": True})


@pytest.mark.parametrize(
    ("model", "status", "retry"),
    [("unknown", 404, None), ("huge", 507, None), ("late", 504, None), ("full", 429, "3"), ("away", 503, "5")],
)
def test_errors_have_the_protocols_shape(http, model, status, retry):
    response = http.post(f"/v2/models/{model}/infer", content=body())
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert response.headers.get("retry-after") == retry


@pytest.mark.parametrize("name", ["a%2Fb", "a%20b", "%2e%2e", ".hidden", "a" * 300, "%00", "caf%C3%A9"])
def test_names_that_are_none_never_reach_the_service(http, service, name):
    before = len(service.asked)
    assert http.post(f"/v2/models/{name}/infer", content=body()).status_code in (400, 404, 405)
    assert http.post(f"/v2/models/echo/versions/{name}/infer", content=body()).status_code in (400, 404, 405)
    assert len(service.asked) == before


def test_who_may_do_what(address):
    with httpx.Client(base_url=f"http://{address}") as nobody:
        refused = nobody.post("/v2/models/echo/infer", content=body())
        assert (refused.status_code, list(refused.json())) == (401, ["error"])
        assert nobody.post("/v2/repository/index").status_code == 401
        assert nobody.get("/v2/health/ready").status_code == 200
    with httpx.Client(base_url=f"http://{address}", headers=VIEWER) as viewer:
        assert viewer.post(
            "/v2/models/minilm/infer", content=body(name="text", datatype="BYTES", data=["a", "b"])
        ).is_success
        assert viewer.post("/v2/models/echo/infer", content=body()).status_code == 403
        assert viewer.post("/v2/repository/models/minilm/load").status_code == 403
        assert [model["name"] for model in viewer.post("/v2/repository/index").json()] == ["minilm"]


# Bodies


def packed(http, raw, coding):
    return http.post("/v2/models/echo/infer", content=raw, headers={"content-encoding": coding})


def test_packed_bodies_are_bounded_and_checked(http):
    assert packed(http, gzip.compress(body()), "gzip").status_code == 200
    halves = gzip.compress(body()[:9]) + gzip.compress(body()[9:])
    assert packed(http, halves, "gzip").status_code == 200
    assert packed(http, gzip.compress(bytes(50_000_000)), "gzip").status_code == 413
    assert packed(http, gzip.compress(body())[:-9], "gzip").status_code == 400
    assert packed(http, b"not packed", "gzip").status_code == 400
    assert packed(http, body(), "br").status_code == 400


def test_a_large_body_is_refused_announced_or_not(address):
    with httpx.Client(base_url=f"http://{address}", headers=ADMIN) as own:
        assert own.post("/v2/models/echo/infer", content=bytes(200_001)).status_code == 413
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin-token\r\n"
    chunk = b"8000\r\n" + bytes(0x8000) + b"\r\n"
    answer = exchange(address, head + b"Transfer-Encoding: chunked\r\n\r\n" + chunk * 7)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b'{"error":' in answer
    gigabyte = exchange(address, head + b"Content-Length: 1000000000\r\n\r\n")
    assert gigabyte.startswith(b"HTTP/1.1 413")


def test_a_slow_body_is_refused(address):
    head = b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer admin-token\r\n"
    assert exchange(address, head + b"Content-Length: 100\r\n\r\n{").startswith(b"HTTP/1.1 408")


def exchange(address, sent):
    host, port = address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.sendall(sent)
        received = b""
        while b"\r\n\r\n" not in received or not received.partition(b"\r\n\r\n")[2]:
            more = connection.recv(65536)
            if not more:
                break
            received += more
        return received


def test_a_client_that_leaves_cancels_its_request(address, service):
    service.started.clear()
    service.cancelled.clear()
    host, port = address.split(":")
    raw = body()
    head = f"POST /v2/models/slow/infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(raw)}\r\n"
    connection = socket.create_connection((host, int(port)))
    connection.sendall(head.encode() + b"Authorization: Bearer admin-token\r\n\r\n" + raw)
    assert service.started.wait(10)
    connection.close()
    assert service.cancelled.wait(10)
    assert httpx.get(f"http://{address}/v2/health/live").status_code == 200


# octavo's own endpoints, and the description of all


def test_own_endpoints(http, service):
    assert http.get("/api/serving/residency").json()["charged_bytes"] == 1024
    (model, broken) = http.get("/api/serving/models").json()
    assert (model["name"], model["resident_bytes"], model["requests"]) == ("minilm", 1024, 1)
    assert broken["reason"] == "not an ONNX file"
    assert http.post("/api/serving/models/minilm/pin").json() == {"name": "minilm", "pinned": True}
    assert "minilm" in service.pinned
    assert http.post("/api/serving/models/minilm/unpin").is_success
    assert "minilm" not in service.pinned


def test_versions_by_hand(http, service):
    path = "/api/serving/models/minilm"
    assert http.post(f"{path}/default-version", json={"version": 1}).json() == {"name": "minilm", "version": "1"}
    refused = http.post(f"{path}/roll-back")
    assert (refused.status_code, refused.headers["content-type"]) == (409, "application/problem+json")
    assert http.post(f"{path}/roll-forward").json()["version"] == "2"
    assert http.post(f"{path}/roll-back").json()["version"] == "1"
    assert http.post(f"{path}/default-version", json={"version": "newest"}).json()["version"] == "2"
    assert http.post(f"{path}/default-version", json={"version": "9"}).status_code == 404
    assert http.post(f"{path}/labels", json={"label": "stable", "version": "1"}).is_success
    assert service.labelled == ("minilm", "stable", "1")
    assert http.post(f"{path}/labels", json={"label": "stable"}).is_success
    assert service.labelled == ("minilm", "stable", "")
    assert http.post(f"{path}/labels", json={"label": 3, "version": "1"}).status_code == 400
    assert http.post(f"{path}/default-version", json={}).status_code == 400
    assert http.post(f"{path}/roll-forward").is_success


def test_every_route_is_described():
    paths = openapi_paths()
    infer = paths["/v2/models/{model}/versions/{version}/infer"]["post"]
    assert [parameter["name"] for parameter in infer["parameters"]] == ["model", "version"]
    assert "application/octet-stream" in infer["requestBody"]["content"]
    names = [operation["operationId"] for item in paths.values() for operation in item.values()]
    assert len(names) == len(set(names))
