"""boto3's `sagemaker-runtime` client, unmodified, and the contract of a multi-model container, against `octavo up`."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.config import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import example, given
from hypothesis import strategies as st

from octavo.aws_errors import aws_code
from octavo.errors import Busy, DeadlineExceeded, Forbidden, Invalid, NotFound, OutOfMemory, TooLarge, Unavailable
from octavo.serving.inference import InferAnswer
from octavo.serving.protocols import sagemaker_body as forms
from octavo.serving.protocols.sagemaker_container import source_folder
from octavo.serving.protocols.sagemaker_runtime import _refusal
from octavo.serving.protocols.sagemaker_target import target_names
from octavo.serving.tensors import TensorSpec
from octavo.settings import load_settings

from .live import Up, octavo, octavo_up
from .served_models import BATCHED, publish_tiny_models, put, times

Runtime = Callable[..., Any]
X = TensorSpec("x", "FP32", (-1, 4))
ROW = json.dumps({"instances": [[1, 2, 3, 4]]})


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """Tiny models, `front.cust-1.enc_v1` and `cust-2.enc`, and an endpoint `both` of two variants."""
    folder = tmp_path_factory.mktemp("sagemaker")
    workspace = folder / "workspace"
    publish_tiny_models(workspace / "models")
    put(workspace / "models", "front.cust-1.enc_v1", times(5), BATCHED)
    put(workspace / "models", "cust-2.enc", times(7), BATCHED)
    put(workspace / "models", "broken", b"this is no model", BATCHED)
    put(folder / "sources", "new", times(9), BATCHED)
    for moved in (folder / "sources/new/1").iterdir():
        moved.rename(folder / "sources/new" / moved.name)
    (folder / "sources/new/1").rmdir()
    put(folder / "elsewhere", "other", times(9), BATCHED)
    with octavo_up(workspace, OCTAVO_SERVING__MODEL_SOURCES=str(folder / "sources")) as up:
        variants = [{"name": "a", "model": "double"}, {"name": "b", "model": "triple", "weight": 0}]
        with client_of(up) as client:
            answer = client.put("/api/serving/endpoints/both", json={"variants": variants})
            assert answer.status_code < 300, answer.text
        yield up


def client_of(up: Up) -> httpx.Client:
    return httpx.Client(base_url=up.url, headers={"authorization": f"Bearer {up.token}"}, timeout=60, trust_env=False)


@pytest.fixture(scope="module")
def credentials(server: Up) -> dict[str, str]:
    workspace = ("--workspace", str(server.workspace), "--json")
    octavo("users", "add", "ann", "--role", "viewer", *workspace)
    made = json.loads(octavo("users", "key-add", "ann", *workspace).stdout)
    again = json.loads(octavo("users", "aws-credentials", made["prefix"], *workspace).stdout)
    assert again == made["aws"]
    assert again["access_key_id"] == made["prefix"]
    return again


@pytest.fixture(scope="module")
def runtime(server: Up, credentials: dict[str, str]) -> Runtime:
    """Make a boto3 client of the server; without arguments it has good credentials."""

    def make(access_key: str = "", secret: str = "") -> Any:
        return boto3.client(
            "sagemaker-runtime",
            endpoint_url=server.url,
            region_name="eu-west-3",
            aws_access_key_id=access_key or credentials["access_key_id"],
            aws_secret_access_key=secret or credentials["secret_access_key"],
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )

    return make


@pytest.fixture
def http(server: Up) -> Iterator[httpx.Client]:
    with client_of(server) as client:
        yield client


def predictions(answer: Any) -> Any:
    return json.loads(answer["Body"].read())["predictions"]


def ask(client: Any, endpoint: str = "double", body: Any = ROW, kind: str = "application/json", **more: Any) -> Any:
    return client.invoke_endpoint(EndpointName=endpoint, Body=body, ContentType=kind, **more)


def test_a_model_is_an_endpoint_with_one_variant(runtime: Runtime) -> None:
    answer = ask(runtime(), CustomAttributes="trace=1", InferenceId="i-1", TargetVariant="AllTraffic")
    assert answer["InvokedProductionVariant"] == "AllTraffic"
    assert answer["ContentType"] == "application/json"
    assert answer["CustomAttributes"] == "trace=1"
    assert predictions(answer) == [[2, 4, 6, 8]]


def test_variants_and_sessions(runtime: Runtime) -> None:
    client = runtime()
    assert ask(client, "both")["InvokedProductionVariant"] == "a"
    named = ask(client, "both", TargetVariant="b")
    assert (named["InvokedProductionVariant"], predictions(named)) == ("b", [[3, 6, 9, 12]])
    begun = ask(client, "both", SessionId="NEW_SESSION")["NewSessionId"]
    assert begun
    assert ask(client, "both", SessionId=begun.partition(";")[0])["InvokedProductionVariant"] == "a"
    for endpoint in ("both", "double"):
        with pytest.raises(client.exceptions.ValidationError, match="no variant"):
            ask(client, endpoint, TargetVariant="zz")


def test_target_models(runtime: Runtime) -> None:
    client = runtime()
    assert predictions(ask(client, "front", TargetModel="cust-1/enc_v1.tar.gz")) == [[5, 10, 15, 20]]
    assert predictions(ask(client, "front", TargetModel="/cust-2/enc.tar.gz")) == [[7, 14, 21, 28]]
    for wrong in ("nothing.tar.gz", "../double", "a//b", "a b"):
        with pytest.raises(client.exceptions.ValidationError, match="TargetModel"):
            ask(client, "front", TargetModel=wrong)
    with pytest.raises(client.exceptions.ValidationError, match="no endpoint"):
        ask(client, "front")


def test_an_answer_in_a_stream(runtime: Runtime) -> None:
    client = runtime()
    many = json.dumps({"instances": [[1.5, 2.5, 3.5, 4.5]] * 8})
    answer = client.invoke_endpoint_with_response_stream(
        EndpointName="both", Body=many, ContentType="application/json", TargetVariant="b", CustomAttributes="x"
    )
    assert (answer["ContentType"], answer["InvokedProductionVariant"]) == ("application/json", "b")
    assert answer["CustomAttributes"] == "x"
    body = b"".join(event["PayloadPart"]["Bytes"] for event in answer["Body"])
    assert json.loads(body)["predictions"] == [[4.5, 7.5, 10.5, 13.5]] * 8
    with pytest.raises(client.exceptions.ModelError):
        client.invoke_endpoint_with_response_stream(EndpointName="both", Body=b"{", ContentType="application/json")


def test_typed_errors(runtime: Runtime) -> None:
    client = runtime()
    with pytest.raises(client.exceptions.ModelError, match="400") as caught:
        ask(client, body=json.dumps({"instances": [[1, 2]]}))
    told = caught.value.response
    assert told["OriginalStatusCode"] == 400
    assert "shape" in json.loads(told["OriginalMessage"])["message"]
    with pytest.raises(client.exceptions.ModelError) as unsupported:
        ask(client, kind="image/png")
    assert unsupported.value.response["OriginalStatusCode"] == 415
    with pytest.raises((client.exceptions.ModelError, client.exceptions.ServiceUnavailable)):
        ask(client, "broken")
    with pytest.raises(client.exceptions.ValidationError, match="Custom-Attributes"):
        ask(client, CustomAttributes="x" * 1025)


def test_texts(runtime: Runtime) -> None:
    client = runtime()
    assert json.loads(ask(client, "words", "grüß", "text/plain; charset=utf-8")["Body"].read()) == [["grüß"]]
    for inputs in ("a", ["a"]):
        given = json.dumps({"inputs": inputs})
        assert json.loads(ask(client, "words", given)["Body"].read()) == [["a"]]
    with pytest.raises(client.exceptions.ModelError, match="does not take just a text"):
        ask(client, "double", "a", "text/plain")


def test_csv_and_npy(runtime: Runtime) -> None:
    client = runtime()
    answer = ask(client, body="1,2,3,4\n5,6,7,8\n", kind="text/csv")
    assert answer["ContentType"].startswith("text/csv")
    assert answer["Body"].read() == b"2.0,4.0,6.0,8.0\n10.0,12.0,14.0,16.0\n"
    saved = io.BytesIO()
    np.save(saved, np.ones((2, 4)))
    answer = ask(client, body=saved.getvalue(), kind="application/x-npy")
    assert np.load(io.BytesIO(answer["Body"].read())).tolist() == [[2] * 4] * 2
    other = ask(client, body=saved.getvalue(), kind="application/x-npy", Accept="text/csv")
    assert other["Body"].read() == b"2.0,2.0,2.0,2.0\n" * 2


def test_tritons_tensors(runtime: Runtime) -> None:
    client = runtime()
    x = np.arange(4, dtype=np.float32).reshape(1, 4)
    tensor = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [0, 1, 2, 3]}
    answer = json.loads(ask(client, body=json.dumps({"inputs": [tensor]}))["Body"].read())
    assert answer["outputs"][0]["data"] == [0, 2, 4, 6]
    del tensor["data"]
    tensor["parameters"] = {"binary_data_size": 16}
    header = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    kind = f"application/vnd.sagemaker-triton.binary+json;json-header-size={len(header)}"
    binary = ask(client, body=header + x.tobytes(), kind=kind)
    name, _, size = binary["ContentType"].partition(";json-header-size=")
    assert name == "application/vnd.sagemaker-triton.binary+json"
    assert np.frombuffer(binary["Body"].read()[int(size) :], "<f4").tolist() == [0, 2, 4, 6]


def test_two_inputs_by_name(runtime: Runtime) -> None:
    client = runtime()
    rows = json.dumps({"instances": [{"a": [1, 1, 1, 1], "b": [2, 2, 2, 2]}]})
    assert predictions(ask(client, "sum", rows)) == [{"c": [3] * 4, "d": [-1] * 4}]
    with pytest.raises(client.exceptions.ModelError, match="several inputs"):
        ask(client, "sum", ROW)


def refused(client: Any, **more: Any) -> tuple[int, str, str]:
    with pytest.raises(ClientError) as caught:
        ask(client, **more)
    told = caught.value.response
    return told["ResponseMetadata"]["HTTPStatusCode"], told["Error"]["Code"], told["Error"]["Message"]


def test_who_is_not_known_or_signs_wrongly(runtime: Runtime, server: Up) -> None:
    assert refused(runtime(secret="wrong"))[:2] == (403, "SignatureDoesNotMatch")
    assert refused(runtime("0123456789", "x"))[:2] == (403, "UnrecognizedClientException")
    workspace = ("--workspace", str(server.workspace), "--json")
    octavo("users", "add", "bob", *workspace)
    aws = json.loads(octavo("users", "key-add", "bob", *workspace).stdout)["aws"]
    bob = runtime(aws["access_key_id"], aws["secret_access_key"])
    assert refused(bob)[:2] == (403, "AccessDeniedException")
    octavo("users", "key-revoke", aws["access_key_id"], *workspace)
    assert octavo("users", "aws-credentials", aws["access_key_id"], *workspace).returncode == 2


def send(server: Up, credentials: dict[str, str], change: Callable[[dict[str, str], bytes], bytes]) -> httpx.Response:
    """A request whose signed headers and body are changed on the way."""
    request = AWSRequest("POST", f"{server.url}/endpoints/double/invocations", data=ROW)
    request.headers["Content-Type"] = "application/json"
    keys = Credentials(credentials["access_key_id"], credentials["secret_access_key"])
    SigV4Auth(keys, "sagemaker", "us-east-1").add_auth(request)
    headers = dict(request.headers.items())
    body = change(headers, ROW.encode())
    return httpx.post(request.url, headers=headers, content=body, trust_env=False)


def test_a_request_that_is_changed_on_its_way(server: Up, credentials: dict[str, str]) -> None:
    assert send(server, credentials, lambda _, body: body).json() == {"predictions": [[2, 4, 6, 8]]}
    tampered = send(server, credentials, lambda _, body: body.replace(b"1", b"9"))
    assert (tampered.status_code, tampered.headers["x-amzn-errortype"]) == (403, "SignatureDoesNotMatch")
    added = send(
        server, credentials, lambda headers, body: headers.update({"X-Amzn-SageMaker-Target-Model": "x"}) or body
    )
    assert "not signed" in added.json()["Message"]


def test_clocks_apart(server: Up, credentials: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    late = datetime.now(UTC) - timedelta(minutes=7)
    monkeypatch.setattr("botocore.auth.get_current_datetime", lambda remove_tzinfo=True: late.replace(tzinfo=None))
    answer = send(server, credentials, lambda _, body: body)
    assert (answer.status_code, answer.headers["x-amzn-errortype"]) == (403, "RequestTimeTooSkewed")
    assert late.strftime("%Y%m%dT%H%M%SZ") in answer.json()["Message"]


def test_a_bearer_token_does_as_well_and_none_does_not(http: httpx.Client, server: Up) -> None:
    path = "/endpoints/double/invocations"
    assert http.post(path, content=ROW).json() == {"predictions": [[2, 4, 6, 8]]}
    nobody = httpx.post(server.url + path, content=ROW, trust_env=False)
    assert (nobody.status_code, nobody.headers["x-amzn-errortype"]) == (403, "MissingAuthenticationTokenException")


def test_a_signed_request_of_another_protocol(server: Up, credentials: dict[str, str]) -> None:
    request = AWSRequest("GET", f"{server.url}/v2/models/double")
    keys = Credentials(credentials["access_key_id"], credentials["secret_access_key"])
    SigV4Auth(keys, "sagemaker", "us-east-1").add_auth(request)
    answer = httpx.get(request.url, headers=dict(request.headers.items()), trust_env=False)
    assert answer.json()["name"] == "double"


def test_a_container_from_load_to_unload(http: httpx.Client, server: Up) -> None:
    assert httpx.get(f"{server.url}/ping", trust_env=False).status_code == 200
    assert httpx.get(f"{server.url}/models", trust_env=False).status_code == 401
    http.delete("/models/triple")
    loaded = http.post("/models", json={"model_name": "triple", "url": "/opt/ml/models/triple"})
    assert loaded.status_code == 200
    assert loaded.json()["modelName"] == "triple"
    assert http.post("/models", json={"model_name": "triple", "url": "/x"}).status_code == 409
    assert http.get("/models/triple").json()["modelName"] == "triple"
    assert http.post("/models/triple/invoke", content=ROW).json() == {"predictions": [[3, 6, 9, 12]]}
    named = http.post("/invocations", content=ROW, headers={"X-Amzn-SageMaker-Target-Model": "cust-2/enc.tar.gz"})
    assert named.json() == {"predictions": [[7, 14, 21, 28]]}
    assert http.delete("/models/triple").status_code == 200
    assert http.delete("/models/triple").status_code == 404
    assert http.get("/models/triple").status_code == 404
    assert http.get("/models/nothing").json()["code"] == 404


def test_the_list_comes_in_pages(http: httpx.Client) -> None:
    for name in ("double", "triple", "sum"):
        http.post("/models", json={"model_name": name, "url": ""})
    found: list[str] = []
    token = ""
    while True:
        page = http.get("/models", params={"limit": 1, "next_page_token": token}).json()
        found += [model["modelName"] for model in page["models"]]
        token = page.get("nextPageToken", "")
        if not token:
            break
    assert {"double", "triple", "sum"} <= set(found)
    assert found == sorted(set(found))
    assert http.get("/models", params={"limit": "0"}).status_code == 400


def test_the_console_keeps_its_page(http: httpx.Client) -> None:
    page = http.get("/models", headers={"accept": "text/html"})
    assert page.headers["content-type"].startswith("text/html")


def test_a_load_publishes_only_what_is_allowed(http: httpx.Client, server: Up) -> None:
    sources = server.workspace.parent / "sources"

    def load(name: str, url: object) -> httpx.Response:
        return http.post("/models", json={"model_name": name, "url": url})

    assert load("nothing", "s3://bucket/m.tar.gz").status_code == 400
    assert "octavo models publish" in load("nothing", "/x/m.tar.gz").json()["message"]
    assert load("nothing", str(sources / "missing")).status_code == 404
    assert load("nothing", str(server.workspace.parent / "elsewhere/other")).status_code == 403
    assert load("nothing", str(sources / "../elsewhere/other")).status_code == 403
    assert load("nothing", 1).status_code == 400
    assert load("fresh", f"file://{sources / 'new'}").status_code == 200
    assert http.post("/models/fresh/invoke", content=ROW).json() == {"predictions": [[9, 18, 27, 36]]}


def test_requests_that_name_no_model(http: httpx.Client) -> None:
    answer = http.post("/invocations", content=ROW)
    assert answer.status_code == 400
    assert "default_model" in answer.json()["message"]
    assert http.post("/invocations", content=ROW, headers={"content-type": "image/png"}).status_code == 400
    unsupported = http.post("/models/double/invoke", content=ROW, headers={"content-type": "image/png"})
    assert unsupported.status_code == 415


def test_no_room_is_507_and_the_default_model_answers(tmp_path: Path) -> None:
    put(tmp_path / "models", "one", times(4), BATCHED)
    put(tmp_path / "models", "two", times(2), BATCHED)
    with octavo_up(tmp_path, OCTAVO_SERVING__DEFAULT_MODEL="one") as up, client_of(up) as client:
        assert client.post("/invocations", content=ROW).json() == {"predictions": [[4, 8, 12, 16]]}
    with octavo_up(tmp_path, OCTAVO_SERVING__MEMORY_BUDGET="100") as up, client_of(up) as client:
        assert client.post("/models", json={"model_name": "one", "url": ""}).status_code == 507
        answer = client.post("/endpoints/one/invocations", content=ROW)
        assert (answer.status_code, answer.json()["OriginalStatusCode"]) == (424, 507)


def test_links_do_not_lead_out_of_the_sources(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    settings = load_settings(tmp_path, serving={"model_sources": str(tmp_path / "in")})
    with pytest.raises(Forbidden):
        source_folder(str(tmp_path / "in/link"), settings)
    with pytest.raises(NotFound, match="publish nothing"):
        source_folder(str(tmp_path / "in"), load_settings(tmp_path))


@pytest.mark.parametrize(
    ("endpoint", "target", "names"),
    [
        ("front", "cust-1/enc_v1.tar.gz", ("front.cust-1.enc_v1", "cust-1.enc_v1")),
        ("", "a.tgz", ("a",)),
        ("e", "/a/b/c", ("e.a.b.c", "a.b.c")),
        ("e" * 128, "a", ("a",)),
    ],
)
def test_the_rule_of_targets(endpoint: str, target: str, names: tuple[str, ...]) -> None:
    assert target_names(endpoint, target) == names


@given(st.text(max_size=40))
@example("0..")
def test_a_target_is_a_name_or_refused(target: str) -> None:
    try:
        names = target_names("front", target)
    except Invalid:
        return
    assert all("/" not in name and not name.startswith(".") for name in names)


class _Loading:
    class service:
        @staticmethod
        def in_memory(name: str) -> bool:
            return name == "loaded"


@pytest.mark.parametrize(
    ("error", "served", "code", "status"),
    [
        (DeadlineExceeded("late"), "cold", "ModelNotReadyException", 429),
        (DeadlineExceeded("late"), "loaded", "ModelError", 424),
        (Busy("full"), "loaded", "ThrottlingException", 429),
        (Unavailable("leaving"), "loaded", "ServiceUnavailable", 503),
        (OutOfMemory("full"), "cold", "ModelError", 424),
        (TooLarge("large"), "cold", "ValidationError", 413),
        (NotFound("gone"), "cold", "ValidationError", 400),
        (Forbidden("no"), "cold", "AccessDeniedException", 403),
    ],
)
def test_what_the_platform_says(error: Any, served: str, code: str, status: int) -> None:
    assert aws_code(_refusal(_Loading, served, error)) == (code, status)  # type: ignore[arg-type]


def body_of(body: bytes, kind: str) -> Any:
    given = forms.decode(body, kind.encode(), None, "m", "", 10)
    assert isinstance(given, forms.Rows)
    return forms.tensors(given, [X], "m")["x"]


HEADER = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%s,), }"


def npy(header: bytes, data: bytes = b"") -> bytes:
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (b"", "text/csv"),
        (b"a,b,c,d\n1,2,3,4", "text/csv"),
        (b"1,2\n3", "text/csv"),
        (b"\xff\xfe", "text/csv"),
        (b"", "application/x-npy"),
        (b"\x93NUMPY\x01\x00\xff\xff", "application/x-npy"),
        (npy(HEADER % b"10**12"), "application/x-npy"),
        (npy(HEADER % b"1000000000000"), "application/x-npy"),
        (npy(HEADER % b"-1"), "application/x-npy"),
        (npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }", b"x" * 8), "application/x-npy"),
        (npy(b"__import__('os').abort()"), "application/x-npy"),
        (npy(b"(" * 9000), "application/x-npy"),
        (b'{"instances": []}', "application/json"),
        (b'{"instances": [[1], [1, 2]]}', "application/json"),
        (b'{"instances": [{"x": [1]}, {"y": [1]}]}', "application/json"),
        (b'{"instances": [{"q": [1]}]}', "application/json"),
        (b'{"inputs": ["a", 1]}', "application/json"),
        (b'{"inputs": ' + json.dumps(["a"] * 11).encode() + b"}", "application/json"),
        (b'{"inputs": "a", "parameters": 1}', "application/json"),
    ],
)
def test_bodies_that_are_wrong(body: bytes, kind: str) -> None:
    with pytest.raises(Invalid):
        body_of(body, kind)


@given(st.binary(max_size=80), st.sampled_from(forms.TAKEN))
def test_any_body_is_read_or_refused(body: bytes, kind: str) -> None:
    for start in (b"", b"\x93NUMPY\x01\x00\x10\x00"):
        try:
            body_of(start + body, kind)
        except Invalid:
            continue


def test_numpys_layouts() -> None:
    for array in (np.arange(8.0).reshape(2, 4), np.asfortranarray(np.arange(8, dtype=">i2").reshape(2, 4))):
        saved = io.BytesIO()
        np.save(saved, array)
        found = body_of(saved.getvalue(), "application/x-npy")
        assert found.dtype == np.float32
        assert found.tolist() == array.tolist()


@pytest.mark.parametrize(
    ("accept", "usual", "given"),
    [
        (None, "text/csv", "text/csv"),
        (b"*/*", "application/json", "application/json"),
        (b"text/*;q=0.5", "text/csv", "text/csv"),
        (b"image/png, application/x-npy", "application/json", "application/x-npy"),
    ],
)
def test_what_is_accepted(accept: bytes | None, usual: str, given: str) -> None:
    assert forms.accepted(accept, usual) == given


def test_what_cannot_be_given() -> None:
    with pytest.raises(forms.UnsupportedMedia):
        forms.accepted(b"image/png", "application/json")
    rows = forms.Rows(csv=b"")
    with pytest.raises(Invalid, match="NaN"):
        forms.write(InferAnswer("m", "1", {"y": np.array([np.nan])}), rows, b"application/json")
    with pytest.raises(Invalid, match="several outputs"):
        forms.write(InferAnswer("m", "1", {"y": np.ones(1), "z": np.ones(1)}), rows, None)
