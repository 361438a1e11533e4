"""The suite that all clients pass against one server, against a fleet of two replicas."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from ..live import Up, octavo_up
from ..served_models import link_models, publish_tiny_models
from ..test_conformance import client, test_every_client, world

__all__ = ["client", "test_every_client", "world"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed: pip install 'octavo[ray]'"),
]


@pytest.fixture(scope="module")
def live_server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path, minilm_models: Path) -> Iterator[Up]:
    """`octavo up --ray local` with the real embedding models and the tiny ones."""
    workspace = tmp_path_factory.mktemp("fleet") / "workspace"
    link_models(minilm_models, workspace / "models")
    publish_tiny_models(workspace / "models")
    given = {"OCTAVO_FLEET__MIN_REPLICAS": "2", "OCTAVO_FLEET__OBJECT_STORE": "90MiB"}
    with octavo_up(workspace, "--ray", "local", OCTAVO_SERVING__CACHE=str(session_folder / "cache"), **given) as up:
        yield up
