"""`octavo models package, deploy, rollout, promote, rollback`: with a server, without one, and killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import Conflict, Invalid
from octavo.serving.client import Client

from ..live import clean_environment, octavo, octavo_up
from ..served_models import times

SPEC = "name: m\nmetadata: {tenant: acme, kind: intents}\nfiles: [model.onnx]\nmax_batch_size: 8\nbackend: onnxruntime\ncheck: {x: [[1, 2, 3, 4]]}\n"  # noqa: E501


@pytest.fixture
def packaged(tmp_path: Path) -> Callable[[float], str]:
    """A package of a model that multiplies."""

    def make(factor: float) -> str:
        folder = tmp_path / f"times-{factor}"
        folder.mkdir()
        (folder / "model.onnx").write_bytes(times(factor))
        (folder / "spec.yaml").write_text(SPEC)
        done = run("package", str(folder / "spec.yaml"), "--to", str(folder / "out"), workspace=tmp_path / "workspace")
        return f"{done['where']}/{done['key']}"

    return make


def run(*words: str, workspace: Path) -> Any:
    done = octavo("models", *words, "--json", "--workspace", str(workspace))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def answers(client: Client) -> set[float]:
    one = np.ones((1, 4), np.float32)
    return {float(client.infer("acme-intents", {"x": one})["y"][0, 0]) for _ in range(60)}


def test_with_a_running_server(tmp_path: Path, packaged: Callable[[float], str]) -> None:
    workspace = tmp_path / "workspace"
    first, second = packaged(2), packaged(3)
    with octavo_up(workspace) as server, Client(server.url, token=server.token) as client:
        assert run("deploy", first, workspace=workspace)["name"] == "acme-intents"
        assert answers(client) == {2}
        found = run("deploy", second, "--share", "50%", workspace=workspace)
        assert (found["step"], found["share"], found["candidate"]["versions"]) == ("done", 0.5, {"acme-intents": "2"})
        assert answers(client) == {2, 3}
        assert run("rollout", "acme-intents", "90%", workspace=workspace)["share"] == 0.9
        assert run("promote", "acme-intents", workspace=workspace)["stable"]["versions"] == {"acme-intents": "2"}
        assert answers(client) == {3}
        run("rollback", "acme-intents", workspace=workspace)
        assert answers(client) == {2}
        assert [row["name"] for row in client.deployments()] == ["acme-intents"]
        with pytest.raises(Conflict):
            client.promote("acme-intents")
        with pytest.raises(Invalid, match="SHA-256"):
            client.deploy("acme-intents", {"package": "../../etc/passwd"})
        with pytest.raises(Invalid, match="not both"):
            client.deploy("acme-intents", {"package": "0" * 64, "share": 0.1, "shadow": 1})


def test_without_a_server(tmp_path: Path, packaged: Callable[[float], str]) -> None:
    workspace = tmp_path / "workspace"
    first = octavo("models", "deploy", packaged(2), "--share", "10%", "--workspace", str(workspace))
    assert "acme-intents: acme-intents@1 answers everything\nthe share of 10% does not apply" in first.stdout
    assert run("deploy", packaged(3), "--shadow", "1", workspace=workspace)["note"] == ""
    assert octavo("models", "rollout", "nosuch", "50%", "--workspace", str(workspace)).returncode == 2
    rows = run("deployments", workspace=workspace)
    assert [(row["name"], row["shadow"], row["step"]) for row in rows] == [("acme-intents", 1.0, "done")]
    refused = octavo("models", "deploy", "nothing.tar.gz", "--workspace", str(workspace))
    assert (refused.returncode, "Traceback" in refused.stderr) == (2, False)
    refused = octavo("models", "rollout", "acme-intents", "150%", "--workspace", str(workspace))
    assert "not a share" in refused.stderr


_DIES = """
import os, signal, sys
from octavo.serving.service import Serving
async def die(*given, **more):
    os.kill(os.getpid(), signal.SIGKILL)
Serving.declare_endpoint = die
from octavo.cli import main
sys.argv = ["octavo", *sys.argv[1:]]
main()
"""


def test_a_process_killed_before_the_endpoint(tmp_path: Path, packaged: Callable[[float], str]) -> None:
    """Its turn ends with it: the same command again ends in the state it would have."""
    workspace = tmp_path / "workspace"
    run("deploy", packaged(2), workspace=workspace)
    second = packaged(3)
    words = ["models", "deploy", second, "--share", "0.1", "--workspace", str(workspace)]
    killed = subprocess.run([sys.executable, "-c", _DIES, *words], capture_output=True, env=clean_environment())
    assert killed.returncode == -signal.SIGKILL, os.fsdecode(killed.stderr)
    left = run("deployments", workspace=workspace)[0]
    assert left["step"] == "routing"
    found = run(*words[1:-2], workspace=workspace)
    assert (found["step"], found["candidate"]["versions"]) == ("done", {"acme-intents": "2"})
