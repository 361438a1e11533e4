"""What replicas get of the front's settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from octavo.serving.fleet.replica import settings_for_replicas, settings_of_replica
from octavo.settings import Settings, load_settings


def replica(settings: Settings) -> Settings:
    return settings_of_replica(settings_for_replicas(settings), Path("/scratch/r1"))


def test_places_are_the_fronts_wherever_the_replica_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    storage = {"database": "sqlite:///rows.db"}
    sent = settings_for_replicas(load_settings(tmp_path / "w", serving={"repository": "models"}, storage=storage))
    monkeypatch.chdir("/")
    found = settings_of_replica(sent, Path("/scratch/r1"))
    assert found.repository_url == str(tmp_path / "models")
    assert found.database_url == f"sqlite:///{tmp_path}/rows.db"
    assert found.cache_folder == tmp_path / "w" / "cache"
    assert found.workspace == Path("/scratch/r1"), "pins are its own"


def test_s3_and_a_database_server_are_left_as_they_are(tmp_path: Path) -> None:
    url = "postgresql://octavo@db/octavo"
    found = replica(load_settings(tmp_path, serving={"repository": "s3://b/models"}, storage={"database": url}))
    assert (found.repository_url, found.database_url) == ("s3://b/models", url)


def test_the_admin_token_stays_with_the_front_and_a_replica_is_no_front(tmp_path: Path) -> None:
    found = replica(load_settings(tmp_path, token="secret-of-the-admin", fleet={"ray": "auto"}))
    assert found.token.get_secret_value() == ""
    assert found.fleet.ray == ""


def test_threads_and_budget_are_a_replicas_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("octavo.serving.fleet.replica.available_bytes", lambda: 1000)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    found = replica(load_settings(tmp_path, fleet={"replica_cpus": 2}))
    assert (found.serving.threads, found.serving.memory_budget) == (2, 125), "half of the node, for four replicas"
    found = replica(load_settings(tmp_path, fleet={"replica_cpus": 0.5, "max_replicas": 2}))
    assert (found.serving.threads, found.serving.memory_budget) == (1, 250)
    found = replica(load_settings(tmp_path, fleet={"replica_memory": "1MiB"}, serving={"threads": 3}))
    assert (found.serving.threads, found.serving.memory_budget) == (3, 2**20)
