"""Text in, vector out: the real MiniLM through the service, and what a text-embedding model may not be."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from octavo.errors import DeadlineExceeded, Invalid
from octavo.serving.inference import InferRequest
from octavo.serving.minilm import build
from octavo.serving.service import Serving

from .conftest import Open
from .served_models import BATCHED, FLOAT, INT64, graph, put

ODD_TEXTS = [
    "",
    " ",
    "日本語の文章です。",
    "🙂🙃 emoji 🙂",
    "a\x00b",
    "word " * 700,
    "x" * 900,
    "é" * 50,
    "\u202eright to left",
    "one",
]


def text_request(texts: list[str], model: str = "minilm") -> InferRequest:
    return InferRequest(model, {"text": np.array([text.encode() for text in texts], dtype=object)})


async def embed(serving: Serving, texts: list[str], model: str = "minilm") -> np.ndarray:
    return np.asarray((await serving.infer(text_request(texts, model))).outputs["embedding"])


async def test_texts_together_equal_texts_alone(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    await serving.load("minilm")
    together = await embed(serving, ODD_TEXTS)
    assert (together.shape, together.dtype) == ((len(ODD_TEXTS), 384), np.float32)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    alone = np.concatenate([await embed(serving, [text]) for text in ODD_TEXTS])
    np.testing.assert_allclose(together, alone, atol=1e-5)
    crowd = await asyncio.gather(*(embed(serving, [text]) for text in ODD_TEXTS * 3))
    np.testing.assert_allclose(np.concatenate(crowd), np.tile(alone, (3, 1)), atol=1e-5)


async def test_of_a_very_long_text_only_the_beginning_is_looked_at(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    start = "The quick brown fox, who (unlike others) isn't lazy, jumps over café tables. " * 20
    whole = await embed(serving, [start, start + "x" * 40_000, start + " tail" * 40_000])
    np.testing.assert_allclose(whole[1:], whole[[0, 0]], atol=1e-6)
    gaps = await embed(serving, ["one" + " " * 20_000 + "two", "one two"])
    np.testing.assert_allclose(gaps[0], gaps[1], atol=1e-6)  # the beginning holds too little: all of it is read


async def test_a_deadline_holds_while_text_is_cut_into_tokens(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    await serving.load("minilm")
    request = text_request(["x" * 8_000_000])
    request.deadline = time.monotonic() + 0.05
    with pytest.raises(DeadlineExceeded, match="cut into tokens"):
        await serving.infer(request)
    assert (await embed(serving, ["hello"])).shape == (1, 384)


async def test_a_long_text_is_cut_at_max_tokens(minilm_repository: Path, open_serving: Open) -> None:
    serving = await open_serving(minilm_repository)
    answer = await serving.infer(text_request(["word " * 700]))
    assert answer.usage == 256
    cut, whole = await embed(serving, ["word " * 254, "word " * 700])
    np.testing.assert_allclose(cut, whole, atol=1e-5)
    assert (await serving.infer(text_request(["word " * 10, "word"]))).usage == 15


async def test_ready_tokens_equal_their_text(
    minilm_repository: Path, open_serving: Open, minilm_checkpoint: Path
) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_checkpoint / "tokenizer.json"))
    tokenizer.no_padding()
    texts = ["where is my order", "a much longer question about a parcel that has not arrived"]
    rows = [tokenizer.encode(text).ids for text in texts]
    ids = np.zeros((2, max(map(len, rows)) + 3), dtype=np.int64)
    mask = np.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)], mask[at, : len(row)] = row, 1
    serving = await open_serving(minilm_repository)
    expected = await embed(serving, texts)
    padded = await serving.infer(InferRequest("minilm", {"input_ids": ids, "attention_mask": mask}))
    np.testing.assert_allclose(padded.outputs["embedding"], expected, atol=1e-5)
    bare = await serving.infer(InferRequest("minilm", {"input_ids": np.array(rows[:1])}))
    np.testing.assert_allclose(bare.outputs["embedding"], expected[:1], atol=1e-5)
    for wrong in (np.zeros_like(mask), mask * 2, -mask):
        with pytest.raises(Invalid, match="attention_mask"):
            await serving.infer(InferRequest("minilm", {"input_ids": ids, "attention_mask": wrong}))
    with pytest.raises(Invalid, match="both"):
        await serving.infer(InferRequest("minilm", {"text": np.array([b"a"], dtype=object), "input_ids": ids}))


IDS = np.array([[101, 102]])


@pytest.mark.parametrize(
    ("inputs", "complaint"),
    [
        ({}, "missing input 'text'"),
        ({"text": np.array([b"\xff\xfe"], dtype=object)}, "not UTF-8"),
        ({"text": np.array([], dtype=object)}, "no texts"),
        ({"text": np.zeros(1, dtype=np.float32)}, "'text' must be BYTES"),
        ({"text": np.array([[b"a", b"b"]], dtype=object)}, r"'text' must be BYTES of shape \[n\] or \[n, 1\]"),
        ({"text": np.array([b"a"], dtype=object), "more": IDS}, "unknown input 'more'"),
        ({"input_ids": IDS.astype(np.int32)}, "'input_ids' must be INT64"),
        ({"input_ids": IDS[0]}, "'input_ids' must be INT64 of shape"),
        ({"input_ids": np.zeros((1, 0), dtype=np.int64)}, "has 0 tokens"),
        ({"input_ids": np.zeros((1, 257), dtype=np.int64)}, "has 257 tokens per row"),
        ({"input_ids": np.array([[101, 10**6]])}, "outside the vocabulary"),
        ({"input_ids": np.array([[-1, 101]])}, "outside the vocabulary"),
        ({"input_ids": np.zeros((0, 4), dtype=np.int64)}, "no texts"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :1]}, "different shapes"),
        ({"input_ids": IDS, "attention_mask": IDS.astype(np.float32)}, "'attention_mask' must be INT64"),
    ],
)
async def test_what_does_not_fit_is_refused_and_said(tmp_path, small_bert, open_serving, inputs, complaint) -> None:
    publish(tmp_path / "workspace/models/small", small_bert)
    serving = await open_serving(tmp_path / "workspace")
    if "257" in complaint:  # the small model takes 16
        complaint = "has 257 tokens per row.*1 to 16"
    with pytest.raises(Invalid, match=complaint):
        await serving.infer(InferRequest("small", inputs))
    with pytest.raises(Invalid, match="unknown output 'nothing'"):
        await serving.infer(InferRequest("small", {"text": np.array([b"a"], dtype=object)}, outputs=("nothing",)))


def publish(folder: Path, checkpoint: Path, **parameters: str) -> None:
    """The small model, built as `octavo models add` would, with other parameters."""
    build(checkpoint, folder)
    text = (folder / "config.pbtxt").read_text().replace(f'name: "{folder.name}"', "")
    for key, value in parameters.items():
        old = next(v for k, v in DEFAULTS.items() if k == key)
        assert f'"{old}"' in text
        text = text.replace(f'"{old}"', f'"{value}"')
    (folder / "config.pbtxt").write_text(text)


DEFAULTS = {"pooling": "mean", "max_tokens": "16"}


@pytest.mark.parametrize(
    ("parameter", "value", "complaint"),
    [
        ("max_tokens", "many", "parameter 'max_tokens' is 'many'"),
        ("max_tokens", "0", "parameter 'max_tokens' is '0'"),
        ("pooling", "median", "unknown pooling 'median'"),
    ],
)
async def test_wrong_parameters_are_named(tmp_path, small_bert, open_serving, parameter, value, complaint) -> None:
    publish(tmp_path / "workspace/models/small", small_bert, **{parameter: value})
    serving = await open_serving(tmp_path / "workspace")
    with pytest.raises(Invalid, match=complaint) as caught:
        await serving.metadata("small")
    assert caught.value.where == "small/config.pbtxt"


async def test_a_model_without_a_tokenizer_or_with_a_broken_one_is_named(tmp_path, small_bert, open_serving) -> None:
    models = tmp_path / "workspace/models"
    publish(models / "bare", small_bert)
    (models / "bare/1/tokenizer.json").unlink()
    publish(models / "broken", small_bert)
    (models / "broken/1/tokenizer.json").write_text(json.dumps({"version": "1.0"}))
    serving = await open_serving(tmp_path / "workspace")
    with pytest.raises(Invalid, match=r"no tokenizer\.json"):
        await serving.metadata("bare")
    with pytest.raises(Invalid, match="not a tokenizer file"):
        await serving.metadata("broken")


EMBEDS = BATCHED + 'parameters { key: "task" value { string_value: "text-embedding" } }\n'


@pytest.mark.parametrize(
    ("model", "complaint"),
    [
        (
            graph([("Cast", ["pixels"], ["y"])], [("pixels", INT64, ["n", "t", 2])], [("y", FLOAT, ["n", "t", 2])]),
            "takes pixels",
        ),
        (
            graph([("Cast", ["input_ids"], ["y"])], [("input_ids", INT64, ["n", "t"])], [("y", FLOAT, ["n", "t"])]),
            r"has shape \[-1, -1\]",
        ),
    ],
)
async def test_a_graph_that_is_no_encoder_is_named(tmp_path, small_bert, open_serving, model, complaint) -> None:
    import onnx

    proto = onnx.load_from_string(model)
    proto.graph.node[0].attribute.append(onnx.helper.make_attribute("to", FLOAT))
    put(tmp_path / "workspace/models", "odd", proto.SerializeToString(), EMBEDS)
    shutil.copy(small_bert / "tokenizer.json", tmp_path / "workspace/models/odd/1/tokenizer.json")
    serving = await open_serving(tmp_path / "workspace")
    with pytest.raises(Invalid, match=complaint):
        await serving.metadata("odd")
