"""gRPC beside HTTP: KServe v2 with 384-float answers, octavo's doors beside Triton's own, in interleaved rounds.

"wide" is a model that costs nothing (4 floats in, 384 out), so that the protocol is what is measured; "minilm" is a
real one. Triton serves both in its Python backend, octavo by onnxruntime. Servers run on the first half of the cores,
the load on the other: "lean" load is pre-built bytes, so that the server is what limits; "tritonclient" is the client
people have, unmodified, and limits itself.

    python benchmarks/serving/grpc_beside_http.py [--rounds 6] [--only wide] [--without-triton]
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc_load
import load
import numpy as np
from contenders import (
    AUTHORIZED,
    PEERS,
    TOKEN,
    WIDTH,
    ModelFiles,
    binary_post,
    binary_request,
    http_post,
    octavo_files,
    octavo_server,
    octavo_workspace,
    peer_python,
    peer_versions,
    read_binary,
    read_json,
)
from harness import CACHE, CannotRun, Report, Server, free_port, median, own_versions, percentile, run
from triton_client import triton_client
from workload import TextMaker

LEAST = 1.1
_CORES = sorted(os.sched_getaffinity(0))
SERVER_CORES = _CORES[: max(1, len(_CORES) // 2)]
LOAD_CORES = _CORES[len(SERVER_CORES) :] or _CORES
WEIGHTS = np.random.default_rng(7).normal(size=(4, WIDTH)).astype(np.float32)


@dataclass(frozen=True)
class Model:
    """What is asked: inputs and the answers they must get."""

    name: str
    tensors: list[np.ndarray]
    references: np.ndarray

    @property
    def text(self) -> bool:
        """Whether the input is a text."""
        return self.tensors[0].dtype == np.object_


@dataclass(frozen=True)
class Doors:
    """A running server and its two ports."""

    label: str
    server: Server
    http: int
    grpc: int
    token: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """What its requests carry."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


@dataclass(frozen=True)
class Case:
    """One way to ask: `ask(doors, model, order)` makes all requests, `read` takes an answer's floats from its body."""

    name: str
    door: str
    requests: int
    ask: Callable[[Doors, Model, Sequence[int]], load.Load]
    read: Callable[[bytes], np.ndarray] = lambda body: np.frombuffer(body[-4 * WIDTH :], "<f4")


@dataclass
class Cell:
    """All rounds of one server asked one way."""

    cpu_ms: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    p99s: list[float] = field(default_factory=list)
    client_ms: list[float] = field(default_factory=list)
    failed: int = 0


def _http(connections: int, build: Callable[[Doors, Model, np.ndarray], bytes]) -> Callable[..., load.Load]:
    def ask(doors: Doors, model: Model, order: Sequence[int]) -> load.Load:
        built = [build(doors, model, tensor) for tensor in model.tensors]
        return load.closed_loop(doors.http, [built[at] for at in order], connections)

    return ask


def _grpc(connections: int, streams: int) -> Callable[..., load.Load]:
    def ask(doors: Doors, model: Model, order: Sequence[int]) -> load.Load:
        built = [message_of(model, tensor) for tensor in model.tensors]
        return grpc_load.closed_loop(doors.grpc, [built[at] for at in order], connections, streams, doors.token)

    return ask


def _client(protocol: str, at_once: int) -> Callable[..., load.Load]:
    def ask(doors: Doors, model: Model, order: Sequence[int]) -> load.Load:
        port = doors.http if protocol == "http" else doors.grpc
        headers = {key.lower(): value for key, value in doors.headers.items()}
        return triton_client(protocol, port, model.name, [model.tensors[at] for at in order], at_once, headers)

    return ask


def binary_of(doors: Doors, model: Model, tensor: np.ndarray) -> bytes:
    """A request in HTTP with binary tensors."""
    if model.text:
        return binary_request(doors.http, model.name, doors.headers)(tensor[0, 0].decode())
    return binary_post(doors.http, model.name, doors.headers, ("x", [1, 4], "FP32"), tensor.tobytes())


