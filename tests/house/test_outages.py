"""What the server stands on gives way: S3, the disk, its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from octavo.errors import OctavoError
from octavo.serving.pbtxt import parse
from octavo.serving.repository import Repository
from octavo.settings import load_settings
from octavo.storage.atomic import LEFTOVER

from .live_server import TOKEN, LiveServer, check_log, check_refused, check_sentence, values, wait_for
from .small_models import write_adder, write_heavy

SECRET = "secret-of-the-store"


class Switch:
    """Moto's S3 server, which can be turned off and on; what it holds stays."""

    def __init__(self) -> None:
        from moto.server import ThreadedMotoServer

        self._make = ThreadedMotoServer
        self.port = 0
        self.on()

    def on(self) -> None:
        self._server = self._make(ip_address="127.0.0.1", port=self.port, verbose=False)
        self._server.start()
        self.port = self._server.get_host_and_port()[1]

    def off(self) -> None:
        self._server.stop()


@pytest.fixture
def s3() -> Iterator[Switch]:
    pytest.importorskip("moto.server")
    switch = Switch()
    yield switch
    switch.off()


@pytest.fixture
def s3_server_of_models(s3: Switch, tmp_path: Path) -> Iterator[LiveServer]:
    """A server on an S3 repository with two adders."""
    import boto3

    endpoint = f"http://127.0.0.1:{s3.port}"
    client = boto3.client(
        "s3", endpoint_url=endpoint, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key=SECRET
    )
    client.create_bucket(Bucket="faults")
    url = f"s3://faults/{tmp_path.name}"
    storage = f'[storage]\ns3_endpoint = "{endpoint}"\ns3_access_key = "k"\ns3_secret_key = "{SECRET}"\n'
    server = LiveServer(
        tmp_path / "workspace", f'{storage}\n[serving]\nrepository = "{url}"\nwatch_seconds = 0.2\nload_backoff = 0\n'
    )
    repository = Repository.open(url, load_settings(server.workspace))
    for name, offset in (("adder", 1), ("other", 2)):
        folder = write_adder(tmp_path / name, offset)
        repository.publish(name, folder / "1", parse((folder / "config.pbtxt").read_text(), ""))
    server.start()
    yield server
    server.stop()
    check_log(server.log())


def test_s3_down(s3: Switch, s3_server_of_models: LiveServer) -> None:
    """What was fetched goes on answering; what was not gets 503 with the time to wait."""
    server = s3_server_of_models
    server.check_alive()
    s3.off()
    try:
        wait_for("the warning", lambda: "the repository cannot be read" in server.log())
        server.check_alive()
        sentence = check_refused(server.infer("other", [[1, 2, 3, 4]]), 503)
        assert SECRET not in sentence + server.log()
        check_refused(server.infer("never_seen", [[1, 2, 3, 4]]), 503)
        assert {name for name, _ in server.states()} == {"adder", "other"}
    finally:
        s3.on()


