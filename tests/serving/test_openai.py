"""OpenAI's endpoints: the parser, and OpenAI's own client against the HTTP door."""

import base64
import json

import httpx
import numpy as np
import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.errors import Invalid, OctavoError
from octavo.serving.inference import InferAnswer
from octavo.serving.protocols.openai import MAX_TOKENS, parse, serialise

from .fake_service import DIMENSIONS, FakeServing, fake_app, serve, small_settings

MOST = 16


@pytest.fixture(scope="module")
def service():
    return FakeServing()


@pytest.fixture(scope="module")
def address(service):
    settings = small_settings()
    settings.serving = settings.serving.model_copy(update={"max_inputs": MOST})
    with serve(fake_app(service, settings)) as found:
        yield found


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key="admin-token", max_retries=0) as made:
        yield made


def body(**fields):
    return json.dumps({"model": "minilm", "input": "hello"} | fields).encode()


def test_one_text_and_several(client):
    answer = client.embeddings.create(model="minilm", input="hello")
    assert answer.model == "minilm"
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (7, 7)
    answer = client.embeddings.create(model="minilm", input=["a", "bcd", ""])
    assert [one.index for one in answer.data] == [0, 1, 2]
    assert all(len(one.embedding) == DIMENSIONS for one in answer.data)
    assert answer.data[0].embedding != answer.data[1].embedding


def test_base64_and_floats_agree(client):
    floats = client.embeddings.create(model="minilm", input="hello", encoding_format="float")
    packed = client.embeddings.create(model="minilm", input="hello", encoding_format="base64")
    raw = np.frombuffer(base64.b64decode(packed.data[0].embedding), dtype="<f4")
    np.testing.assert_array_equal(raw, np.array(floats.data[0].embedding, dtype=np.float32))


def test_tokens_of_uneven_length_go_as_one_request(client, service):
    client.embeddings.create(model="minilm", input=[[101, 7, 102], [101, 102]])
    inputs = service.asked[-1].inputs
    assert inputs["input_ids"].tolist() == [[101, 7, 102], [101, 102, 0]]
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 0]]
    client.embeddings.create(model="minilm", input=[101, 102])
    assert service.asked[-1].inputs["input_ids"].tolist() == [[101, 102]]


def test_dimensions_cut_and_scale(client):
    whole = np.array(client.embeddings.create(model="minilm", input="hello").data[0].embedding)
    cut = np.array(client.embeddings.create(model="minilm", input="hello", dimensions=3).data[0].embedding)
    np.testing.assert_allclose(cut, whole[:3] / np.linalg.norm(whole[:3]), rtol=1e-5)
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        client.embeddings.create(model="minilm", input="hello", dimensions=DIMENSIONS + 1)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["broken", "minilm"]
    assert client.models.retrieve("minilm").owned_by == "octavo"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("absent")


@pytest.mark.parametrize(
    ("model", "kind", "status"),
    [
        ("unknown", openai.NotFoundError, 404),
        ("full", openai.RateLimitError, 429),
        ("away", openai.InternalServerError, 503),
        ("late", openai.InternalServerError, 504),
        ("echo", openai.BadRequestError, 400),
    ],
)
def test_errors_reach_the_client_as_its_own(client, model, kind, status):
    with pytest.raises(kind) as caught:
        client.embeddings.create(model=model, input="hello")
    assert caught.value.status_code == status
    assert set(caught.value.body) == {"message", "type", "param", "code"}


def test_errors_name_the_field_and_the_code(address):
    with httpx.Client(base_url=f"http://{address}/v1", headers={"authorization": "Bearer admin-token"}) as http:
        wrong = http.post("/embeddings", content=body(input=[])).json()["error"]
        assert (wrong["param"], wrong["type"], wrong["code"]) == ("input", "invalid_request_error", None)
        missing = http.post("/embeddings", content=body(model="unknown"))
        assert missing.json()["error"]["code"] == "model_not_found"
        many = http.post("/embeddings", content=body(input=["a"] * (MOST + 1)))
        assert (many.status_code, many.json()["error"]["param"]) == (400, "input")
        assert http.post("/embeddings", content=body(model="full")).headers["retry-after"] == "3"
        assert http.post("/embeddings", content=bytes(200_001)).status_code == 413


def test_who_may_ask(address):
    nobody = openai.OpenAI(base_url=f"http://{address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        nobody.embeddings.create(model="minilm", input="hello")
    with pytest.raises(openai.AuthenticationError):
        nobody.models.list()
    viewer = openai.OpenAI(base_url=f"http://{address}/v1", api_key="viewer-token", max_retries=0)
    assert viewer.embeddings.create(model="minilm", input="hello").data
    assert [model.id for model in viewer.models.list()] == ["minilm"]
    with pytest.raises(openai.PermissionDeniedError):
        viewer.embeddings.create(model="echo", input="hello")


async def test_the_asynchronous_client(address):
    async with openai.AsyncOpenAI(base_url=f"http://{address}/v1", api_key="admin-token") as own:
        answer = await own.embeddings.create(model="minilm", input=["a", "b"])
    assert len(answer.data) == 2


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        body(model=None),
        body(model=7),
        body(model="../etc/passwd"),
        body(input=None),
        body(input=[]),
        body(input=7),
        body(input={"a": 1}),
        body(input=["a", 1]),
        body(input=[1, "a"]),
        body(input=[[1], "a"]),
        body(input=[[]]),
        body(input=[True]),
        body(input=[-1]),
        body(input=[2**40]),
        body(input=[1.5]),
        body(input=[0] * (MAX_TOKENS + 1)),
        body(input=["a"] * (MOST + 1)),
        body(encoding_format="hex"),
        body(encoding_format=[]),
        body(dimensions=0),
        body(dimensions=True),
        body(dimensions="3"),
    ],
)
def test_bad_requests_are_invalid(raw):
    with pytest.raises(Invalid):
        parse(raw, MOST)


def test_an_answer_json_cannot_hold_is_said():
    vectors = np.full((1, 4), np.nan, dtype=np.float32)
    with pytest.raises(Invalid, match="NaN"):
        serialise(InferAnswer("m", "1", {"embedding": vectors}), parse(body(), MOST))


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=4),
)


@settings(max_examples=300, deadline=None)
@given(
    st.fixed_dictionaries(
        {"input": values}, optional={"encoding_format": values, "dimensions": values, "model": values}
    )
)
def test_whatever_comes_is_parsed_or_refused(fields):
    raw = json.dumps({"model": "m"} | fields).encode("utf-8", "surrogatepass")
    try:
        inputs = parse(raw, MOST).request.inputs
    except OctavoError:
        return
    assert set(inputs) in ({"text"}, {"input_ids", "attention_mask"})
