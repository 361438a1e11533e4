"""One suite for all clients: the same questions, refusals and streams through each, against one running server.

    python benchmarks/serving/conformance.py

`tests/serving/test_conformance.py` runs the same checks in the test command.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from clients import BAD, CLIENTS, STRANGER, UNKNOWN, Array, Client, Doors
from contenders import TOKEN, octavo_server, octavo_workspace
from harness import CACHE, Report, free_port, octavo_command, own_versions, run

TEXTS = (
    "where is my order?",
    "I want a refund",
    "注文はどこですか",
    "naïve café – 50 % off 🎉",
    " ",
    "word " * 400,
)
COLD = "double"
ENDPOINT = "front"


class Lacks(Exception):
    """The client's protocol has no such thing; the message says what."""


@dataclass(frozen=True)
class World:
    """The server that is asked: models `minilm` and `double` (y = 2 x, width 4), an endpoint `front` onto minilm.

    `expected` are the embeddings of `TEXTS`; `unload` sends a model out of memory; `max_inputs` is the server's limit.
    """

    doors: Doors
    expected: Array
    unload: Callable[[str], None]
    max_inputs: int


def embeddings(client: Client, world: World) -> str:
    """Texts of every kind, one by one and together."""
    together = client.embed("minilm", TEXTS)
    alone = np.concatenate([client.embed("minilm", [text]) for text in TEXTS])
    _same(together, world.expected)
    _same(alone, world.expected)
    return f"{len(TEXTS)} texts"


def many_at_once(client: Client, world: World) -> str:
    """Clients in eight threads; each answer belongs to its question."""
    asked = [number % len(TEXTS) for number in range(64)]
    made = [type(client)(world.doors) for _ in range(8)]  # type: ignore[call-arg]

    def ask(worker: int) -> None:
        for number in asked[worker::8]:
            _same(made[worker].embed("minilm", [TEXTS[number]]), world.expected[[number]])

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(8)))
    for one in made:
        one.close()
    return f"{len(asked)} requests"


def endpoint(client: Client, world: World) -> str:
    """The name of an endpoint in the place of a model's."""
    _same(client.embed(ENDPOINT, TEXTS[:2]), world.expected[:2])
    return ENDPOINT


def tensors(client: Client, world: World) -> str:
    """Numbers in, numbers out, of a model that is not in memory."""
    compute = getattr(client, "compute", None)
    if compute is None:
        raise Lacks("embeddings only")
    world.unload(COLD)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(compute(COLD, x), 2 * x)
    return "loaded on demand"


def streaming(client: Client, world: World) -> str:
    """A stream of answers, in order and whole."""
    stream = getattr(client, "stream", None)
    if stream is None:
        raise Lacks("no streams of tensors or embeddings in this protocol")
    batches = [np.full((1 + number % 3, 4), number, np.float32) for number in range(20)]
    answers = list(stream(COLD, batches))
    for batch, answer in zip(batches, answers, strict=True):
        np.testing.assert_allclose(answer, 2 * batch)
    return f"{len(answers)} answers"


def unknown_model(client: Client, world: World) -> str:
    """A name that is not there."""
    return _refused(client, UNKNOWN, lambda: client.embed("nothing", ["a"]))


def wrong_model(client: Client, world: World) -> str:
    """Texts for a model that takes numbers."""
    return _refused(client, BAD, lambda: client.embed(COLD, ["a"]))


def too_many_inputs(client: Client, world: World) -> str:
    """One text more than a request may have."""
    return _refused(client, BAD, lambda: client.embed("minilm", ["a"] * (world.max_inputs + 1)))


def wrong_credentials(client: Client, world: World) -> str:
    """A secret that nobody was given."""
    stranger = type(client)(world.doors.wrong())  # type: ignore[call-arg]
    try:
        return _refused(stranger, STRANGER, lambda: stranger.embed("minilm", ["a"]))
    finally:
        stranger.close()


