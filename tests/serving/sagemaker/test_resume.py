"""Work at an endpoint that stops half-way, at any step, is ended by the next look, or the next start."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from octavo.errors import Invalid, NotFound
from octavo.serving.autoscaling.targets import ScalingTarget, targets, write_target
from octavo.serving.inference import InferRequest
from octavo.serving.packaging.deployment import Lease
from octavo.serving.sagemaker import archives, control_plane
from octavo.serving.sagemaker.control_plane import ControlPlane
from octavo.serving.sagemaker.records import (
    ConfigRecord,
    ConfigVariant,
    Container,
    EndpointRecord,
    ModelRecord,
    Records,
    Stored,
)
from octavo.serving.service import Serving

from ...conftest import S3Server
from ..conftest import Open
from ..live import octavo_up
from .conftest import Declared, environment, model_tar, user


class Killed(BaseException):
    """The process ends here."""


@pytest.fixture
async def service(open_serving: Open, tmp_path: Path) -> Serving:
    """A server whose leases are over at once, so that whoever comes next takes the work up."""
    sources = tmp_path / "sources"
    sources.mkdir()
    for factor in (2, 3):
        (sources / f"{factor}.tar.gz").write_bytes(model_tar(factor))
        (sources / f"{factor}").mkdir()
        (sources / f"{factor}/a.tar.gz").write_bytes(model_tar(factor))
    (sources / "bad.tar.gz").write_bytes(b"no archive")
    return await open_serving(tmp_path, model_sources=str(sources), deploy_lease=1e-6)


@pytest.fixture
def plane(service: Serving, tmp_path: Path) -> ControlPlane:
    """Models `m2`, `m3`, `bad`, and archives `many2`, `many3`, each with a configuration of its name."""
    plane = service.sagemaker
    for name in ("m2", "m3", "bad", "many2", "many3"):
        multi = name.startswith("many")
        source = str(tmp_path / "sources" / (name[-1] if multi else f"{name.removeprefix('m')}.tar.gz"))
        container = Container(image="sagemaker-tritonserver", source=source, multi=multi)
        plane.models.create(ModelRecord(name=name, container=container))
        plane.configs.create(ConfigRecord(name=name, variants=(ConfigVariant(name="v", model=name),)))
    return plane


async def create(plane: ControlPlane, name: str, config: str) -> None:
    await plane.create(EndpointRecord(name=name, status="Creating", plan=await plane.plan(config)))


async def update(plane: ControlPlane, name: str, config: str) -> None:
    plan = await plane.plan(config)
    await plane.update(name, lambda _: plan)


async def settled(plane: ControlPlane, name: str) -> Stored[EndpointRecord]:
    while True:
        stored = await plane.look(name)
        if stored.record.status in ("InService", "Failed"):
            return stored
        await asyncio.sleep(0.01)


async def factor(service: Serving, name: str = "e") -> float:
    answer = await service.infer(InferRequest(name, {"x": np.ones((1, 4), np.float32)}))
    return float(answer.outputs["y"][0, 0])


STEPS: dict[str, tuple[Any, str, bool]] = {
    "claimed": (control_plane, "publish", False),
    "published": (control_plane, "label", False),
    "labelled": (Serving, "load", False),
    "loaded": (Serving, "declare_endpoint", False),
    "declared": (control_plane, "unlabel", False),
    "cleaned": (ControlPlane, "_write", True),
}
"""What is called next, when the step named is done; `True`: only to record that it is."""


def kill_at(monkeypatch: pytest.MonkeyPatch, step: str) -> Callable[[], None]:
    """Make the work end there once, as a killed process's would; returns what asserts that it did."""
    owner, name, final = STEPS[step]
    real = getattr(owner, name)
    ended = []

    def stop(*given: Any, **more: Any) -> Any:
        if ended or (final and more.get("status") != "InService"):
            return real(*given, **more)
        ended.append(True)
        raise Killed

    monkeypatch.setattr(owner, name, stop)
    return lambda: None if ended else pytest.fail("the step was not reached")


