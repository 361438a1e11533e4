"""A real `octavo up` in a process of its own, and how its answers and its log are looked at."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil

from octavo.serving.pbtxt import parse
from octavo.serving.repository import Repository
from octavo.settings import load_settings

from .small_models import write_adder

TOKEN = "token-of-the-tests"
BEARER = {"authorization": f"Bearer {TOKEN}"}
_START_SECONDS = 90
_PATIENCE = 60.0


class LiveServer:
    """One server on one workspace. `settings` is the text of its octavo.toml; `log_file` is by default in there."""

    def __init__(self, workspace: Path, settings: str, log_file: Path | None = None) -> None:
        self.workspace = workspace
        self.models = workspace / "models"
        self.log_file = log_file or workspace / "server.log"
        workspace.mkdir(parents=True, exist_ok=True)
        (workspace / "octavo.toml").write_text(settings)

    def start(self) -> LiveServer:
        """Start it and wait until it answers."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
        command = [sys.executable, "-m", "octavo.cli", "up", "--port", "0", "--token", TOKEN, "--json"]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--workspace", str(self.workspace)], stdout=subprocess.PIPE, stderr=log, env=environment
            )
        assert self.process.stdout is not None
        if not select.select([self.process.stdout], [], [], _START_SECONDS)[0]:
            self.stop()
            raise AssertionError(f"the server did not start: {self.log()}")
        line = self.process.stdout.readline()
        assert line, f"the server did not start: {self.log()}"
        self.url: str = json.loads(line)["url"]
        self.client = httpx.Client(
            base_url=self.url,
            headers=dict(BEARER),
            timeout=_PATIENCE,
            trust_env=False,
            limits=httpx.Limits(max_connections=None),
        )
        return self

    def stop(self) -> int:
        """Ask it to stop; its exit code. Killed when it does not."""
        if hasattr(self, "client"):
            self.client.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.communicate()

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.communicate()
        self.client.close()

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        url = httpx.URL(self.url)
        assert url.port is not None
        return url.host, url.port

    def connect(self, timeout: float = _PATIENCE) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(self.address, timeout=timeout)

    def log(self) -> str:
        """What it has logged so far."""
        return self.log_file.read_text(errors="replace")

    def memory(self) -> int:
        """Resident bytes."""
        resident: int = psutil.Process(self.process.pid).memory_info().rss
        return resident

    def infer(self, model: str, rows: list[list[float]], version: str = "", **options: Any) -> httpx.Response:
        """Ask a model that takes `x`, FP32."""
        path = f"/v2/models/{model}" + (f"/versions/{version}" if version else "")
        return self.client.post(f"{path}/infer", json=x_of(rows), **options)

    def embed(self, texts: Any, model: str = "embedder") -> httpx.Response:
        """Ask for embeddings, as OpenAI's clients do."""
        return self.client.post("/v1/embeddings", json={"model": model, "input": texts})

    def get(self, path: str) -> Any:
        """The JSON at a path."""
        answer = self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def loads(self, model: str) -> int:
        """How often a model was loaded."""
        text = self.client.get("/metrics").text
        found = re.findall(rf'^octavo_model_colds_total{{model="{model}".*}} ([0-9.e+]+)$', text, re.MULTILINE)
        return sum(int(float(count)) for count in found)

    def statistics(self, model: str) -> dict[str, Any]:
        """Triton's statistics of one model."""
        found: dict[str, Any] = self.get(f"/v2/models/{model}/stats")["model_stats"][0]
        return found

    def resident(self) -> dict[str, dict[str, Any]]:
        """The models in memory by name."""
        return {model["name"]: model for model in self.get("/api/serving/residency")["models"]}

    def states(self) -> dict[tuple[str, str], dict[str, Any]]:
        """The repository index by name and version."""
        return {(row["name"], row["version"]): row for row in self.client.post("/v2/repository/index").json()}

    def check_alive(self) -> None:
        """It runs, says it is ready, and answers."""
        assert self.process.poll() is None, self.log()
        assert self.client.get("/v2/health/ready").status_code == 200
        assert self.client.get("/readyz").status_code == 200
        answer = self.infer("adder", [[1, 2, 3, 4]])
        assert answer.status_code == 200, answer.text
        assert values(answer) == [2, 3, 4, 5]


def x_of(rows: list[list[float]]) -> dict[str, Any]:
    """A KServe request with one input `x`."""
    flat = [value for row in rows for value in row]
    shape = [len(rows), len(rows[0])]
    return {"inputs": [{"name": "x", "datatype": "FP32", "shape": shape, "data": flat}]}


def values(answer: httpx.Response) -> list[float]:
    """The first output's numbers."""
    found: list[float] = answer.json()["outputs"][0]["data"]
    return found


def check_refused(answer: httpx.Response, *statuses: int) -> str:
    """An error of one of these statuses in its protocol's shape, in one clear sentence; the sentence."""
    assert answer.status_code in statuses, (answer.status_code, answer.text)
    path = answer.request.url.path
    body = answer.json()
    if path.startswith("/v2"):
        assert list(body) == ["error"]
        sentence = body["error"]
    elif path.startswith("/v1"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        sentence = body["error"]["message"]
    else:
        assert answer.headers["content-type"] == "application/problem+json"
        assert body["status"] == answer.status_code
        sentence = body["detail"]
    check_sentence(sentence)
    if answer.status_code in (429, 503):
        assert int(answer.headers["retry-after"]) >= 1
    return str(sentence)


def check_sentence(sentence: object) -> None:
    """Something a person can read, with nothing of the server's inside in it."""
    assert isinstance(sentence, str)
    assert 10 < len(sentence) < 700, sentence
    for inside in ("Traceback", 'File "', "site-packages", "<class", "object at 0x", "\n", ".py:"):
        assert inside not in sentence


def wait_for(what: str, happened: Callable[[], Any], seconds: float = _PATIENCE) -> Any:
    """What `happened` says once it is true; fails, naming `what`, when that takes too long."""
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if found := happened():
            return found
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} seconds")


def check_log(log: str) -> None:
    """No traceback but those that Python models print themselves, and no error of the server's own."""
    for line in log.splitlines():
        said = json.loads(line)
        if said["logger"] != "octavo.serving.model":
            assert "Traceback" not in line
            assert said["level"] in ("debug", "info", "warning"), line


def publish(server: LiveServer, name: str, offset: float, scratch: Path) -> str:
    """Publish an adder in the server's repository, from this process; the version."""
    source = write_adder(scratch / f"{name}-{offset}", offset)
    repository = Repository.open(str(server.models), load_settings(scratch / "other-workspace"))
    return repository.publish(name, source / "1", parse((source / "config.pbtxt").read_text(), "config.pbtxt"))