@pytest.mark.slow
def test_s3_down_at_start_and_its_return(s3: Switch, s3_server_of_models: LiveServer) -> None:
    server = s3_server_of_models
    server.check_alive()
    s3.off()
    server.kill()
    server.start()
    server.check_alive()
    check_refused(server.infer("other", [[1, 2, 3, 4]]), 503)
    s3.on()
    answer = wait_for("its return", lambda: _ok(server.infer("other", [[1, 2, 3, 4]])), 120)
    assert values(answer) == [3, 4, 5, 6]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 MiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    options = ["mount", "-t", "tmpfs", "-o", "size=64m,mode=755", "tmpfs", str(folder)]
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mounted = subprocess.run(options, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_disk_full(small_disk: Path, tmp_path: Path) -> None:
    """Models still load, without their packed form; a publish is refused whole; the server comes back by itself."""
    server = LiveServer(
        small_disk / "workspace", "[serving]\nwatch_seconds = 0.2\nload_backoff = 0.1\n", tmp_path / "server.log"
    )
    for name, offset in (("adder", 1), ("cold", 2)):
        write_adder(server.models / name, offset)
    write_heavy(server.models / "heavy", 16, seed=1)
    repository = Repository.open(str(server.models), load_settings(server.workspace))
    source = write_heavy(tmp_path / "source", 40, seed=2)
    config = parse((source / "config.pbtxt").read_text(), "")
    server.start()
    try:
        server.check_alive()
        ballast = _fill(small_disk)
        for model in ("adder", "cold", "heavy"):
            assert server.infer(model, [[1, 2, 3, 4]]).status_code == 200
        with pytest.raises(OctavoError) as told:
            repository.publish("new", source / "1", config)
        check_sentence(told.value.what)
        assert not [path for path in server.models.rglob("*") if LEFTOVER.search(path.name)]
        assert ("new", "1") not in server.states()
        answer = server.client.post("/api/serving/models/cold/default-version", json={"version": "1"})
        check_refused(answer, 500, 503, 507)
        assert server.client.get("/metrics").status_code == 200
        server.check_alive()
        ballast.unlink()
        assert server.client.post("/api/serving/models/cold/default-version", json={"version": "1"}).status_code == 200
        server.check_alive()
        check_log(server.log())
    finally:
        server.stop()


def _fill(disk: Path) -> Path:
    """A file that leaves no byte."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (2**20, 2**12, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue
    return ballast


def test_kill_9_of_the_server(start_server: Callable[..., LiveServer]) -> None:
    """In the middle of loads and answers; all it knew is there after the restart, and nothing half-done."""
    server = start_server("killed", "[serving]\nwatch_seconds = 0.2\n", ("adder", "herd", "embedder"))
    server.check_alive()
    assert _octavo("users", "add", "ann", "--role", "viewer", workspace=server.workspace).returncode == 0
    key = json.loads(_octavo("users", "key-add", "ann", "--json", workspace=server.workspace).stdout)["secret"]
    broken = threading.Event()

    def ask(model: str) -> None:
        try:
            while True:
                assert server.infer(model, [[1, 2, 3, 4]]).status_code == 200
        except (httpx.HTTPError, RuntimeError):
            broken.set()

    with ThreadPoolExecutor(4) as pool:
        for model in ("adder", "adder", "herd", "herd"):
            pool.submit(ask, model)
        wait_for("a load under way", lambda: (server.workspace / "cache").exists())
        server.kill()
    assert broken.is_set()
    announced = server.workspace / "run/server.json"
    stale = json.loads(announced.read_text())
    assert _octavo("status", workspace=server.workspace).returncode == 3
    server.start()
    assert json.loads(announced.read_text())["pid"] == server.process.pid != stale["pid"]
    assert _octavo("status", workspace=server.workspace).returncode == 0
    server.check_alive()
    assert server.infer("herd", [[1, 2, 3, 4]]).status_code == 200
    assert server.embed("hello").status_code == 200
    stale_token = {"authorization": f"Bearer {stale['token']}"}
    assert httpx.get(f"{server.url}/v2", headers=stale_token, trust_env=False).status_code == 401
    of_ann = {"authorization": f"Bearer {key}"}
    assert httpx.get(f"{server.url}/v1/models", headers=of_ann, trust_env=False).status_code == 200
    assert server.stop() == 0
    assert not announced.exists()
    check_log(server.log())


PUBLISH = """
import sys
from octavo.serving.pbtxt import parse
from octavo.serving.repository import Repository
from octavo.settings import load_settings

models, source, workspace = sys.argv[1:]
config = parse(open(f"{source}/config.pbtxt").read(), "")
print(Repository.open(models, load_settings(workspace)).publish("interrupted", f"{source}/1", config))
"""


def test_kill_9_of_a_publish(server: LiveServer, tmp_path: Path) -> None:
    """The version is there whole or not at all, and the next publish goes through."""
    source = write_heavy(tmp_path / "source", 64, seed=3)
    command = [sys.executable, "-c", PUBLISH, str(server.models), str(source), str(tmp_path / "other")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    limit = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < limit:
        if any(path.stat().st_size for path in server.models.glob("interrupted#*/version/model.onnx")):
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert list(server.models.glob("interrupted#*"))
    check_refused(server.infer("interrupted", [[1, 2, 3, 4]]), 404)
    assert not [name for name, _ in server.states() if "interrupted" in name]
    assert subprocess.run(command, capture_output=True, text=True).stdout.strip() == "1"
    wait_for("the version", lambda: _ok(server.infer("interrupted", [[1, 2, 3, 4]])))
    server.client.post("/v2/repository/models/interrupted/unload").raise_for_status()


def test_a_second_server_on_the_workspace_is_refused(server: LiveServer) -> None:
    done = _octavo("up", "--port", "0", workspace=server.workspace)
    assert done.returncode == 2
    assert f"process {server.process.pid}" in done.stderr
    assert TOKEN not in done.stderr + server.log()


def _octavo(*words: str, workspace: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "octavo.cli", *words, "--workspace", str(workspace)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def _ok(answer: httpx.Response) -> httpx.Response | None:
    return answer if answer.status_code == 200 else None
