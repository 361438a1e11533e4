"""What tests of several wings share: databases, an S3 server, a browser, the data folder."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from octavo.settings import StorageSettings
from octavo.storage import Database

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of test data beside the repository."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the shared data folder is not beside the repository")
    return folder


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _postgres_programs() -> Path:
    found = shutil.which("initdb")
    if found:
        return Path(found).parent
    versions = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not versions:
        pytest.skip("no PostgreSQL server is installed (initdb not found)")
    return versions[-1].parent


def _as_postgres() -> dict[str, Any]:
    """PostgreSQL refuses to run as root; Debian's package brings a user for it."""
    if os.geteuid() != 0:
        return {}
    try:
        entry = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("running as root, and there is no user postgres to run PostgreSQL as")
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of our own, empty, without fsync; the URL of its database `postgres`."""
    pytest.importorskip("psycopg")
    programs, identity = _postgres_programs(), _as_postgres()
    with tempfile.TemporaryDirectory(prefix="octavo-pg-", ignore_cleanup_errors=True) as name:
        if identity:
            os.chown(name, identity["user"], identity["group"])
        data = f"{name}/data"
        options = {"cwd": name, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **identity}
        subprocess.run(
            [programs / "initdb", "-D", data, "-U", "octavo", "-A", "trust", "-N", "-E", "UTF8", "--locale=C"],
            check=True,
            **options,
        )
        port = free_port()
        settings = ["fsync=off", "full_page_writes=off", "synchronous_commit=off", "max_connections=60"]
        server = subprocess.Popen(
            [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", name]
            + [part for setting in settings for part in ("-c", setting)],
            **options,
        )
        try:
            url = f"postgresql://octavo@127.0.0.1:{port}/postgres"
            _wait_for_postgres(url, server)
            yield url
        finally:
            server.send_signal(3)  # SIGQUIT: immediate shutdown
            server.wait(timeout=30)


def _wait_for_postgres(url: str, server: subprocess.Popen[bytes]) -> None:
    import psycopg

    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(url, connect_timeout=5).close()
            return
        except psycopg.OperationalError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.05)


@contextlib.contextmanager
def _new_postgres_database(server_url: str) -> Iterator[str]:
    import psycopg

    name = f"t_{uuid.uuid4().hex[:12]}"
    with psycopg.connect(server_url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[arg-type]
        try:
            yield server_url.rpartition("/")[0] + "/" + name
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[arg-type]


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a new, empty database: every test using it runs on SQLite and on PostgreSQL."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'rows.db'}"
        return
    with _new_postgres_database(request.getfixturevalue("postgres_url")) as url:
        yield url


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    """A database with the newest schema, on SQLite and on PostgreSQL."""
    database = Database(database_url)
    database.upgrade()
    yield database
    database.close()


@dataclass(frozen=True)
class S3Server:
    """An S3 server on this machine."""

    endpoint: str

    @property
    def settings(self) -> StorageSettings:
        """Storage settings that reach it."""
        return StorageSettings(s3_endpoint=self.endpoint, s3_access_key="test", s3_secret_key="test-secret")

    def client(self) -> Any:
        """A boto3 client of it."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test-secret",
        )

    def bucket(self) -> str:
        """The name of a new bucket."""
        name = f"bucket-{uuid.uuid4().hex[:12]}"
        self.client().create_bucket(Bucket=name)
        return name


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    """Moto's S3 server on a free port."""
    server_module = pytest.importorskip("moto.server")
    port = free_port()
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=port, verbose=False)
    server.start()
    try:
        yield S3Server(f"http://127.0.0.1:{port}")
    finally:
        server.stop()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, one per file: Playwright holds the event loop."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        arguments = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        found = playwright.chromium.launch(executable_path=chromium, args=arguments)
        yield found
        found.close()
