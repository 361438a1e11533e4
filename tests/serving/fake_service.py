"""A serving service without models, and a real HTTP server around it: what the protocols' tests talk to."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import uvicorn
from starlette.applications import Starlette

from octavo.access import ANONYMOUS, Grant, Principal
from octavo.errors import Busy, Conflict, DeadlineExceeded, NotFound, OctavoError, OutOfMemory, Unavailable
from octavo.serving.inference import InferAnswer, InferRequest, ModelMetadata
from octavo.serving.model_config import ModelConfig
from octavo.serving.resident import Counters
from octavo.serving.routes import routes
from octavo.serving.snapshots import ModelStatus, ResidencySnapshot, ResidentModel
from octavo.serving.statistics import ModelStatistics
from octavo.serving.tensors import TensorSpec
from octavo.settings import Settings, WebSettings
from octavo.web.body import BodyLimit
from octavo.web.connection import limited
from octavo.web.front_door import FrontDoor

DIMENSIONS = 8
PRINCIPALS = {
    "admin-token": Principal("ada", "user", (Grant("admin"),)),
    "viewer-token": Principal("vic", "user", (Grant("viewer", "models/mini*"),)),
}


class FakeRepository:
    """One model `minilm` of two versions."""

    def __init__(self) -> None:
        self.default = "2"

    def config(self, name: str, version: str = "") -> ModelConfig:
        if name != "minilm":
            raise NotFound("no such model", name)
        return ModelConfig(
            name=name, backend="onnxruntime", max_batch_size=8, inputs=(TensorSpec("text", "BYTES", (1,)),)
        )

    def set_label(self, name: str, label: str, version: str) -> None:
        if version not in ("1", "2"):
            raise NotFound(f"there is no version {version!r}", name)
        self.default = version

    def roll_back(self, name: str) -> str:
        if self.default == "1":
            raise Conflict("there is no version before 1", name)
        self.default = "1"
        return "1"

    def roll_forward(self, name: str) -> str:
        self.default = "2"
        return "2"


class NoEndpoints:
    """Models only."""

    def all(self) -> list[object]:
        return []


class FakeServing:
    """Answers as its models' names say: `minilm` embeds, `echo` repeats its inputs, `slow` takes its time, ..."""

    def __init__(self) -> None:
        self.repository = FakeRepository()
        self.endpoints = NoEndpoints()
        self.asked: list[InferRequest] = []
        self.loaded: set[str] = set()
        self.pinned: set[str] = set()
        self.cancelled = threading.Event()
        self.started = threading.Event()
        self.busy_left = 1

    async def infer(self, request: InferRequest) -> InferAnswer:
        self.asked.append(request)
        self._refuse(request.model)
        if request.model == "slow":
            self.started.set()
            try:
                await asyncio.sleep(30)
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        if request.model == "minilm":
            outputs, usage = {"embedding": self._embed(request)}, 7
        else:
            outputs, usage = dict(request.inputs), 0
        kept = {name: array for name, array in outputs.items() if name in (request.outputs or outputs)}
        return InferAnswer(request.model, request.version or self.repository.default, kept, request.id, usage=usage)

    async def use_version(self, name: str, version: str) -> str:
        if version == "newest":
            return self.repository.roll_forward(name)
        self.repository.set_label(name, "default", version)
        return version

    async def set_label(self, name: str, label: str, version: str) -> None:
        self.labelled = (name, label, version)

    async def roll_back(self, name: str) -> str:
        return self.repository.roll_back(name)

    async def roll_forward(self, name: str) -> str:
        return self.repository.roll_forward(name)

    def _refuse(self, model: str) -> None:
        refusals: dict[str, OctavoError] = {
            "unknown": NotFound("no such model", model),
            "huge": OutOfMemory("the model takes 9 MiB, the budget is 1 MiB", model),
            "late": DeadlineExceeded("not in time", model),
            "full": Busy("the queue is full", model, retry_after=2.4),
            "away": Unavailable("the model failed to load", model, retry_after=5),
        }
        if model in refusals:
            raise refusals[model]
        if model == "once-busy" and self.busy_left:
            self.busy_left -= 1
            raise Busy("the queue is full", model, retry_after=0.1)

    def _embed(self, request: InferRequest) -> np.ndarray:
        if "text" in request.inputs:
            lengths = [len(text) for text in request.inputs["text"].ravel()]
        else:
            lengths = list(request.inputs["attention_mask"].sum(axis=1))
        base = np.arange(1, DIMENSIONS + 1, dtype=np.float32)
        rows = np.stack([base + np.float32(length) for length in lengths])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    async def load(self, name: str, version: str = "") -> None:
        self._refuse(name)
        self.loaded.add(name)

    async def unload(self, name: str, version: str = "") -> None:
        if name not in self.loaded:
            raise NotFound("the model is not in memory", name)
        self.loaded.discard(name)

    async def pin(self, name: str, pinned: bool = True) -> None:
        (self.pinned.add if pinned else self.pinned.discard)(name)

    async def metadata(self, name: str, version: str = "") -> ModelMetadata:
        self._refuse(name)
        inputs = (TensorSpec("text", "BYTES", (-1, 1)),)
        return ModelMetadata(
            name, ("1", "2"), "onnxruntime", inputs, (TensorSpec("embedding", "FP32", (-1, DIMENSIONS)),)
        )

    def ready(self, name: str, version: str = "") -> bool:
        return name in ("minilm", "echo")

    async def index(self) -> list[ModelStatus]:
        return [
            ModelStatus("minilm", "2", "READY", "", True, 1024, "minilm" in self.pinned, True),
            ModelStatus("broken", "1", "UNAVAILABLE", "not an ONNX file", False, 0, False, True),
        ]

    def statistics(self, name: str = "", version: str = "") -> list[ModelStatistics]:
        found = ModelStatistics(name or "minilm", "2")
        found.record_batch(rows=3, tokens=30, longest=12, waited=0.5, computed=0.25)
        found.record_request(0.75, failed=False)
        return [found]

    async def measure(self):
        return self.residency()

    def residency(self) -> ResidencySnapshot:
        model = ResidentModel("minilm", "2", "READY", "full", 1024, "", False, 0, 0.5, 0.1)
        return ResidencySnapshot(4096, 1024, (model,), {}, Counters(hits=3, colds=1), 0)


class TokenIdentity:
    """Stands for the house's own: a principal by bearer token."""

    def __init__(self, inside) -> None:
        self.inside = inside

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "http":
            token = dict(scope["headers"]).get(b"authorization", b"").removeprefix(b"Bearer ").decode()
            scope.setdefault("state", {})["principal"] = PRINCIPALS.get(token, ANONYMOUS)
        await self.inside(scope, receive, send)


def fake_app(service: FakeServing, settings: Settings):
    """The ASGI app: the real routes behind the house's front door, with a fake service."""
    web = settings.web
    inside = TokenIdentity(Starlette(routes=routes(service, settings)))
    return FrontDoor(BodyLimit(inside, web.max_body, web.body_timeout))


def small_settings(**web: object) -> Settings:
    """Limits that a test can reach."""
    return Settings(web=WebSettings(**({"max_body": 200_000, "body_timeout": 1.0} | web)))


@contextmanager
def serve(app) -> Iterator[str]:
    """The app on a free port of this machine, in a thread; yields `127.0.0.1:port`."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=limited(1000, 5), log_level="error", lifespan="off", proxy_headers=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    give_up = time.monotonic() + 10
    while not server.started:
        assert time.monotonic() < give_up, "the server did not start"
        time.sleep(0.01)
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)