def usable_after_errors(client: Client, world: World) -> str:
    """After all of these the same connections answer."""
    for name in ("nothing", COLD):
        try:
            client.embed(name, ["a"])
        except Exception as error:
            assert client.refusal(error), repr(error)
    _same(client.embed("minilm", TEXTS[:1]), world.expected[:1])
    return "answers"


CHECKS: tuple[Callable[[Client, World], str], ...] = (
    embeddings,
    many_at_once,
    endpoint,
    tensors,
    streaming,
    unknown_model,
    wrong_model,
    too_many_inputs,
    wrong_credentials,
    usable_after_errors,
)
"""Each returns what it saw; raises `Lacks`, or whatever is wrong."""


def _same(found: Array, expected: Array) -> None:
    np.testing.assert_allclose(found, expected, atol=2e-5)


def _refused(client: Client, reason: str, ask: Callable[[], object]) -> str:
    try:
        ask()
    except Exception as error:
        assert client.refusal(error) == reason, f"{client.words(error)} is not a {reason}: {error}"
        return client.words(error)
    raise AssertionError(f"answered, and should have been refused: {reason}")


@contextmanager
def world_of(workspace: Path) -> Iterator[World]:
    """A server for the suite on a workspace that has MiniLM; the model `double` is added."""
    from octavo.serving.client import Client as OwnClient
    from octavo.settings import load_settings

    add_double(workspace)
    access_key, secret_key = aws_credentials(workspace)
    grpc_port = free_port()
    with octavo_server(workspace, {"OCTAVO_SERVING__GRPC_PORT": str(grpc_port)}) as (_, port):
        doors = Doors(f"http://127.0.0.1:{port}", f"127.0.0.1:{grpc_port}", TOKEN, access_key, secret_key)
        with OwnClient(doors.url, token=TOKEN) as own:
            own.set_endpoint(ENDPOINT, {"variants": [{"name": "a", "model": "minilm"}]})
            expected = np.concatenate([own.embed([text], model="minilm") for text in TEXTS])
            yield World(doors, expected, own.unload, load_settings(workspace).serving.max_inputs)


def add_double(workspace: Path) -> None:
    """Publish `double`."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    folder = workspace / "models" / COLD
    if folder.exists():
        return
    two = numpy_helper.from_array(np.array(2, np.float32), "two")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Mul", ["x", "two"], ["y"])], "g", values[:1], values[1:], [two])
    (folder / "1").mkdir(parents=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), folder / "1/model.onnx")
    (folder / "config.pbtxt").write_text('backend: "onnxruntime"\nmax_batch_size: 8\n')


def aws_credentials(workspace: Path) -> tuple[str, str]:
    """Access key and secret of a user of the workspace who may do everything."""

    def told(*words: str) -> Any:
        command = [*octavo_command(), "users", *words, "--workspace", str(workspace), "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        return json.loads(done.stdout) if done.returncode == 0 else None

    told("add", "conformance", "--role", "admin")
    made = told("key-add", "conformance")
    return made["aws"]["access_key_id"], made["aws"]["secret_access_key"]


def main() -> None:
    """Run every check with every client; the table says what each saw."""
    report = Report("conformance", "python benchmarks/serving/conformance.py")
    report.versions = own_versions("octavo", "boto3", "tritonclient", "openai", "grpcio")
    passed = 0
    with world_of(octavo_workspace(CACHE / "workspace")) as world:
        made: list[Client] = [kind(world.doors) for kind in CLIENTS]
        for check in CHECKS:
            row: dict[str, Any] = {"check": check.__name__.replace("_", " ")}
            for client in made:
                try:
                    row[client.name] = check(client, world)
                    passed += 1
                except Lacks as lack:
                    row[client.name] = f"({lack})"
                    passed += 1
                except Exception as error:
                    row[client.name] = f"FAILS: {error!r}"[:200]
            report.rows.append(row)
        for client in made:
            client.close()
    total = len(CHECKS) * len(CLIENTS)
    report.bar(
        "boto3, tritonclient HTTP and gRPC, openai pass one suite", "all", f"{passed} of {total}", passed == total
    )
    report.finish()


if __name__ == "__main__":
    run(main)
