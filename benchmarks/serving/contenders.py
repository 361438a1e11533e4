"""Who is measured: octavo, MLServer and Triton (pytriton), each started as a user would and asked over HTTP.

Every server gets the same ONNX file and tokenizer and truncates at 512 tokens. The peers live in environments of their
own under `.venv-peers/`, with the versions of `peers/requirements-*.txt`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
from harness import CACHE, CannotRun, Server, free_port, octavo_command

PEERS = Path(__file__).parent / "peers"
TOKEN = "bench-token-0123456789abcdef"
MAX_TOKENS = 512
MAX_BATCH = 32
BATCH_DELAY = 0.002
WIDTH = 384

_MAX_TOKENS = re.compile(r'("max_tokens"[^}]*?string_value\s*:\s*)"[^"]*"')


@dataclass(frozen=True)
class ModelFiles:
    """What every contender serves."""

    onnx: Path
    tokenizer: Path

    @property
    def environment(self) -> dict[str, str]:
        """How the peers' model code finds them."""
        return {"BENCH_ONNX": str(self.onnx), "BENCH_TOKENIZER": str(self.tokenizer), "PYTHONPATH": str(PEERS)}


@dataclass(frozen=True)
class Target:
    """One model of a running server: how to ask it and how to read its answer.

    `exact` says whether answers must match the reference to cosine 0.999 (fp32) or 0.94 (int8).
    """

    label: str
    server: Server
    port: int
    request: Callable[[str], bytes]
    read: Callable[[bytes], np.ndarray]
    exact: bool = True


def http_post(port: int, path: str, body: bytes, headers: dict[str, str]) -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def binary_request(port: int, model: str, headers: dict[str, str]) -> Callable[[str], bytes]:
    """KServe v2 with the binary extension, as tritonclient sends it: one text."""

    def build(text: str) -> bytes:
        raw = text.encode()
        return binary_post(port, model, headers, ("text", [1, 1], "BYTES"), struct.pack("<I", len(raw)) + raw)

    return build


def binary_post(
    port: int, model: str, headers: dict[str, str], tensor: tuple[str, list[int], str], raw: bytes
) -> bytes:
    """A request with one binary tensor (name, shape, datatype) that wants binary answers."""
    name, shape, datatype = tensor
    given = {"name": name, "shape": shape, "datatype": datatype, "parameters": {"binary_data_size": len(raw)}}
    head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
    extra = {"Inference-Header-Content-Length": str(len(head))}
    return http_post(port, f"/v2/models/{model}/infer", head + raw, headers | extra)


