"""One real server for the folder, in its own process, and one Chromium per file: Playwright holds the event loop."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

TOKEN = "a-token-for-tests"


@dataclass
class Server:
    url: str
    pid: int
    workspace: Path
    process: subprocess.Popen[str]
    first_token: str | None

    def client(self, token: str = TOKEN) -> httpx.Client:
        return httpx.Client(
            base_url=self.url, headers={"authorization": f"Bearer {token}"}, trust_env=False, timeout=20
        )

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1])

    def log(self) -> list[dict[str, Any]]:
        text = (self.workspace / "stderr").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


@contextmanager
def running(workspace: Path, *flags: str, **environment: str) -> Iterator[Server]:
    workspace.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "octavo.cli", "up", "--json", "--port", "0", "--workspace", str(workspace), *flags]
    with (workspace / "stderr").open("w") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, text=True, env=os.environ | environment
        )
    assert process.stdout is not None
    try:
        select.select([process.stdout], [], [], 60)
        line = process.stdout.readline()
        assert line, (workspace / "stderr").read_text()
        told = json.loads(line)
        yield Server(told["url"], told["pid"], workspace, process, told["token"])
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.stdout.close()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    limits = {"OCTAVO_WEB__MAX_BODY": "200000", "OCTAVO_WEB__BODY_TIMEOUT": "1", "OCTAVO_WEB__MAX_CONNECTIONS": "100"}
    with running(tmp_path_factory.mktemp("workspace"), "--token", TOKEN, **limits) as found:
        yield found
