"""Two encoders behind one name, chosen by `input_type`; and one encoder with a word before queries and documents."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import httpx
import numpy as np
import openai
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from botocore.config import Config

from octavo.errors import Invalid, ModelFailed, NotFound
from octavo.serving.client import Client
from octavo.serving.inference import InferRequest
from octavo.serving.minilm import Prefixes, add_embedding_model
from octavo.serving.pair import publish_pair
from octavo.serving.repository import Repository
from octavo.settings import load_settings

from .conftest import CONFIG, Open, write_checkpoint
from .live import Up, octavo, octavo_up
from .served_models import put, times

TEXTS = ["a b c", "d e", "f"]


def add(workspace: Path, name: str, source: Path, seed: float = 1.0, **prefixes: str) -> str:
    """Publish a small encoder; another `seed`, other weights."""
    from safetensors.numpy import load_file, save_file

    file = source / "model.safetensors"
    save_file({key: value * np.float32(seed) for key, value in load_file(file).items()}, file)
    repository = Repository.open(str(workspace / "models"), load_settings(workspace))
    return add_embedding_model(repository, name, source, prefixes=Prefixes(**prefixes))


@pytest.fixture
def encoders(tmp_path: Path) -> Path:
    """A workspace with `asks` and `says` (32 numbers each, different ones) and `narrow` (16)."""
    workspace = tmp_path / "workspace"
    add(workspace, "asks", write_checkpoint(tmp_path / "asks"))
    add(workspace, "says", write_checkpoint(tmp_path / "says"), seed=0.7)
    return workspace


def text_request(model: str, texts: list[str] = TEXTS, **parameters: Any) -> InferRequest:
    given = np.array([[text.encode()] for text in texts], dtype=object)
    return InferRequest(model, {"text": given}, parameters=parameters)


async def vectors(serving: Any, request: InferRequest) -> np.ndarray:
    return np.asarray((await serving.infer(request)).outputs["embedding"])


def batches(serving: Any, name: str) -> int:
    return sum(batch.count for counts in serving.statistics(name) for batch in counts.batches.values())


async def test_a_request_chooses_its_encoder(encoders: Path, open_serving: Open) -> None:
    serving = await open_serving(encoders)
    pair = await publish_pair(serving, "search", "asks", "says")
    assert (pair.version, pair.dimensions, pair.new) == ("1", 32, True)
    asks, says = [await vectors(serving, text_request(name)) for name in ("asks", "says")]
    assert not np.allclose(asks, says)
    for word in ("query", "search_query"):
        np.testing.assert_allclose(await vectors(serving, text_request("search", input_type=word)), asks, atol=1e-6)
    for word in ("document", "search_document", "passage", ""):
        np.testing.assert_allclose(await vectors(serving, text_request("search", input_type=word)), says, atol=1e-6)
    np.testing.assert_allclose(await vectors(serving, text_request("search")), says, atol=1e-6)
    answer = await serving.infer(text_request("search"))
    assert (answer.model, answer.version, list(answer.outputs)) == ("search", "1", ["embedding"])
    assert answer.usage == (await serving.infer(text_request("says"))).usage > 0
    for word in ("classification", 7, True):
        with pytest.raises(Invalid, match="unknown input_type"):
            await serving.infer(text_request("search", input_type=word))
    wrong = text_request("search")
    wrong.outputs = ("tokens",)
    with pytest.raises(Invalid, match="unknown output 'tokens'"):
        await serving.infer(wrong)


async def test_texts_of_many_requests_share_the_encoders_batches(encoders: Path, open_serving: Open) -> None:
    for name in ("asks", "says"):  # so small an encoder is done before the next request arrives
        file = encoders / "models" / name / "config.pbtxt"
        text = file.read_text()
        assert "dynamic_batching {\n" in text
        file.write_text(
            text.replace("dynamic_batching {\n", "dynamic_batching {\nmax_queue_delay_microseconds: 300000\n")
        )
    serving = await open_serving(encoders, threads=1)
    await publish_pair(serving, "search", "asks", "says")
    await serving.load("search")
    wanted = {name: await vectors(serving, text_request(name)) for name in ("asks", "says")}
    before = batches(serving, "asks")
    kinds = ["query", "document"] * 30
    found = await asyncio.gather(*(vectors(serving, text_request("search", input_type=kind)) for kind in kinds))
    for kind, got in zip(kinds, found, strict=True):
        np.testing.assert_allclose(got, wanted["asks" if kind == "query" else "says"], atol=1e-5)
    assert batches(serving, "asks") - before < 90 / 4, "90 texts of 30 requests"


async def test_metadata_load_and_pin_reach_both_encoders(encoders: Path, open_serving: Open) -> None:
    serving = await open_serving(encoders)
    await publish_pair(serving, "search", "asks", "says")
    told = await serving.metadata("search")
    assert (told.inputs[0].name, told.inputs[0].shape) == ("text", (-1, 1))
    assert (told.outputs[0].name, told.outputs[0].shape) == ("embedding", (-1, 32))
    await serving.pin("search")
    assert {model.name for model in serving.residency().models if model.pinned} == {"asks", "says"}


async def test_versions_are_followed_unless_they_are_named(encoders: Path, tmp_path: Path, open_serving: Open) -> None:
    serving = await open_serving(encoders)
    await publish_pair(serving, "follows", "asks", "says")
    pinned = await publish_pair(serving, "pinned", "asks@1", "says")
    assert pinned.query == "asks@1"
    serving.repository.set_label("asks", "old", "1")
    by_label = await publish_pair(serving, "pinned", "asks@old", "says")
    assert (by_label.version, by_label.new) == ("1", False), "a label is the version it means"
    old = await vectors(serving, text_request("asks"))
    add(encoders, "asks", write_checkpoint(tmp_path / "newer"), seed=0.5)
    await serving.load("asks")
    new = await vectors(serving, text_request("asks"))
    assert not np.allclose(old, new)
    np.testing.assert_allclose(await vectors(serving, text_request("follows", input_type="query")), new, atol=1e-6)
    np.testing.assert_allclose(await vectors(serving, text_request("pinned", input_type="query")), old, atol=1e-6)


async def test_publishing_again_and_anew(encoders: Path, open_serving: Open) -> None:
    serving = await open_serving(encoders)
    first = await publish_pair(serving, "search", "asks", "says")
    again = await publish_pair(serving, "search", "asks", "says")
    assert (again.version, again.new) == (first.version, False)
    turned = await publish_pair(serving, "search", "says", "asks", default="query")
    assert (turned.version, turned.new) == ("2", True)
    back = await publish_pair(serving, "search", "asks", "says")
    assert (back.version, back.new) == ("3", True), "the newest version is another pair"


async def test_an_encoder_becomes_a_pair_and_is_rolled_back(encoders: Path, tmp_path: Path, open_serving: Open) -> None:
    add(encoders, "search", write_checkpoint(tmp_path / "single"), seed=0.9)
    serving = await open_serving(encoders)
    single = await vectors(serving, text_request("search"))
    assert (await publish_pair(serving, "search", "asks", "says")).version == "2"
    says = await vectors(serving, text_request("says"))
    await serving.use_version("search", "newest")  # as a look at the repository does, but now
    np.testing.assert_allclose(await vectors(serving, text_request("search")), says, atol=1e-6)
    await serving.roll_back("search")
    np.testing.assert_allclose(await vectors(serving, text_request("search")), single, atol=1e-6)
    await serving.roll_forward("search")
    np.testing.assert_allclose(await vectors(serving, text_request("search")), says, atol=1e-6)


async def test_what_makes_no_pair(
    encoders: Path, tmp_path: Path, open_serving: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CONFIG, "hidden_size", 16)
    add(encoders, "narrow", write_checkpoint(tmp_path / "narrow"))
    put(encoders / "models", "double", times(2))
    serving = await open_serving(encoders)
    with pytest.raises(Invalid, match="no text-embedding model: it takes x and gives y"):
        await publish_pair(serving, "search", "asks", "double")
    with pytest.raises(Invalid, match="asks gives vectors of 32 numbers, narrow of 16"):
        await publish_pair(serving, "search", "asks", "narrow")
    with pytest.raises(Invalid, match="cannot be its own encoder"):
        await publish_pair(serving, "asks", "asks", "says")
    with pytest.raises(Invalid, match="a version is missing"):
        await publish_pair(serving, "search", "asks@", "says")
    with pytest.raises(NotFound):
        await publish_pair(serving, "search", "nobody", "says")
    with pytest.raises(NotFound):
        await publish_pair(serving, "search", "asks@7", "says")
    with pytest.raises(Invalid, match="is not a model name"):
        await publish_pair(serving, "search", "../asks", "says")
    with pytest.raises(Invalid, match="default_input_type"):
        await publish_pair(serving, "search", "asks", "says", default="both")
    assert "search" not in serving.repository.names()
    # An encoder that changes its width afterwards is told of, not answered with.
    await publish_pair(serving, "search", "asks", "says")
    add(encoders, "asks", tmp_path / "narrow")
    await serving.load("asks")
    with pytest.raises(ModelFailed, match=r"encoder 'asks' version 2 gave shape \[3, 16\], not vectors of 32"):
        await serving.infer(text_request("search", input_type="query"))
    assert (await vectors(serving, text_request("search"))).shape == (3, 32)


async def test_a_pair_by_hand_that_is_none(encoders: Path, open_serving: Open) -> None:
    for name, types in (("half", "query"), ("twice", "query,query"), ("other", "query,image")):
        folder = encoders / "models" / name
        (folder / "1").mkdir(parents=True)
        (folder / "config.pbtxt").write_text(
            f'platform: "ensemble"\ninput {{ name: "text" data_type: TYPE_STRING dims: [-1, 1] }}\n'
            f'output {{ name: "embedding" data_type: TYPE_FP32 dims: [-1, 32] }}\nensemble_scheduling {{\n'
            f'step {{ model_name: "asks" model_version: -1 }} step {{ model_name: "says" model_version: -1 }} }}\n'
            f'parameters {{ key: "input_types" value {{ string_value: "{types}" }} }}\n'
        )
    serving = await open_serving(encoders)
    for name in ("half", "twice", "other"):
        with pytest.raises(Invalid, match="no pair of encoders"):
            await serving.infer(text_request(name))


async def test_an_encoder_with_a_word_before_queries_and_documents(
    encoders: Path, tmp_path: Path, open_serving: Open
) -> None:
    add(encoders, "e5", write_checkpoint(tmp_path / "e5"), query="q ", document="p ")
    serving = await open_serving(encoders)
    for kind, word in (("query", "q "), ("document", "p "), ("", "p ")):
        wanted = await vectors(serving, text_request("asks", [word + text for text in TEXTS]))
        np.testing.assert_allclose(await vectors(serving, text_request("e5", input_type=kind)), wanted, atol=1e-5)
    with pytest.raises(Invalid, match="unknown input_type 'image'"):
        await serving.infer(text_request("e5", input_type="image"))
    # An encoder that makes no difference takes either, and no other word.
    plain = await vectors(serving, text_request("asks"))
    np.testing.assert_allclose(await vectors(serving, text_request("asks", input_type="query")), plain, atol=1e-6)
    with pytest.raises(Invalid, match="unknown input_type 'image'"):
        await serving.infer(text_request("asks", input_type="image"))
    # In a pair the encoders get the type too.
    await publish_pair(serving, "search", "e5", "says")
    wanted = await vectors(serving, text_request("e5", input_type="query"))
    np.testing.assert_allclose(await vectors(serving, text_request("search", input_type="query")), wanted, atol=1e-5)


def test_the_prompts_of_a_checkpoint_become_prefixes(tmp_path: Path) -> None:
    source = write_checkpoint(tmp_path / "source")
    told = {"prompts": {"query": "q ", "passage": "p "}, "default_prompt_name": "query"}
    (source / "config_sentence_transformers.json").write_text(json.dumps(told))
    workspace = tmp_path / "workspace"
    repository = Repository.open(str(workspace / "models"), load_settings(workspace))
    add_embedding_model(repository, "own", source)
    add_embedding_model(repository, "given", source, prefixes=Prefixes(document="d "))
    keys = ("query_prefix", "document_prefix", "default_input_type")
    assert [repository.config("own").parameters[key] for key in keys] == ["q ", "p ", "query"]
    assert [repository.config("given").parameters[key] for key in keys] == ["q ", "d ", "query"]
    (source / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {"query": 3}}))
    with pytest.raises(Invalid, match="'prompts' is not a table of texts"):
        add_embedding_model(repository, "broken", source)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path) -> Iterator[Up]:
    """`octavo up` with `asks`, `says` and, published by the command line through the server, `search`."""
    scratch = tmp_path_factory.mktemp("pair")
    workspace = scratch / "workspace"
    add(workspace, "asks", write_checkpoint(scratch / "asks"))
    add(workspace, "says", write_checkpoint(scratch / "says"), seed=0.7)
    with octavo_up(workspace, OCTAVO_SERVING__CACHE=str(session_folder / "cache")) as up:
        words = ("--workspace", str(workspace), "--query", "asks", "--document", "says", "--json")
        done = octavo("models", "pair", "search", *words)
        assert json.loads(done.stdout)["dimensions"] == 32, done.stderr
        yield up


@pytest.fixture(scope="module")
def wanted(server: Up) -> dict[str, np.ndarray]:
    """By input type, what the encoders themselves say."""
    with Client(server.url, token=server.token) as client:
        return {"query": client.embed(TEXTS, "asks"), "document": client.embed(TEXTS, "says")}


@pytest.fixture(scope="module")
def credentials(server: Up) -> dict[str, str]:
    """What boto3 signs with."""
    workspace = ("--workspace", str(server.workspace), "--json")
    octavo("users", "add", "ann", "--role", "viewer", *workspace)
    made: dict[str, str] = json.loads(octavo("users", "key-add", "ann", *workspace).stdout)["aws"]
    return made


@pytest.mark.parametrize("kind", ["query", "document"])
class TestClients:
    """Every client people have, against a running server."""

    def test_octavos(self, server: Up, wanted: dict[str, np.ndarray], kind: str) -> None:
        with Client(server.url, token=server.token) as client:
            np.testing.assert_allclose(client.embed(TEXTS, "search", input_type=kind), wanted[kind], atol=1e-5)
            np.testing.assert_allclose(client.embed(TEXTS, "search"), wanted["document"], atol=1e-5)

    def test_openais(self, server: Up, wanted: dict[str, np.ndarray], kind: str) -> None:
        with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.token) as client:
            said = client.embeddings.create(model="search", input=TEXTS, extra_body={"input_type": kind})
            np.testing.assert_allclose([row.embedding for row in said.data], wanted[kind], atol=1e-5)
            assert said.usage.prompt_tokens > 0
            with pytest.raises(openai.BadRequestError, match="unknown input_type") as caught:
                client.embeddings.create(model="search", input=TEXTS, extra_body={"input_type": "image"})
            assert caught.value.param == "input_type"
            with pytest.raises(openai.BadRequestError, match="not a text"):
                client.embeddings.create(model="search", input=TEXTS, extra_body={"input_type": ["query"]})

    def test_tritons(self, server: Up, wanted: dict[str, np.ndarray], kind: str) -> None:
        for module, address in ((triton, server.url.removeprefix("http://")), (triton_grpc, server.grpc)):
            client = module.InferenceServerClient(address)
            given = module.InferInput("text", [len(TEXTS), 1], "BYTES")
            given.set_data_from_numpy(np.array([[text.encode()] for text in TEXTS], dtype=object))
            headers = {"authorization": f"Bearer {server.token}"}  # the HTTP client writes into it
            said = client.infer("search", [given], headers=headers, parameters={"input_type": kind})
            np.testing.assert_allclose(said.as_numpy("embedding"), wanted[kind], atol=1e-5)
            client.close()

    def test_botos(self, server: Up, credentials: dict[str, str], wanted: dict[str, np.ndarray], kind: str) -> None:
        runtime = boto3.client(
            "sagemaker-runtime",
            endpoint_url=server.url,
            region_name="eu-west-3",
            aws_access_key_id=credentials["access_key_id"],
            aws_secret_access_key=credentials["secret_access_key"],
            config=Config(retries={"total_max_attempts": 1}, proxies={}),
        )
        for body in ({"inputs": TEXTS, "input_type": kind}, {"inputs": TEXTS, "parameters": {"input_type": kind}}):
            said = runtime.invoke_endpoint(
                EndpointName="search", ContentType="application/json", Body=json.dumps(body).encode()
            )
            np.testing.assert_allclose(json.loads(said["Body"].read()), wanted[kind], atol=1e-5)

    def test_the_command_line(self, server: Up, wanted: dict[str, np.ndarray], kind: str) -> None:
        words = [word for text in TEXTS for word in ("--text", text)]
        done = octavo(
            *("models", "infer", "search", *words, "--input-type", kind, "--json"),
            *("--workspace", str(server.workspace)),
        )
        np.testing.assert_allclose(json.loads(done.stdout)["embedding"], wanted[kind], atol=1e-5)


def test_publishing_over_http(server: Up) -> None:
    headers = {"authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False) as http:
        address = "/api/serving/models/other/pair"
        for body in ({}, {"query": "asks"}, {"query": 1, "document": "says"}):
            assert http.post(address, json=body).status_code == 400
        told = http.post(address, json={"query": "asks", "document": "says@1", "default_input_type": "query"}).json()
        assert (told["document"], told["default_input_type"]) == ("says@1", "query")


def test_without_a_server(encoders: Path) -> None:
    words = ("--query", "asks", "--document", "says", "--workspace", str(encoders))
    done = octavo("models", "pair", "search", *words)
    assert done.stdout.startswith("published search version 1: queries by asks, documents by says, 32 numbers")
    assert "unchanged: search version 1" in octavo("models", "pair", "search", *words).stdout
    wrong = octavo("models", "pair", "other", "--query", "asks", "--document", "none", "--workspace", str(encoders))
    assert wrong.returncode
    assert "Traceback" not in wrong.stderr