@pytest.mark.parametrize("step", STEPS)
async def test_killed_while_it_is_made(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    reached = kill_at(monkeypatch, step)
    await create(plane, "e", "m2")
    stored = await settled(plane, "e")
    reached()
    assert (stored.record.status, stored.record.lease) == ("InService", None)
    assert await factor(service) == 2
    assert service.repository.versions("m2") == ["1"]
    assert service.repository.labels("m2") == {"sagemaker.e.1": "1"}


@pytest.mark.parametrize("step", STEPS)
async def test_killed_while_it_is_changed(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await create(plane, "e", "m2")
    await settled(plane, "e")
    reached = kill_at(monkeypatch, step)
    await update(plane, "e", "m3")
    stored = await settled(plane, "e")
    reached()
    assert (stored.record.status, stored.record.plan.config, stored.record.next) == ("InService", "m3", None)
    assert await factor(service) == 3
    assert "sagemaker.e.1" not in service.repository.labels("m2")


async def test_killed_after_the_change_and_then_the_data_is_gone(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    await create(plane, "e", "m2")
    await settled(plane, "e")
    reached = kill_at(monkeypatch, "cleaned")
    await update(plane, "e", "m3")
    while "e" in plane._working:
        await asyncio.sleep(0.01)
    assert await factor(service) == 3
    (tmp_path / "sources/3.tar.gz").unlink()
    stored = await settled(plane, "e")
    reached()
    assert (stored.record.status, stored.record.plan.config) == ("InService", "m2")
    assert "no such file" in stored.record.failure
    assert await factor(service) == 2, "what the record says is what answers"
    assert service.repository.labels("m2")["sagemaker.e.1"] == "1"


@pytest.mark.parametrize("config", ["m2", "many2"])
async def test_killed_while_it_is_taken_away(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch, config: str
) -> None:
    await create(plane, "e", config)
    await settled(plane, "e")
    if config == "many2":
        assert await plane.archives.find("e", "a.tar.gz", "e.a", lambda _: None) == "e.a"
    target = ScalingTarget(endpoint="e", variant="v")
    write_target(service.documents, target, 0)
    with monkeypatch.context() as patched:
        patched.setattr(type(plane.endpoints), "delete", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            await plane.delete("e")
    assert plane.endpoints.get("e").record.status == "Deleting"
    with pytest.raises(Invalid, match="in-progress"):
        await update(plane, "e", "m3")
    while True:
        try:
            await plane.look("e")
        except NotFound:
            break
        await asyncio.sleep(0.01)
    assert targets(service.documents) == []
    assert service.endpoints.find("e") is None
    assert "e.a" not in service.repository.names()
    await create(plane, "e", "m3")
    await settled(plane, "e")
    assert await factor(service) == 3


@pytest.mark.parametrize("step", ["published", "labelled"])
async def test_killed_while_an_archive_is_published(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    await create(plane, "e", "many2")
    await settled(plane, "e")

    async def find() -> str:
        return await plane.archives.find("e", "a.tar.gz", "e.a", lambda _: None)

    with monkeypatch.context() as patched:
        owner, name = (archives, "label") if step == "published" else (Records, "write")
        real = getattr(owner, name)

        def stop(*given: Any) -> Any:
            if step == "labelled" and given[1].release is None:
                return real(*given)
            raise Killed

        patched.setattr(owner, name, stop)
        with pytest.raises(Killed):
            await find()
    assert service.repository.versions("e.a") == ["1"]
    assert await find() == "e.a"
    assert service.repository.versions("e.a") == ["1"]
    assert await factor(service, "e.a") == 2
    await plane.delete("e")
    assert "e.a" not in service.repository.names()


async def test_an_archive_that_was_never_finished_goes_too(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create(plane, "e", "many2")
    await settled(plane, "e")
    with monkeypatch.context() as patched:
        patched.setattr(archives, "label", lambda *_: (_ for _ in ()).throw(Killed()))
        with pytest.raises(Killed):
            await plane.archives.find("e", "a.tar.gz", "e.a", lambda _: None)
    await plane.delete("e")
    assert "e.a" not in service.repository.names()
    assert service.documents.list("sagemaker-archive") == []


async def test_archives_that_are_refused_leave_nothing(plane: ControlPlane, service: Serving, tmp_path: Path) -> None:
    (tmp_path / "sources/2/bad.tar.gz").write_bytes(b"no archive")
    await create(plane, "e", "many2")
    await settled(plane, "e")
    for target in ("none.tar.gz", "bad.tar.gz"):
        with pytest.raises((Invalid, NotFound)):
            await plane.archives.find("e", target, f"e.{target.partition('.')[0]}", lambda _: None)
    assert service.documents.list("sagemaker-archive") == []
    assert service.repository.names() == []


async def test_a_change_at_the_very_end_of_work_is_not_missed(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    service._settings.deploy_lease = 60.0
    asked = []
    real = plane._write

    async def write(stored: Stored[EndpointRecord], **changes: Any) -> Stored[EndpointRecord]:
        written = await real(stored, **changes)
        if changes.get("status") == "InService":
            asked.append(asyncio.ensure_future(plane.delete("e")))
            while "e" not in plane._wanted:
                await asyncio.sleep(0.01)
        return written

    monkeypatch.setattr(plane, "_write", write)
    await create(plane, "e", "m2")
    while not asked:
        await asyncio.sleep(0.01)
    await asked[0]
    with pytest.raises(NotFound):
        plane.endpoints.get("e")


async def test_who_was_taken_for_dead_touches_nothing(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Serving.load

    async def late(self: Serving, *given: Any) -> None:
        await real(self, *given)
        stored = plane.endpoints.get("e")
        another = Lease(host="another", pid=1, started=1.0, until=2e10)
        plane.endpoints.write(stored.record.model_copy(update={"lease": another}), stored.revision)

    monkeypatch.setattr(Serving, "load", late)
    await create(plane, "e", "m2")
    while plane._working:
        await asyncio.sleep(0.01)
    stored = plane.endpoints.get("e")
    assert (stored.record.status, stored.record.lease and stored.record.lease.host) == ("Creating", "another")
    assert service.endpoints.find("e") is None


async def test_others_leave_work_alone_that_is_being_done(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    service._settings.deploy_lease = 60.0
    loading, go = asyncio.Event(), asyncio.Event()

    async def wait(*_: Any) -> None:
        loading.set()
        await go.wait()

    monkeypatch.setattr(Serving, "load", wait)
    await create(plane, "e", "m2")
    await loading.wait()
    held = plane.endpoints.get("e")
    assert not held.record.left
    with pytest.raises(Invalid, match="in-progress"):
        await plane.delete("e")
    with pytest.raises(Invalid, match="already existing"):
        await create(plane, "e", "m2")
    plane.tags.change("endpoint", "e", {"a": "b"})
    await plane.look("e")
    assert plane.endpoints.get("e").revision == held.revision
    go.set()
    assert (await settled(plane, "e")).record.status == "InService"


async def test_a_server_that_closes_gives_its_work_back(
    plane: ControlPlane, service: Serving, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading = asyncio.Event()

    async def hang(*_: Any) -> None:
        loading.set()
        await asyncio.Event().wait()

    with monkeypatch.context() as patched:
        patched.setattr(Serving, "load", hang)
        await create(plane, "e", "m2")
        await loading.wait()
        await plane.close()
    assert plane.endpoints.get("e").record.lease is None
    await plane.resume()
    assert (await settled(plane, "e")).record.status == "InService"


@pytest.fixture
def silent_s3() -> Iterator[str]:
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        kept: list[socket.socket] = []
        thread = threading.Thread(target=_take, args=(listener, kept), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
        for connection in kept:
            connection.close()


def _take(listener: socket.socket, kept: list[socket.socket]) -> None:
    while True:
        try:
            kept.append(listener.accept()[0])
        except OSError:
            return


def test_kill_9_and_the_next_start(tmp_path: Path, s3_server: S3Server, silent_s3: str) -> None:
    bucket = s3_server.bucket()
    s3_server.client().put_object(Bucket=bucket, Key="m.tar.gz", Body=model_tar(2))
    settings = environment(s3_server, tmp_path)
    with octavo_up(tmp_path / "w", **settings | {"OCTAVO_STORAGE__S3_ENDPOINT": silent_s3}) as up:
        ann = user(up, "ann", "editor")
        declared = Declared(ann.client("sagemaker"), None)
        declared.model("m", f"s3://{bucket}/m.tar.gz")
        declared.config("m", "m")
        declared.sagemaker.create_endpoint(EndpointName="m", EndpointConfigName="m")
        os.kill(up.pid, signal.SIGKILL)
    with octavo_up(tmp_path / "w", **settings) as up:
        again = user(up, "bob", "editor")
        declared = Declared(again.client("sagemaker"), again.client("sagemaker-runtime"))
        assert declared.settled("m")["EndpointStatus"] == "InService"
        assert declared.ask("m") == 2
