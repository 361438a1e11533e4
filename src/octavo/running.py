"""`<workspace>/run/server.json`: how commands find the running server; and the lock that keeps it the only one."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from octavo.errors import Conflict, Invalid
from octavo.settings import Settings
from octavo.storage.atomic import write_atomic


@dataclass(frozen=True, slots=True)
class Running:
    """A running server: its address, process id, an admin token that ends with it, and its gRPC address or nothing."""

    url: str
    pid: int
    token: str
    grpc: str = ""


def find_running(settings: Settings) -> Running | None:
    """The server of this workspace, when one is running."""
    file = _file(settings)
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        running = Running(str(values["url"]), int(values["pid"]), str(values["token"]), str(values.get("grpc", "")))
    except (OSError, ValueError, KeyError, TypeError):
        return None  # none was started, or it is just starting or stopping
    return running if _locked(settings) else None


@contextmanager
def only_one(settings: Settings) -> Iterator[None]:
    """Be the workspace's only server inside the block. The lock is the kernel's: it ends with the process, however.

    Raises:
        Conflict: another server has this workspace; names its process id.
    """
    try:
        settings.run_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        handle = os.open(_lock(settings), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise Invalid(
            f"the workspace cannot be written: {error.strerror}", str(settings.workspace), "Choose a folder of yours."
        ) from None
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(handle, 32, 0).decode("ascii", "replace").strip() or "unknown"
            raise Conflict(
                f"a server is running on this workspace already, process {pid}",
                str(settings.workspace),
                f"Use it (`octavo status`), stop it (`kill {pid}`), or take another workspace.",
            ) from None
        os.ftruncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)


@contextmanager
def announced(settings: Settings, running: Running) -> Iterator[None]:
    """Have `server.json` (mode 0600) tell of `running` inside the block."""
    file = _file(settings)
    write_atomic(file, json.dumps(asdict(running)).encode(), mode=0o600)
    try:
        yield
    finally:
        with suppress(FileNotFoundError):  # somebody tidied up before us
            file.unlink()


def _locked(settings: Settings) -> bool:
    try:
        handle = os.open(_lock(settings), os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _file(settings: Settings) -> Path:
    return settings.run_folder / "server.json"


def _lock(settings: Settings) -> Path:
    return settings.run_folder / "server.lock"
