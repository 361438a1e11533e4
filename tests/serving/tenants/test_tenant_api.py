"""`/api/serving/tenants`: training over HTTP as a durable job, with an ordinary client."""

from __future__ import annotations

import gzip
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from octavo.errors import Invalid, NotFound
from octavo.serving.client import Client
from octavo.serving.tenants.submission import forget_examples, kept_examples
from octavo.settings import load_settings

from ..browsing import guest
from ..live import Up, octavo, octavo_up
from ..served_models import link_models

PATH = "/api/serving/tenants"
ROWS = "text,category\nI lost my card,card\nmy card was stolen,card\nsend money,transfer\nwire money,transfer\n"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path, minilm_models: Path) -> Iterator[Up]:
    workspace = tmp_path_factory.mktemp("tenants") / "workspace"
    link_models(minilm_models, workspace / "models")
    settings = {"CACHE": str(session_folder / "cache"), "WATCH_SECONDS": "0.2", "MAX_EXAMPLES": "1000"}
    environment = {f"OCTAVO_SERVING__{name}": value for name, value in settings.items()}
    with octavo_up(workspace, OCTAVO_WEB__MAX_BODY="100000", **environment) as up:
        yield up


@pytest.fixture(scope="module")
def http(server: Up) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {server.token}"}
    with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def ended(http: httpx.Client, where: str) -> dict[str, Any]:
    """The training once it has ended."""
    while True:
        found: dict[str, Any] = http.get(where).json()
        if found["state"] not in ("queued", "running"):
            return found
        time.sleep(0.2)


def kept(server: Up) -> list[Path]:
    return list((server.workspace / "objects" / "examples").glob("*"))


def test_a_tenant_from_its_examples_to_its_answers(http: httpx.Client, server: Up, tmp_path: Path) -> None:
    assert http.get(PATH).json() == []
    begun = http.post(f"{PATH}/acme", params={"base": "minilm"}, content=gzip.compress(ROWS.encode()))
    assert begun.status_code == 202, begun.text
    assert {name: begun.json()[name] for name in ("tenant", "examples", "categories")} == {
        "tenant": "acme", "examples": 4, "categories": 2,
    }  # fmt: skip
    assert begun.headers["location"] == f"{PATH}/acme/trainings/{begun.json()['job']}"
    done = ended(http, begun.headers["location"])
    assert (done["state"], done["progress"]) == ("succeeded", 1.0), done
    assert [each["model"] for each in done["result"]] == ["acme-intent", "acme-embedding"]
    assert kept(server) == []  # nobody's texts stay behind
    (tmp_path / "acme.csv").write_text(ROWS)
    octavo("tenants", "eval", "acme", "--examples", str(tmp_path / "acme.csv"), "--workspace", str(server.workspace))
    found = http.get(f"{PATH}/acme").json()
    assert (found["base"], found["examples"], found["categories"]) == ("minilm/1", 4, 2)
    assert found["evaluation"]["in_scope"] == 4
    assert found["bytes"] > 1000
    assert found["trained"].startswith("20")
    assert {model["kind"]: model["in_memory"] for model in found["models"]} == {"intent": False, "embedding": False}
    body = {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["my card is gone"]}]}
    assert http.post("/v2/models/acme-intent/infer", json=body).json()["outputs"][0]["data"] == ["card"]
    assert {one["kind"]: one["in_memory"] for one in http.get(PATH).json()[0]["models"]}["intent"] is True


@pytest.mark.parametrize(
    ("body", "status", "what", "where"),
    [
        (b"text,category\nhi,one\n,two\n", 400, "the text is empty", "body, row 3"),
        (b"text,category\nhi,one\nho,one\n", 400, "1 category", "category"),
        (b"text,category\nhi,one\n\xff,two\n", 400, "not UTF-8", "body, line 3"),
        (b"text\nhi\n", 400, "lacks category", "body, row 1"),
        (b"text,category\n" + b"hi,one\n" * 1001, 400, "more than 1,000", "body"),
        (b"x" * 100_001, 413, "larger than 100,000", "web.max_body"),
        (b"\x1f\x8bnonsense", 400, "damaged", "body"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_and_nothing_is_kept(
    http: httpx.Client, server: Up, body: bytes, status: int, what: str, where: str
) -> None:
    refused = http.post(f"{PATH}/other", content=body)
    assert refused.status_code == status, refused.text
    assert what in refused.json()["detail"]
    assert refused.json()["where"] == where
    assert kept(server) == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("/acme?base=nothing", 404), ("/acme?bass=minilm", 400), ("/a%2Fb", 404), ("/..intent", 400), ("/acme%0A", 400)],
)
def test_what_is_not_there(http: httpx.Client, path: str, status: int) -> None:
    assert http.post(PATH + path, content=ROWS.encode()).status_code == status


def test_a_training_that_fails_says_why_and_keeps_its_examples_for_another_try(http: httpx.Client, server: Up) -> None:
    with Client(server.url, token=server.token) as client:
        client.embed(["a"], model="minilm")
    (server.workspace / "models/broken/1").mkdir(parents=True)
    (server.workspace / "models/broken/1/model.onnx").write_bytes(b"no model")
    begun = http.post(f"{PATH}/other", params={"base": "broken"}, content=ROWS.encode())
    done = ended(http, begun.headers["location"])
    assert done["state"] == "failed"
    assert "broken" in done["error"]["where"]
    assert len(kept(server)) == 1
    kept(server)[0].unlink()
    assert http.get(f"{PATH}/acme/trainings/{done['id']}").status_code == 404  # it is another tenant's


def test_who_may_do_what(http: httpx.Client, server: Up) -> None:
    token = guest(server, "ann", "editor", "models/acme-*")
    with httpx.Client(
        base_url=server.url, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=60
    ) as ann:
        assert ann.post(f"{PATH}/acme", content=ROWS.encode()).status_code == 403  # she may not ask the base
        assert ann.post(f"{PATH}/other", content=ROWS.encode()).status_code == 403
        assert ann.get(f"{PATH}/other").status_code == 403
        assert {one["tenant"] for one in ann.get(PATH).json()} <= {"acme"}
    assert httpx.get(server.url + PATH, trust_env=False).status_code == 401


def test_no_ticket_leads_out_of_the_folder(tmp_path: Path) -> None:
    settings = load_settings(tmp_path)
    for ticket in ("../packages/x", "a" * 31, "A" * 32, ""):
        with pytest.raises(Invalid, match="not a ticket"):
            kept_examples(ticket, settings)
        with pytest.raises(Invalid, match="not a ticket"):
            forget_examples(ticket, settings)
    with pytest.raises(NotFound):
        kept_examples("a" * 32, settings)
