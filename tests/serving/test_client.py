"""octavo's own client against the HTTP door."""

import threading

import numpy as np
import pytest

import octavo.serving
from octavo.errors import (
    Busy,
    DeadlineExceeded,
    Forbidden,
    Invalid,
    NotFound,
    OctavoError,
    OutOfMemory,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from octavo.serving.client import Client

from .fake_service import DIMENSIONS, FakeServing, fake_app, serve, small_settings


@pytest.fixture(scope="module")
def service():
    return FakeServing()


@pytest.fixture(scope="module")
def url(service):
    with serve(fake_app(service, small_settings())) as address:
        yield f"http://{address}"


@pytest.fixture
def client(url):
    with Client(url, token="admin-token", timeout=10) as made:
        yield made


def test_embed(client):
    vectors = client.embed(["a", "bé", ""], model="minilm")
    assert (vectors.shape, vectors.dtype) == ((3, DIMENSIONS), np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-6)
    with pytest.raises(Invalid, match="list of strings"):
        client.embed("a", model="minilm")


@pytest.mark.parametrize("dtype", ["?", "u1", "i8", "f2", "f4", "f8"])
def test_arrays_come_back_as_they_went(client, dtype):
    array = np.arange(6).reshape(2, 3).astype(dtype).T
    found = client.infer("echo", {"x": array})["x"]
    assert found.dtype == array.dtype
    np.testing.assert_array_equal(found, array)


def test_texts_and_bytes_come_back_as_bytes(client):
    found = client.infer("echo", {"a": np.array(["é", ""]), "b": np.array([b"\xff"], dtype=object)})
    assert found["a"].tolist() == ["é".encode(), b""]
    assert found["b"].tolist() == [b"\xff"]


def test_what_the_service_is_asked(client, service):
    found = client.infer("echo", {"x": np.zeros(1), "y": np.ones(1)}, outputs=["y"], version="stable", priority=2)
    assert list(found) == ["y"]
    request = service.asked[-1]
    assert (request.version, request.priority, request.outputs, request.caller) == ("stable", 2, ("y",), "ada")
    assert request.deadline == pytest.approx(request.arrived + 10)


def test_control(client, service):
    client.load("minilm")
    assert "minilm" in service.loaded
    client.unload("minilm")
    assert "minilm" not in service.loaded
    client.pin("minilm")
    assert service.pinned == {"minilm"}
    client.pin("minilm", False)
    assert service.pinned == set()
    client.use_version("minilm", "1")
    assert service.repository.default == "1"
    assert [model["name"] for model in client.models()] == ["minilm", "broken"]
    assert client.statistics("minilm")[0]["inference_count"] == 3
    assert client.statistics()[0]["name"] == "minilm"
    assert client.residency()["budget_bytes"] == 4096
    assert client.ready()


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        ("unknown", NotFound),
        ("huge", OutOfMemory),
        ("late", DeadlineExceeded),
        ("../x", OctavoError),
        ("away", Unavailable),
    ],
)
def test_errors_are_the_servers(url, model, kind):
    with Client(url, token="admin-token", timeout=1) as client, pytest.raises(kind) as caught:
        client.infer(model, {"x": np.zeros(1)})
    assert caught.value.what


def test_errors_of_other_shapes(url):
    with Client(url) as nobody, pytest.raises(Unauthenticated):
        nobody.models()
    with Client(url, token="viewer-token") as viewer, pytest.raises(Forbidden):
        viewer.pin("minilm")
    with Client(url, token="admin-token") as client:
        with pytest.raises(NotFound, match="there is no version"):
            client.use_version("minilm", "9")
        with pytest.raises(TooLarge):
            client.infer("echo", {"x": np.zeros(100_000)})


def test_a_busy_server_is_asked_again(client, service):
    service.busy_left = 1
    assert client.infer("once-busy", {"x": np.zeros(1)})["x"].shape == (1,)
    assert service.busy_left == 0


def test_a_server_that_stays_busy_is_given_up(url, service):
    before = len(service.asked)
    with Client(url, token="admin-token", timeout=4) as client, pytest.raises(Busy) as caught:
        client.infer("full", {"x": np.zeros(1)})
    assert caught.value.retry_after == 3
    assert 1 <= len(service.asked) - before <= 4


def test_no_server():
    with Client("http://127.0.0.1:1", timeout=2) as client:
        assert not client.ready()
        with pytest.raises(Unavailable, match="cannot be reached"):
            client.models()


def test_threads_share_a_client(client):
    sizes = list(range(1, 9))
    found = {}

    def ask(size):
        found[size] = client.infer("echo", {"x": np.arange(size)})["x"].size

    threads = [threading.Thread(target=ask, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {size: size for size in sizes}


def test_the_package_loads_its_names_when_asked():
    assert octavo.serving.Client is Client
    assert octavo.serving.InferRequest.__name__ == "InferRequest"
    with pytest.raises(AttributeError, match="nothing"):
        octavo.serving.nothing  # noqa: B018
