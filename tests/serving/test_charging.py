"""What models are charged, against what the kernel says the process holds; each test in a process of its own."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from octavo.serving.repository import Repository
from octavo.settings import load_settings

from .live import clean_environment
from .served_models import BATCHED, put, weights

MEASURE = """
import asyncio, json, sys
import numpy as np
from octavo.serving.inference import InferRequest
from octavo.serving.memory import give_back_freed, pss_bytes
from octavo.serving.service import Serving
from octavo.settings import load_settings

async def main(workspace, names, cache):
    serving = await Serving.open(load_settings(workspace, serving={"cache": cache, "memory_budget": 2 << 30}))
    text = np.array([b"where is my order"], dtype=object)

    async def ask(name):
        inputs = {"text": text} if "minilm" in name or "copy" in name else {"x": np.ones((1, 1024), dtype=np.float32)}
        await serving.infer(InferRequest(name, inputs))

    async def settled():
        await asyncio.sleep(1.2)
        await serving._residency.measure()
        give_back_freed()
        return {"pss": pss_bytes(), "charged": serving.residency().charged_bytes}

    await ask("warm")  # engine and arena, which no model is charged for
    await serving.unload("warm")
    looks = [await settled()]
    for name in names:
        await ask(name)
        await serving.load(name)
        if name in (names[0], names[-1]):
            looks.append(await settled())
    snapshot = serving.residency()
    for name in names:
        await serving.unload(name)
    looks.append(await settled())
    shared = list(snapshot.shared.values())
    print(json.dumps({"looks": looks, "own": [model.bytes for model in snapshot.models], "shared": shared}))
    await serving.close()

asyncio.run(main(sys.argv[1], sys.argv[2].split(","), sys.argv[3]))
"""


def measure(workspace: Path, names: list[str], cache: Path) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(workspace), ",".join(names), str(cache)],
        capture_output=True, text=True, timeout=150, env=clean_environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_copies_of_one_model_share_their_weights(minilm_repository: Path, tmp_path: Path) -> None:
    put(minilm_repository / "models", "warm", weights(1024), BATCHED)
    settings = load_settings(minilm_repository)
    repository = Repository.open(settings.repository_url, settings)
    names = ["minilm", *(f"copy-{number}" for number in range(19))]
    for name in names[1:]:
        repository.copy("minilm", name)
    found = measure(minilm_repository, names, tmp_path / "cache")  # another process would share the pages, and the PSS
    before, one, twenty, after = found["looks"]
    grown = twenty["pss"] - before["pss"]
    assert abs(twenty["charged"] - grown) < 0.1 * grown, found
    assert grown < 4 * (one["pss"] - before["pss"]), found  # far below twenty times
    assert len(found["shared"]) == 1
    assert found["shared"][0] > 20 * 2**20  # what was read of the weights of MiniLM, once
    assert max(found["own"]) < 16 * 2**20  # the first of them with the tokenizer
    kept = after["pss"] - before["pss"]  # by the allocator, and charged
    assert kept < 0.4 * grown, found
    assert abs(after["charged"] - kept) < 0.1 * grown, found


def test_models_of_their_own_are_charged_what_they_hold(tmp_path: Path, session_folder: Path) -> None:
    put(tmp_path / "models", "warm", weights(1024, 99), BATCHED)
    names = [f"m{number}" for number in range(12)]
    for number, name in enumerate(names):
        put(tmp_path / "models", name, weights(1024, number), BATCHED)  # 4 MiB each
    found = measure(tmp_path, names, session_folder / "cache")
    before, _, twelve, after = found["looks"]
    grown = twelve["pss"] - before["pss"]
    assert grown > 40 * 2**20, found
    assert abs(twelve["charged"] - before["charged"] - grown) < 0.1 * grown, found
    assert after["pss"] - before["pss"] < 0.3 * grown, found  # gone, but for what the allocator keeps