def json_request(port: int, model: str) -> Callable[[str], bytes]:
    """KServe v2 in JSON: MLServer has no binary extension over HTTP."""

    def build(text: str) -> bytes:
        tensor = {"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}
        body = json.dumps({"inputs": [tensor]}).encode()
        return http_post(port, f"/v2/models/{model}/infer", body, {"Content-Type": "application/json"})

    return build


def read_binary(body: bytes) -> np.ndarray:
    """The one output of a binary answer: its last bytes."""
    return np.frombuffer(body[-4 * WIDTH :], dtype="<f4")


def read_json(body: bytes) -> np.ndarray:
    """The one output of a JSON answer."""
    return np.asarray(orjson.loads(body)["outputs"][0]["data"], dtype=np.float32)


def peer_python(name: str) -> Path:
    """The interpreter of a peer's environment, made when it is missing or its requirements changed.

    Raises:
        CannotRun: the packages cannot be installed; carries pip's message.
    """
    requirements = PEERS / f"requirements-{name}.txt"
    folder = CACHE / name
    python = folder / "bin" / "python"
    stamp = folder / "requirements.sha256"
    digest = hashlib.sha256(requirements.read_bytes()).hexdigest()
    if not (stamp.is_file() and stamp.read_text() == digest):
        print(f"installing {name} into {folder} ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        _run([sys.executable, "-m", "venv", str(folder)], f"making the environment of {name}")
        _run([str(python), "-m", "pip", "install", "-q", "-r", str(requirements)], f"installing {name}")
        stamp.write_text(digest)
    return python


def _run(command: list[str], doing: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    if done.returncode:
        raise CannotRun(f"{doing} failed: {done.stderr.strip()[-800:]}")


def peer_versions(name: str, *packages: str) -> dict[str, str]:
    """Versions of packages in a peer's environment."""
    code = "import sys, importlib.metadata as m; print(*(m.version(p) for p in sys.argv[1:]))"
    done = subprocess.run([peer_python(name), "-c", code, *packages], capture_output=True, text=True, check=True)
    return {f"{package} ({name})": number for package, number in zip(packages, done.stdout.split(), strict=True)}


@contextlib.contextmanager
def mlserver(files: ModelFiles, folder: Path) -> Iterator[list[Target]]:
    """MLServer with its adaptive batching: 32 texts or 2 ms; one worker process, its default."""
    python = peer_python("mlserver")
    home = folder / "mlserver"
    port = free_port()
    for model, kind in (("minilm", "MiniLM"), ("minilm-bucketed", "BucketedMiniLM")):
        settings = {
            "name": model,
            "implementation": f"mlserver_runtime.{kind}",
            "max_batch_size": MAX_BATCH,
            "max_batch_time": BATCH_DELAY,
        }
        (home / model).mkdir(parents=True, exist_ok=True)
        (home / model / "model-settings.json").write_text(json.dumps(settings))
    ports = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port()}
    quiet = home / "logging.ini"
    quiet.write_text(_QUIET_LOGGING)
    settings = {"host": "127.0.0.1", "debug": False, "logging_settings": str(quiet)} | ports
    (home / "settings.json").write_text(json.dumps(settings))
    server = Server("mlserver", [str(python.parent / "mlserver"), "start", str(home)], files.environment, folder)
    try:
        for model in ("minilm", "minilm-bucketed"):
            server.wait_until_ready(f"http://127.0.0.1:{port}/v2/models/{model}/ready")
        yield [
            Target("MLServer", server, port, json_request(port, "minilm"), read_json),
            Target("MLServer bucketed", server, port, json_request(port, "minilm-bucketed"), read_json),
        ]
    finally:
        server.stop()


# Without its line per request, as octavo and Triton run too.
_QUIET_LOGGING = """[loggers]
keys=root
[handlers]
keys=console
[formatters]
keys=plain
[logger_root]
level=WARNING
handlers=console
[handler_console]
class=StreamHandler
formatter=plain
args=(sys.stderr,)
[formatter_plain]
format=%(levelname)s %(message)s
"""


@contextlib.contextmanager
def pytriton(files: ModelFiles, folder: Path) -> Iterator[list[Target]]:
    """The tritonserver inside pytriton, on the CPU, with its dynamic batcher: 32 texts or 2 ms."""
    python = peer_python("pytriton")
    port = free_port()
    # Triton's Python stub otherwise finds another libpython, or none, and dies at start.
    environment = files.environment | {"LD_LIBRARY_PATH": sysconfig.get_config_var("LIBDIR")}
    command = [str(python), str(PEERS / "pytriton_server.py"), str(port), str(free_port())]
    server = Server("pytriton", command, environment, folder)
    try:
        for model in ("minilm", "minilm-bucketed"):
            server.wait_until_ready(f"http://127.0.0.1:{port}/v2/models/{model}/ready")
        yield [
            Target("Triton", server, port, binary_request(port, "minilm", {}), read_binary),
            Target("Triton bucketed", server, port, binary_request(port, "minilm-bucketed", {}), read_binary),
        ]
    finally:
        server.stop()


def octavo_workspace(folder: Path) -> Path:
    """A workspace with MiniLM in fp32 and int8, truncating at 512 tokens; made once."""
    if not (folder / "models" / "minilm-int8").is_dir():
        command = octavo_command()
        _run([*command, "init", str(folder)], "octavo init")
        _run([*command, "models", "add", "minilm", "--workspace", str(folder)], "octavo models add minilm")
        for model in ("minilm", "minilm-int8"):
            config = folder / "models" / model / "config.pbtxt"
            config.write_text(with_max_tokens(config.read_text(), MAX_TOKENS))
    return folder


def with_max_tokens(config: str, tokens: int) -> str:
    """A config.pbtxt whose `max_tokens` parameter is `tokens`."""
    changed, count = _MAX_TOKENS.subn(rf'\g<1>"{tokens}"', config)
    if count:
        return changed
    return f'{config.rstrip()}\nparameters {{ key: "max_tokens" value {{ string_value: "{tokens}" }} }}\n'


def octavo_files(workspace: Path) -> ModelFiles:
    """The fp32 files of the workspace's MiniLM, which the peers serve too."""
    version = workspace / "models" / "minilm" / "1"
    return ModelFiles(version / "model.onnx", version / "tokenizer.json")


@contextlib.contextmanager
def octavo_server(workspace: Path, environment: dict[str, str] | None = None) -> Iterator[tuple[Server, int]]:
    """`octavo up` on a free port; `environment` holds settings as OCTAVO_... variables."""
    port = free_port()
    command = [*octavo_command(), "up", "--workspace", str(workspace), "--port", str(port), "--token", TOKEN]
    server = Server("octavo", command, environment or {}, workspace)
    try:
        server.wait_until_ready(f"http://127.0.0.1:{port}/v2/health/ready")
        yield server, port
    finally:
        server.stop()


AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


def octavo_target(server: Server, port: int, model: str, label: str) -> Target:
    """A model of a running octavo."""
    exact = "int8" not in model
    return Target(label, server, port, binary_request(port, model, AUTHORIZED), read_binary, exact)


@contextlib.contextmanager
def octavo(workspace: Path) -> Iterator[list[Target]]:
    """Octavo with its own defaults, fp32 and int8."""
    with octavo_server(workspace) as (server, port):
        yield [
            octavo_target(server, port, "minilm", "octavo fp32"),
            octavo_target(server, port, "minilm-int8", "octavo int8"),
        ]
