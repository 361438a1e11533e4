from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from safetensors.numpy import load_file, save_file

from octavo.errors import Invalid
from octavo.serving.bert import Encoder, read_config, read_weights, write_model
from octavo.serving.quantisation import Int8Encoder

_erf = np.vectorize(math.erf)


def session(folder: Path, encoder: type[Encoder], target: Path) -> ort.InferenceSession:
    target.mkdir()
    config = read_config(folder)
    file = write_model(encoder(config, read_weights(folder, config)).build(), target)
    return ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])


def reference(folder: Path, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """BERT as the paper has it, in float64."""
    config = read_config(folder)
    weights = {name: value.astype(np.float64) for name, value in load_file(folder / "model.safetensors").items()}

    def normal(x: np.ndarray, at: str) -> np.ndarray:
        x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(-1, keepdims=True) + config.epsilon)
        return x * weights[f"{at}.LayerNorm.weight"] + weights[f"{at}.LayerNorm.bias"]

    def dense(x: np.ndarray, at: str) -> np.ndarray:
        return x @ weights[f"{at}.weight"].T + weights[f"{at}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], config.heads, -1).transpose(0, 2, 1, 3)

    x = weights["embeddings.word_embeddings.weight"][ids]
    x = x + weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
    x = normal(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings")
    for number in range(config.layers):
        at = f"encoder.layer.{number}"
        query, key, value = (heads(dense(x, f"{at}.attention.self.{n}")) for n in ("query", "key", "value"))
        scores = query @ key.transpose(0, 1, 3, 2) / math.sqrt(query.shape[-1])
        scores = scores + np.where(mask, 0.0, -1e4)[:, None, None, :]
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        context = (scores / scores.sum(-1, keepdims=True)) @ value
        context = context.transpose(0, 2, 1, 3).reshape(x.shape)
        x = normal(dense(context, f"{at}.attention.output.dense") + x, f"{at}.attention.output")
        wide = dense(x, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + _erf(wide / math.sqrt(2)))
        x = normal(dense(wide, f"{at}.output.dense") + x, f"{at}.output")
    return x


IDS = np.array([[2, 5, 9, 14, 3], [2, 7, 3, 0, 0]], dtype=np.int64)
MASK = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=np.int64)


def cosines(given: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    return (given * wanted).sum(-1) / np.linalg.norm(given, axis=-1) / np.linalg.norm(wanted, axis=-1)


def test_fp32_equals_the_definition(small_bert: Path, tmp_path: Path) -> None:
    (out,) = session(small_bert, Encoder, tmp_path / "m").run(None, {"input_ids": IDS, "attention_mask": MASK})
    assert out.dtype == np.float32
    assert np.abs(out - reference(small_bert, IDS, MASK))[MASK > 0].max() < 1e-4


def test_int8_is_near_the_definition(small_bert: Path, tmp_path: Path) -> None:
    (out,) = session(small_bert, Int8Encoder, tmp_path / "m").run(None, {"input_ids": IDS, "attention_mask": MASK})
    near = cosines(out, reference(small_bert, IDS, MASK))[MASK > 0]
    assert near.min() > 0.99
    assert near.min() < 0.9999999  # it really is quantised


@pytest.mark.parametrize("encoder", [Encoder, Int8Encoder])
def test_padding_does_not_change_an_answer(small_bert: Path, tmp_path: Path, encoder: type[Encoder]) -> None:
    run = session(small_bert, encoder, tmp_path / "m").run
    alone = run(None, {"input_ids": IDS[1:, :3], "attention_mask": MASK[1:, :3]})[0]
    padded = run(None, {"input_ids": IDS[1:], "attention_mask": MASK[1:]})[0][:, :3]
    assert cosines(alone, padded).min() > (0.99999 if encoder is Encoder else 0.99)


@pytest.mark.parametrize("encoder", [Encoder, Int8Encoder])
def test_a_row_without_tokens_gives_no_nan(small_bert: Path, tmp_path: Path, encoder: type[Encoder]) -> None:
    run = session(small_bert, encoder, tmp_path / "m").run
    (out,) = run(None, {"input_ids": IDS, "attention_mask": np.zeros_like(MASK)})
    assert np.isfinite(out).all()


@pytest.mark.parametrize("encoder", [Encoder, Int8Encoder])
@pytest.mark.parametrize("ids", [np.full((1, 3), 999), np.full((1, 25), 5)], ids=["vocabulary", "positions"])
def test_ids_out_of_range_are_refused(
    small_bert: Path, tmp_path: Path, encoder: type[Encoder], ids: np.ndarray
) -> None:
    run = session(small_bert, encoder, tmp_path / "m").run
    with pytest.raises(Exception, match=r"out of|broadcast"):
        run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})


