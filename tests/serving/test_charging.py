"""What models are charged, against what the kernel says the process holds; each test in a process of its own."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from octavo.serving.charging import OwnSize
from octavo.serving.memory import anonymous_bytes, mapped_files
from octavo.serving.repository import Repository
from octavo.settings import load_settings

from .live import clean_environment
from .served_models import BATCHED, put, weights

MEASURE = """
import asyncio, json, sys
import numpy as np
import psutil
from octavo.serving.inference import InferRequest
from octavo.serving.memory import give_back_freed
from octavo.serving.service import Serving
from octavo.settings import load_settings

def held():
    # PSS, but of programs RSS: what other processes share of them comes and goes
    maps = psutil.Process().memory_maps(grouped=True)
    return sum(one.rss if ".so" in one.path or "/bin/python" in one.path else one.pss for one in maps)

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
        return {"held": held(), "charged": serving.residency().charged_bytes}

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


def test_what_other_programs_share_is_not_charged() -> None:
    import onnxruntime  # noqa: F401  (its library is tens of MiB)

    before = mapped_files().total
    program = "import onnxruntime, tokenizers, sys; print(1, flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        beside = mapped_files().total
        other.stdin.close()
        other.wait(20)
    assert before > 20 * 2**20
    assert abs(beside - before) < 2**20
    assert abs(mapped_files().total - before) < 2**20


def test_mapped_data_is_charged_and_a_private_copy_is_heap(tmp_path: Path) -> None:
    file = tmp_path / "weights.bin"
    file.write_bytes(bytes(8 * 2**20))
    before, heap = mapped_files().total, anonymous_bytes()
    with file.open("r+b") as stream, mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE) as weights:
        assert sum(weights[:: mmap.PAGESIZE]) == 0
        assert abs(mapped_files().total - before - 8 * 2**20) < 2**20
        assert mapped_files().data[os.path.realpath(tmp_path)] == 8 * 2**20
        weights[: 4 * 2**20] = bytes(4 * 2**20)
        assert abs(mapped_files().total - before - 4 * 2**20) < 2**20
        assert anonymous_bytes() - heap > 3 * 2**20
    assert abs(mapped_files().total - before) < 2**20


def test_the_first_look_at_a_size_gives_way_to_later_ones() -> None:
    size = OwnSize()
    size.see(12 * 2**20)
    assert size.mean == 12 * 2**20
    for grown in (2**20, 3 * 2**20, -(2**20), 1 * 2**20):
        size.see(grown)
    assert size.mean == 2**20


def test_copies_of_one_model_share_their_weights(minilm_repository: Path, tmp_path: Path) -> None:
    put(minilm_repository / "models", "warm", weights(1024), BATCHED)
    settings = load_settings(minilm_repository)
    repository = Repository.open(settings.repository_url, settings)
    names = ["minilm", *(f"copy-{number}" for number in range(19))]
    for name in names[1:]:
        repository.copy("minilm", name)
    found = measure(minilm_repository, names, tmp_path / "cache")  # another process would share the pages, and the PSS
    before, one, twenty, after = found["looks"]
    grown = twenty["held"] - before["held"]
    assert abs(twenty["charged"] - grown) < 0.1 * grown, found
    assert grown < 4 * (one["held"] - before["held"]), found  # far below twenty times
    assert len(found["shared"]) == 1
    assert found["shared"][0] > 20 * 2**20  # what was read of the weights of MiniLM, once
    assert max(found["own"]) < 16 * 2**20  # the first of them with the tokenizer
    kept = after["held"] - before["held"]  # by the allocator, and charged
    assert kept < 0.4 * grown, found
    assert abs(after["charged"] - kept) < 0.1 * grown, found


def test_models_of_their_own_are_charged_what_they_hold(tmp_path: Path, session_folder: Path) -> None:
    put(tmp_path / "models", "warm", weights(1024, 99), BATCHED)
    names = [f"m{number}" for number in range(12)]
    for number, name in enumerate(names):
        put(tmp_path / "models", name, weights(1024, number), BATCHED)  # 4 MiB each
    found = measure(tmp_path, names, session_folder / "cache")
    before, _, twelve, after = found["looks"]
    grown = twelve["held"] - before["held"]
    assert grown > 40 * 2**20, found
    assert abs(twelve["charged"] - before["charged"] - grown) < 0.1 * grown, found
    assert after["held"] - before["held"] < 0.3 * grown, found  # gone, but for what the allocator keeps