def json_of(doors: Doors, model: Model, tensor: np.ndarray) -> bytes:
    """A request in HTTP with JSON both ways."""
    name, datatype = ("text", "BYTES") if model.text else ("x", "FP32")
    data = [item.decode() if model.text else item for item in tensor.ravel().tolist()]
    given = {"name": name, "shape": list(tensor.shape), "datatype": datatype, "data": data}
    body = json.dumps({"inputs": [given]}).encode()
    headers = doors.headers | {"Content-Type": "application/json"}
    return http_post(doors.http, f"/v2/models/{model.name}/infer", body, headers)


def message_of(model: Model, tensor: np.ndarray) -> bytes:
    """The message Triton's gRPC client makes of one tensor."""
    import tritonclient.grpc as client
    from tritonclient.grpc import service_pb2

    given = client.InferInput("text" if model.text else "x", list(tensor.shape), "BYTES" if model.text else "FP32")
    given.set_data_from_numpy(tensor)
    message = service_pb2.ModelInferRequest(model_name=model.name)
    message.inputs.append(given._get_tensor())
    message.raw_input_contents.append(given._get_content())
    return message.SerializeToString()


def cases(model: str) -> list[Case]:
    """All ways to ask a model; those that are compared follow each other."""
    few, many = (800, 3000) if model == "wide" else (40, 96)
    return [
        Case("c1, lean", "HTTP binary", few, _http(1, binary_of), read_binary),
        Case("c1, lean", "gRPC", few, _grpc(1, 1)),
        Case("c1, lean", "HTTP JSON", few, _http(1, json_of), read_json),
        Case("c32, lean", "gRPC, 32 connections", many, _grpc(32, 1)),
        Case("c32, lean", "HTTP binary", many, _http(32, binary_of), read_binary),
        Case("c32, lean", "gRPC, 1 connection", many, _grpc(1, 32)),
        Case("c32, lean", "HTTP JSON", many, _http(32, json_of), read_json),
        Case("c1, tritonclient", "HTTP binary", few // 2, _client("http", 1)),
        Case("c1, tritonclient", "gRPC", few // 2, _client("grpc", 1)),
        Case("c32, tritonclient", "HTTP binary", many // 3, _client("http", 32)),
        Case("c32, tritonclient", "gRPC", many // 3, _client("grpc", 32)),
    ]


def wide_model() -> Model:
    """4 floats in, 384 out."""
    inputs = np.random.default_rng(8).normal(size=(64, 1, 4)).astype(np.float32)
    return Model("wide", list(inputs), (inputs @ WEIGHTS)[:, 0])


def minilm_model(files: ModelFiles) -> Model:
    """Texts of 30 tokens in, their vectors out."""
    found = TextMaker(files.onnx, files.tokenizer).workload("30 tokens", [30] * 32)
    texts = [np.array([[text.encode()]], dtype=np.object_) for text in found.texts]
    return Model("minilm", texts, found.references)


@contextlib.contextmanager
def octavo(workspace: Path) -> Iterator[Doors]:
    """Octavo with its own defaults; the gRPC port is the one after HTTP's."""
    put_wide(workspace / "models" / "wide")
    with octavo_server(workspace) as (server, port):
        yield Doors("octavo", server, port, port + 1, TOKEN)


def put_wide(folder: Path) -> None:
    """The "wide" model as an ONNX file with its configuration."""
    from onnx import TensorProto, helper, numpy_helper, save

    (folder / "1").mkdir(parents=True, exist_ok=True)
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", floats, ["n", 4])],
        [helper.make_tensor_value_info("y", floats, ["n", WIDTH])],
        [numpy_helper.from_array(WEIGHTS, "w")],
    )
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), folder / "1/model.onnx")
    (folder / "config.pbtxt").write_text(_config("wide", "onnxruntime", "x", "FP32", "4", "y"))


def _config(name: str, backend: str, given: str, datatype: str, dims: str, output: str) -> str:
    return (
        f'name: "{name}"\nbackend: "{backend}"\nmax_batch_size: 32\n'
        f'input {{ name: "{given}" data_type: TYPE_{datatype} dims: [{dims}] }}\n'
        f'output {{ name: "{output}" data_type: TYPE_FP32 dims: [{WIDTH}] }}\ndynamic_batching {{ }}\n'
    )


@contextlib.contextmanager
def tritonserver(files: ModelFiles, folder: Path) -> Iterator[Doors]:
    """The tritonserver of pytriton's wheel on a model repository of its own, without pytriton around it."""
    packages = peer_python("pytriton").parents[1] / "lib" / "python3.11" / "site-packages"
    inside = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(inside / "backends", backends)
    shutil.copy(inside / "python_backend_stubs" / "3.11" / "triton_python_backend_stub", backends / "python")
    np.save(folder / "weights.npy", WEIGHTS)
    for name, given in (("wide", ("x", "FP32", "4", "y")), ("minilm", ("text", "STRING", "1", "embedding"))):
        (folder / "models" / name / "1").mkdir(parents=True)
        shutil.copy(PEERS / "triton_models.py", folder / "models" / name / "1" / "model.py")
        (folder / "models" / name / "config.pbtxt").write_text(_config(name, "python", *given))
    libraries = (packages / "nvidia_pytriton.libs", sysconfig.get_config_var("LIBDIR"))
    environment = files.environment | {
        "LD_LIBRARY_PATH": os.pathsep.join(map(str, libraries)),
        "BENCH_PACKAGES": os.pathsep.join((str(packages), str(PEERS))),
        "BENCH_WEIGHTS": str(folder / "weights.npy"),
    }
    http, grpc = free_port(), free_port()
    command = [str(inside / "bin" / "tritonserver"), f"--model-repository={folder / 'models'}"]
    command += [f"--backend-directory={backends}", f"--http-port={http}", f"--grpc-port={grpc}"]
    command += ["--allow-metrics=false", "--http-address=127.0.0.1", "--grpc-address=127.0.0.1"]
    server = Server("triton", command, environment, folder)
    try:
        for name in ("wide", "minilm"):
            server.wait_until_ready(f"http://127.0.0.1:{http}/v2/models/{name}/ready")
        yield Doors("Triton", server, http, grpc)
    finally:
        server.stop()


def run_round(number: int, model: Model, case: Case, servers: Sequence[Doors], cells: dict[Any, Cell]) -> None:
    """Every server once in one way; who goes first changes by round."""
    order = [(at + number) % len(model.tensors) for at in range(case.requests)]
    start = number % len(servers)
    for doors in [*servers[start:], *servers[:start]]:
        before = doors.server.cpu_seconds()
        done = case.ask(doors, model, order)
        cpu = doors.server.cpu_seconds() - before
        cell = cells.setdefault((model.name, case.name, case.door, doors.label), Cell())
        cell.cpu_ms.append(cpu / case.requests * 1000)
        cell.rates.append(case.requests / done.wall_seconds)
        cell.seconds += done.seconds
        cell.p99s.append(percentile(done.seconds, 0.99))
        cell.client_ms.append(done.cpu_seconds / case.requests * 1000)
        cell.failed += case.requests - sum(_right(case, model, order, answer) for answer in done.answers)


def _right(case: Case, model: Model, order: Sequence[int], answer: load.Answer) -> bool:
    if answer.status != 200:
        return False
    return bool(np.allclose(case.read(answer.body), model.references[order[answer.index]], rtol=1e-3, atol=1e-3))


def rows(cells: dict[Any, Cell], ways: dict[str, list[Case]], servers: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The table; milliseconds."""
    for model, found in ways.items():
        for case in found:
            for label in servers:
                cell = cells[model, case.name, case.door, label]
                yield {
                    "case": f"{model}, {case.name}",
                    "door": f"{label} {case.door}",
                    "requests/s": median(cell.rates),
                    "server CPU-ms": median(cell.cpu_ms),
                    "client CPU-ms": median(cell.client_ms),
                    "p50 ms": percentile(cell.seconds, 0.5) * 1000,
                    "p99 ms": median(cell.p99s) * 1000,
                    "failed": cell.failed,
                    "rounds": [round(value, 3) for value in cell.cpu_ms],
                }


def bars(report: Report, cells: dict[Any, Cell]) -> None:
    """The issue's bar, and the ratios that belong beside it: medians over the rounds of paired ratios."""
    pairs = (
        ("c1, lean", "gRPC", True),
        ("c32, lean", "gRPC, 32 connections", True),
        ("c32, lean", "gRPC, 1 connection", True),
        ("c32, tritonclient", "gRPC", False),
    )
    for model, label in dict.fromkeys((key[0], key[3]) for key in cells):
        for case, door, lean in pairs:
            http, grpc = cells[model, case, "HTTP binary", label], cells[model, case, door, label]
            rate = median([ours / theirs for ours, theirs in zip(grpc.rates, http.rates, strict=True)])
            cpu = median([theirs / ours for ours, theirs in zip(grpc.cpu_ms, http.cpu_ms, strict=True)])
            what = "384 floats" if model == "wide" else "MiniLM, 30 tokens"
            claim = f"{what}, {case}: requests/s of {label}'s {door} over its binary HTTP"
            measured = f"{rate:.2f}x ({cpu:.2f}x by server CPU)"
            if label == "octavo" and model == "wide" and lean:
                report.bar(claim, f">= {LEAST:g}x", measured, rate >= LEAST)
            elif lean or model == "wide":
                report.tell(claim if lean else f"{claim}, client-bound", measured)


def main() -> None:
    """Run everything."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rounds", type=int, default=6)
    options.add_argument("--only", default="", help="the model whose name this is; nothing is written")
    options.add_argument("--without-triton", action="store_true", help="octavo alone; nothing is written")
    given = options.parse_args()
    workspace = octavo_workspace(CACHE / "workspace")
    files = octavo_files(workspace)
    models = [model for model in (wide_model(), minilm_model(files)) if given.only in model.name]
    report = Report("grpc", "python benchmarks/serving/grpc_beside_http.py")
    report.versions = own_versions("octavo", "onnxruntime", "tritonclient", "grpcio", "protobuf", "uvloop", "uvicorn")
    ways = {model.name: cases(model.name) for model in models}
    cells: dict[Any, Cell] = {}
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        os.sched_setaffinity(0, SERVER_CORES)
        servers = [stack.enter_context(octavo(workspace))]
        if not given.without_triton:
            try:
                servers.append(stack.enter_context(tritonserver(files, Path(folder))))
                report.versions |= peer_versions("pytriton", "nvidia-pytriton")
            except CannotRun as problem:
                report.notes.append(f"Triton could not be started: {problem}")
        os.sched_setaffinity(0, LOAD_CORES)
        for number in range(given.rounds + 1):
            for model in models:
                for case in ways[model.name]:  # the first round warms up and is thrown away
                    run_round(number, model, case, servers, cells if number else {})
            print(f"round {number} of {given.rounds} done", flush=True)
    labels = [doors.label for doors in servers]
    report.rows = list(rows(cells, ways, labels))
    report.notes += _notes(given.rounds)
    bars(report, cells)
    report.finish(write=not given.only and not given.without_triton)


def _notes(rounds: int) -> list[str]:
    return [
        f"Medians of {rounds} interleaved rounds. Servers on cores {SERVER_CORES}, load on {LOAD_CORES}; the machine "
        "had other work too, so server CPU-ms per request is the steadier figure.",
        "lean: pre-built bytes, the server limits. tritonclient: unmodified, one process, c1 the synchronous client, "
        "c32 the one for asyncio (gRPC: one channel); its own CPU per request is in the table, and where that is the "
        "larger, the ratio is the client's, not the server's.",
        "Triton's answers come from its Python backend (another process), octavo's from onnxruntime in process: "
        "compare the two protocols of one server, rather than one protocol of two servers.",
        "MiniLM: what the model computes is the same by both protocols, so the ratio by server CPU is the gain; where "
        "the requests/s of the same rounds differ more than that, it is the machine's other work.",
        f"octavo checks a token with every request ({next(iter(AUTHORIZED))}), Triton has none to check.",
    ]


if __name__ == "__main__":
    run(main)