def test_weights_lie_outside_the_graph_on_page_boundaries(small_bert: Path, tmp_path: Path) -> None:
    import onnx

    session(small_bert, Encoder, tmp_path / "m")
    model = onnx.load(str(tmp_path / "m/model.onnx"), load_external_data=False)
    outside = [
        {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.external_data
    ]
    assert len(outside) >= 8
    assert all(int(place["offset"]) % 4096 == 0 for place in outside)


def test_a_prefixed_checkpoint_is_read(small_bert: Path) -> None:
    file = small_bert / "model.safetensors"
    plain = load_file(file)
    save_file({f"bert.{name}": value for name, value in plain.items()}, file)
    read = read_weights(small_bert, read_config(small_bert))
    assert all(np.array_equal(read[name], plain[name]) for name in plain)


def test_half_precision_weights_are_widened(small_bert: Path) -> None:
    file = small_bert / "model.safetensors"
    save_file({name: value.astype(np.float16) for name, value in load_file(file).items()}, file)
    read = read_weights(small_bert, read_config(small_bert))
    assert {value.dtype for value in read.values()} == {np.dtype(np.float32)}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"model_type": "t5"}, "'t5' is not supported"),
        ({"hidden_act": "relu"}, "'relu' is not supported"),
        ({"position_embedding_type": "relative_key"}, "absolute"),
        ({"hidden_size": "many"}, "hidden_size"),
        ({"num_attention_heads": 5}, "heads"),
        ({"num_hidden_layers": 0}, "num_hidden_layers"),
    ],
)
def test_other_architectures_are_refused(small_bert: Path, change: dict[str, object], says: str) -> None:
    file = small_bert / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(Invalid, match=says):
        read_config(small_bert)


@pytest.mark.parametrize("text", ["", "{", "[]", "\x00"])
def test_a_broken_config_is_named(small_bert: Path, text: str) -> None:
    (small_bert / "config.json").write_text(text)
    with pytest.raises(Invalid, match=r"config\.json"):
        read_config(small_bert)


def test_a_missing_tensor_is_named(small_bert: Path) -> None:
    file = small_bert / "model.safetensors"
    weights = load_file(file)
    del weights["encoder.layer.1.output.dense.bias"]
    save_file(weights, file)
    with pytest.raises(Invalid, match=r"encoder\.layer\.1\.output\.dense\.bias.*missing"):
        read_weights(small_bert, read_config(small_bert))


def test_a_wrong_shape_is_named(small_bert: Path) -> None:
    file = small_bert / "model.safetensors"
    weights = load_file(file)
    weights["embeddings.LayerNorm.weight"] = np.ones(31, dtype=np.float32)
    save_file(weights, file)
    with pytest.raises(Invalid, match=r"\[31\].*\[32\]"):
        read_weights(small_bert, read_config(small_bert))


@pytest.mark.parametrize("keep", [0, 4, 300, 5000])
def test_a_truncated_checkpoint_is_refused(small_bert: Path, keep: int) -> None:
    file = small_bert / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(Invalid, match="safetensors"):
        read_weights(small_bert, read_config(small_bert))


def test_no_checkpoint_at_all(small_bert: Path) -> None:
    (small_bert / "model.safetensors").unlink()
    with pytest.raises(Invalid, match="missing"):
        read_weights(small_bert, read_config(small_bert))
