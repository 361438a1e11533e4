"""Real clients (Triton's, OpenAI's, our own) against `octavo up` with the real embedding model."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from octavo.errors import DeadlineExceeded, Invalid, NotFound, Unauthenticated
from octavo.serving.client import Client

from .live import Up


@pytest.fixture
def http(live_server: Up) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {live_server.token}"}
    with httpx.Client(base_url=live_server.url, headers=headers, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def client(live_server: Up) -> Iterator[Client]:
    with Client(live_server.url, token=live_server.token) as made:
        yield made


@pytest.fixture
def triton_client(live_server: Up) -> Iterator[triton.InferenceServerClient]:
    made = triton.InferenceServerClient(live_server.url.removeprefix("http://"), concurrency=4)
    yield made
    made.close()


@pytest.fixture
def headers(live_server: Up) -> dict[str, str]:
    return {"authorization": f"Bearer {live_server.token}"}


@pytest.fixture(scope="module")
def golden(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data / "serve/minilm_golden.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.asarray((a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1))


def expected(golden: list[dict[str, Any]]) -> np.ndarray:
    return np.array([row["embedding"] for row in golden], dtype=np.float64)


def triton_text(texts: list[str]) -> list[triton.InferInput]:
    given = triton.InferInput("text", [len(texts), 1], "BYTES")
    given.set_data_from_numpy(np.array([[text.encode()] for text in texts], dtype=object))
    return [given]


def test_golden_texts_through_tritons_client(triton_client, headers, golden) -> None:
    texts = [row["text"] for row in golden]
    alone = [triton_client.infer("minilm", triton_text([t]), headers=headers).as_numpy("embedding")[0] for t in texts]
    together = triton_client.infer("minilm", triton_text(texts), headers=headers).as_numpy("embedding")
    np.testing.assert_allclose(together, alone, atol=1e-5)
    assert cosines(together, expected(golden)).min() >= 0.9999


def test_golden_texts_through_openais_client(live_server, golden) -> None:
    client = openai.OpenAI(base_url=f"{live_server.url}/v1", api_key=live_server.token, max_retries=0)
    texts = [row["text"] for row in golden]
    usable = [at for at, text in enumerate(texts) if text]  # the protocol itself refuses empty texts
    made = client.embeddings.create(model="minilm", input=[texts[at] for at in usable])
    found = np.array([row.embedding for row in made.data])
    assert cosines(found, expected(golden)[usable]).min() >= 0.9999
    assert made.usage.prompt_tokens == sum(min(golden[at]["n_tokens"], 256) for at in usable)
    assert {"minilm", "minilm-int8"} <= {model.id for model in client.models.list().data}
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model="nothing", input="a")


def test_golden_texts_in_int8_keep_their_meaning(client, golden) -> None:
    found = cosines(client.embed([row["text"] for row in golden], model="minilm-int8"), expected(golden))
    print(f"int8 against the golden file: mean {found.mean():.4f}, least {found.min():.4f}")
    assert found.min() >= 0.95


def test_golden_texts_through_our_own_client_at_once(client, golden) -> None:
    texts = [row["text"] for row in golden]
    with ThreadPoolExecutor(8) as callers:
        found = np.concatenate(list(callers.map(lambda text: client.embed([text], model="minilm"), texts * 2)))
    assert cosines(found, np.tile(expected(golden), (2, 1))).min() >= 0.9999


def test_errors_reach_the_clients(client, triton_client, headers, live_server) -> None:
    with pytest.raises(Invalid, match="not UTF-8"):
        client.infer("minilm", {"text": np.array([b"\xff"], dtype=object)})
    with pytest.raises(NotFound, match="nothing"):
        client.embed(["a"], model="nothing")
    with pytest.raises(Invalid, match="unknown output"):
        client.infer("minilm", {"text": np.array(["a"])}, outputs=["logits"])
    given = triton.InferInput("x", [1, 5], "FP32")
    given.set_data_from_numpy(np.zeros((1, 5), dtype=np.float32))
    with pytest.raises(InferenceServerException, match="the model takes"):
        triton_client.infer("double", [given], headers=headers)
    with Client(live_server.url, token="wrong") as stranger, pytest.raises(Unauthenticated):
        stranger.embed(["a"], model="minilm")


def test_a_deadline_is_504_and_the_server_goes_on(http) -> None:
    text = {"name": "text", "shape": [64, 1], "datatype": "BYTES", "data": ["word " * 250] * 64}
    late = http.post("/v2/models/minilm/infer", json={"inputs": [text], "parameters": {"timeout": 1000}})
    assert late.status_code == 504
    quick = {"name": "text", "shape": [1, 1], "datatype": "BYTES", "data": ["hello"]}
    assert http.post("/v2/models/minilm/infer", json={"inputs": [quick]}).status_code == 200
    assert http.get("/api/serving/residency").json()["pending"] == 0


def test_our_own_clients_patience_is_the_requests_deadline(live_server) -> None:
    with Client(live_server.url, token=live_server.token, timeout=0.02) as hasty, pytest.raises(DeadlineExceeded):
        hasty.embed(["word " * 250] * 64, model="minilm")


def test_metadata_and_configuration(triton_client, headers) -> None:
    told = triton_client.get_model_metadata("minilm", headers=headers)
    assert told["inputs"][0] == {"name": "text", "datatype": "BYTES", "shape": [-1, 1]}
    assert told["outputs"] == [{"name": "embedding", "datatype": "FP32", "shape": [-1, 384]}]
    assert triton_client.get_model_config("minilm", headers=headers)["max_batch_size"] == 64
    assert triton_client.is_model_ready("minilm", headers=headers)
    assert not triton_client.is_model_ready("nothing", headers=headers)
    names = {(row["name"], row["state"]) for row in triton_client.get_model_repository_index(headers=headers)}
    assert {("minilm", "READY"), ("chain", "READY"), ("double", "READY")} <= names


def test_load_pin_unload(client, triton_client, headers) -> None:
    triton_client.load_model("sum", headers=headers)
    client.pin("sum")
    held = {model["name"]: model for model in client.residency()["models"]}
    assert held["sum"]["pinned"]
    client.pin("sum", False)
    triton_client.unload_model("sum", headers=headers)
    assert "sum" not in {model["name"] for model in client.residency()["models"]}
    with pytest.raises(NotFound):
        client.load("nothing")


def test_versions(client, http) -> None:
    x = np.ones((1, 4), dtype=np.float32)

    def settled(wanted: float) -> None:
        while client.infer("versions", {"x": x})["y"][0, 0] != wanted:
            pass

    settled(2)
    assert http.post("/api/serving/models/versions/roll-back").json()["version"] == "1"
    settled(1)
    assert http.post("/api/serving/models/versions/roll-forward").json()["version"] == "2"
    settled(2)
    client.use_version("versions", "1")
    settled(1)
    client.use_version("versions", "2")
    settled(2)
    with pytest.raises(NotFound):
        client.use_version("versions", "9")


def test_an_ensemble(client) -> None:
    found = client.infer("chain", {"a": np.ones((2, 4), dtype=np.float32)})
    assert found["z"].tolist() == [[6] * 4] * 2


def test_tritons_statistics_add_up(triton_client, headers) -> None:
    def read() -> dict[str, Any]:
        (row,) = triton_client.get_inference_statistics("triple", headers=headers)["model_stats"]
        return row

    def ask(size: int) -> None:
        given = triton.InferInput("x", [size, 4], "FP32")
        given.set_data_from_numpy(np.ones((size, 4), dtype=np.float32))
        triton_client.infer("triple", [given], headers=headers)

    ask(1)
    before = read()
    for size in (1, 2, 3):
        ask(size)
    with pytest.raises(InferenceServerException):
        ask(9)
    after = read()

    def grown(*path: str) -> int:
        low, high = before, after
        for key in path:
            low, high = low[key], high[key]
        return int(high) - int(low)

    assert grown("inference_count") == 6
    assert grown("execution_count") == 3
    assert grown("inference_stats", "success", "count") == 3
    assert grown("inference_stats", "fail", "count") == 1
    assert grown("inference_stats", "queue", "count") == 6
    spent = grown("inference_stats", "success", "ns")
    assert spent >= grown("inference_stats", "compute_infer", "ns") > 0
    assert sum(row["compute_infer"]["count"] for row in after["batch_stats"]) == after["execution_count"]
    assert (
        sum(row["batch_size"] * row["compute_infer"]["count"] for row in after["batch_stats"])
        == after["inference_count"]
    )
    assert after["last_inference"] >= before["last_inference"] > 1.6e12
