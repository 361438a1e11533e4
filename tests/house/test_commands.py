"""What the README tells to type: init, up, sign in, ask, status, stop."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parent.parent.parent


def octavo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "octavo.cli", *words], capture_output=True, text=True, timeout=120)


def test_from_an_empty_folder_to_a_running_server_and_back(tmp_path: Path) -> None:
    workspace = tmp_path / "workspace"
    assert octavo("init", str(workspace)).returncode == 0
    command = [sys.executable, "-m", "octavo.cli", "up", "--port", "0", "--workspace", str(workspace)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert select.select([process.stdout], [], [], 60)[0]
        lines = [process.stdout.readline() for _ in range(5)]  # addresses, then the link
        assert "is running at http://127.0.0.1:" in lines[0]
        link = next(line.strip() for line in lines if "/login?token=" in line)
        with httpx.Client(follow_redirects=True, trust_env=False) as browser:
            answer = browser.get(link, headers={"accept": "text/html"})
            assert answer.status_code == 200
            assert answer.url.path == "/"
        token = link.partition("token=")[2]
        asked = httpx.get(link.partition("/login")[0] + "/v2", headers={"authorization": f"Bearer {token}"})
        assert asked.status_code == 200
        status = octavo("status", "--json", "--workspace", str(workspace))
        assert status.returncode == 0
        assert json.loads(status.stdout)["pid"] == process.pid
        assert f"process {process.pid}" in octavo("status", "--workspace", str(workspace)).stdout
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0
        assert octavo("status", "--workspace", str(workspace)).returncode == 3
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("target", ["demo", "test", "up", "bench", "lint", "docs", "test-slow", "test-torch", "clean"])
def test_make_knows_the_target(target: str) -> None:
    done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"UV": ""})
    assert done.returncode == 0, done.stderr


def test_make_names_the_python_it_needs(tmp_path: Path) -> None:
    old = tmp_path / "python-old"
    old.write_text('#!/bin/sh\n[ "$1" = -V ] && { echo Python 3.9.2; exit 0; }\nexit 1\n')
    old.chmod(0o755)
    makefile = (ROOT / "Makefile").read_text()
    (tmp_path / "Makefile").write_text(makefile)
    (tmp_path / "pyproject.toml").write_text("")
    done = subprocess.run(["make", f"PYTHON={old}", "lint"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs Python 3.11 or newer; this is Python 3.9.2" in done.stdout
