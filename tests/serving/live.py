"""`octavo up` and other commands in processes of their own."""

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

TOKEN = "a-token-for-tests"


def clean_environment(**more: str) -> dict[str, str]:
    """This process's environment without settings of octavo's."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OCTAVO_")}
    return kept | {"NO_COLOR": "1", "COLUMNS": "200"} | more


def octavo(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "octavo.cli", *words],
        capture_output=True, text=True, timeout=150, env=clean_environment(**environment),
    )  # fmt: skip


@dataclass(frozen=True)
class Up:
    """A running server."""

    url: str
    pid: int
    workspace: Path
    token: str = TOKEN
    grpc: str = ""


@contextmanager
def octavo_up(workspace: Path, *options: str, **environment: str) -> Iterator[Up]:
    """A server on a workspace with these options, ended with the block; its log goes to `stderr` in the workspace."""
    workspace.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "octavo.cli", "up", "--json", "--port", "0", "--token", TOKEN]
    with (workspace / "stderr").open("w") as errors:
        process = subprocess.Popen(
            [*command, *options, "--workspace", str(workspace)],
            stdout=subprocess.PIPE, stderr=errors, text=True, env=clean_environment(**environment),
        )  # fmt: skip
    assert process.stdout is not None
    try:
        select.select([process.stdout], [], [], 60)
        line = process.stdout.readline()
        assert line, (workspace / "stderr").read_text()
        told = json.loads(line)
        yield Up(told["url"], told["pid"], workspace, grpc=told["grpc"])
    finally:
        process.terminate()
        try:
            process.wait(20)
        finally:
            process.kill()
            process.stdout.close()
