"""Who may deploy over HTTP: editors of the endpoint and of every model that is published, nobody else."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from octavo.serving.packaging.artifact import open_artifact, stage
from octavo.settings import load_settings

from ..live import Up, octavo, octavo_up
from ..served_models import BATCHED, put, times

BASE = "/api/serving/deployments"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    with octavo_up(tmp_path_factory.mktemp("deployments") / "workspace") as up:
        yield up


@pytest.fixture(scope="module")
def digest(server: Up, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A staged model that multiplies."""
    source = tmp_path_factory.mktemp("source")
    put(source, "double", times(2), BATCHED)
    with open_artifact(str(source / "double"), load_settings(server.workspace), "acme-intents") as (_, folder):
        return stage(folder, load_settings(server.workspace))


def client(server: Up, name: str, role: str, pattern: str) -> httpx.Client:
    workspace = ("--workspace", str(server.workspace), "--json")
    octavo("users", "add", name, *workspace)
    octavo("users", "grant", name, role, "--on", pattern, *workspace)
    key = json.loads(octavo("users", "key-add", name, *workspace).stdout)["secret"]
    headers = {"authorization": f"Bearer {key}"}
    return httpx.Client(base_url=server.url, headers=headers, timeout=60, trust_env=False)


def test_a_viewer_reads_and_changes_nothing(server: Up, digest: str) -> None:
    with client(server, "vic", "viewer", "models/*") as vic:
        assert vic.get(BASE).json() == []
        for change, body in (
            ("", {"package": digest}),
            ("/roll-out", {"share": 0.5}),
            ("/promote", {}),
            ("/roll-back", {}),
        ):
            answer = vic.post(f"{BASE}/acme-intents{change}", json=body)
            assert (answer.status_code, answer.json()["title"]) == (403, "Not allowed")
    assert not (server.workspace / "models/acme-intents").exists()


def test_an_editor_deploys_what_he_may_edit_only(server: Up, digest: str) -> None:
    with client(server, "ed", "editor", "models/acme-*") as ed:
        assert ed.post(f"{BASE}/other", json={"package": digest}).status_code == 403
        done = ed.post(f"{BASE}/acme-intents", json={"package": digest})
        assert done.status_code == 200, done.text
        assert done.json()["stable"]["main"] == "acme-intents"
        assert [one["name"] for one in ed.get(BASE).json()] == ["acme-intents"]
    with client(server, "eve", "editor", "models/other") as eve:
        assert eve.get(BASE).json() == []
        assert eve.get(f"{BASE}/acme-intents").status_code == 403


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ({}, "'package' is not"),
        ({"package": "../x"}, "'package' is not"),
        ({"package": "0" * 64, "share": 2}, "not a share"),
        ({"package": "0" * 64, "share": "1"}, "not a number"),
        ({"package": "0" * 64, "share": 0.5, "shadow": 0.5}, "not both"),
        ({"package": "0" * 64, "more": 1}, "unknown field 'more'"),
    ],
)
def test_bodies_that_make_no_sense(server: Up, body: dict[str, object], what: str) -> None:
    headers = {"authorization": f"Bearer {server.token}"}
    answer = httpx.post(f"{server.url}{BASE}/acme", json=body, headers=headers, trust_env=False)
    assert answer.status_code == 400
    assert what in answer.text


def test_a_package_that_nobody_staged(server: Up) -> None:
    headers = {"authorization": f"Bearer {server.token}"}
    answer = httpx.post(f"{server.url}{BASE}/acme", json={"package": "0" * 64}, headers=headers, trust_env=False)
    assert answer.status_code == 404
