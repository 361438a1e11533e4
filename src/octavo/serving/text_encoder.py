"""Text in, vector out, in one call: tokenise -> encode -> pool.

A model folder with `task: text-embedding` among its parameters holds a `tokenizer.json` beside its encoder. Each text
is a piece of its own, so texts of one request are batched by length with texts of other requests. An encoder trained
to tell queries from documents by a word in front (`query: `, `passage: `) has them as `query_prefix` and
`document_prefix`; a request's `input_type` chooses.
"""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from octavo.errors import Invalid
from octavo.serving.backend import Runner
from octavo.serving.gathering import Piece
from octavo.serving.inference import InferRequest
from octavo.serving.input_type import DOCUMENT, QUERY, default_input_type, input_type
from octavo.serving.loading import RunnerSlot
from octavo.serving.model_config import CONFIG_NAME, ModelConfig
from octavo.serving.pooling import MODES, pool
from octavo.serving.repository import ModelVersion
from octavo.serving.tensors import Tensors, TensorSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Ids = NDArray[np.int64]

_KEPT_TOKENIZERS = 8
_CHARACTERS_PER_TOKEN = 32  # many times what words have, so that the beginning nearly always holds enough
_INPUTS = ("text", "input_ids", "attention_mask")
_ENCODER_INPUTS = {"input_ids", "attention_mask", "token_type_ids"}


class _Tokenizers:
    """Tokenizers by content: a hundred tenants of one base share one (it holds ~10 MiB and takes ~20 ms to read)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Tokenizer] = OrderedDict()

    def get(self, file: Path, max_tokens: int) -> Tokenizer:
        with self._lock:
            key = (hashlib.sha256(file.read_bytes()).hexdigest(), max_tokens)
            found = self._kept.pop(key, None) or _read_tokenizer(file, max_tokens)
            self._kept[key] = found
            while len(self._kept) > _KEPT_TOKENIZERS:
                self._kept.popitem(last=False)
            return found


_tokenizers = _Tokenizers()


def _read_tokenizer(file: Path, max_tokens: int) -> Tokenizer:
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception for every kind of bad file
        raise Invalid(f"not a tokenizer file: {error}", str(file), "Publish the model's own tokenizer.json.") from None
    tokenizer.no_padding()  # files often carry a fixed padding: every short text would cost as much as a long one
    tokenizer.enable_truncation(max_length=max_tokens)
    return tokenizer


class TextEmbeddingTask:
    """The three stages of one text-embedding model.

    Takes `text` (BYTES, [n] or [n, 1], UTF-8) or ready `input_ids` with `attention_mask` (INT64, [n, tokens]); gives
    `embedding` (FP32, [n, dimensions]). `max_texts` is the largest n.
    """

    def __init__(self, slot: RunnerSlot, version: ModelVersion, max_texts: int) -> None:
        config = version.config
        self._max_texts = max_texts
        self._slot = slot
        self._name = version.name
        self._mode = config.parameters.get("pooling", "mean")
        self._normalise = config.parameters.get("normalize", "true").lower() == "true"
        self._max_tokens = config.number("max_tokens", 512)
        _check_encoder(config, slot.runner)
        self._default_type = default_input_type(config)
        self._prefixes = {QUERY: config.parameters.get("query_prefix", "")}
        self._prefixes[DOCUMENT] = config.parameters.get("document_prefix", "")
        self._tokenizer = self._open_tokenizer(version)
        self._enough = self._max_tokens * _CHARACTERS_PER_TOKEN
        self._takes = {spec.name for spec in slot.runner.inputs}
        self._gives = slot.runner.outputs[0].name
        dimensions = slot.runner.outputs[0].shape[2]
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("text", "BYTES", (-1, 1), optional=True),
            TensorSpec("input_ids", "INT64", (-1, -1), optional=True),
            TensorSpec("attention_mask", "INT64", (-1, -1), optional=True),
        )
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("embedding", "FP32", (-1, dimensions)),)

    def pieces(self, request: InferRequest) -> list[Piece]:
        """One piece per text.

        Raises:
            Invalid: no text or too many, wrong types, tokens outside the vocabulary, an input type that is none.
        """
        rows_sent = max((len(array) for array in request.inputs.values() if array.ndim), default=0)
        if rows_sent > self._max_texts:
            raise Invalid(
                f"the request has {rows_sent} texts",
                self._name,
                f"Send at most {self._max_texts} (serving.max_inputs).",
            )
        for name in request.inputs:
            if name not in _INPUTS:
                raise Invalid(f"unknown input {name!r}", self._name, f"It takes {', '.join(_INPUTS)}.")
        for name in request.outputs:
            if name != "embedding":
                raise Invalid(f"unknown output {name!r}", self._name, "It gives 'embedding'.")
        if "text" in request.inputs and len(request.inputs) > 1:
            raise Invalid("both 'text' and tokens were sent", self._name, "Send one of the two.")
        if "text" in request.inputs:
            prefix = self._prefix(request)
            rows = self._tokenise([prefix + text for text in _texts(request.inputs["text"], self._name)])
        else:
            rows = self._given_ids(request.inputs)
        if not rows:
            raise Invalid("the request has no texts", self._name, "Send at least one.")
        return [Piece(ids, None, length=len(ids)) for ids in rows]

    def run(self, pieces: Sequence[Piece]) -> list[Any]:
        """One embedding [dimensions] per piece."""
        longest = max(piece.length for piece in pieces)
        ids = np.zeros((len(pieces), longest), dtype=np.int64)
        mask = np.zeros((len(pieces), longest), dtype=np.int64)
        for row, piece in enumerate(pieces):
            ids[row, : piece.length] = piece.payload
            mask[row, : piece.length] = 1
        inputs: Tensors = {"input_ids": ids, "attention_mask": mask}
        if "token_type_ids" in self._takes:
            inputs["token_type_ids"] = np.zeros_like(ids)
        with self._slot.lease() as runner:
            hidden = runner.run({name: array for name, array in inputs.items() if name in self._takes})[self._gives]
        return list(pool(hidden, mask, self._mode, self._normalise))

    def answer(self, request: InferRequest, results: list[Any]) -> Tensors:
        """All rows, in the order of the texts."""
        return {"embedding": np.stack(results)}

    def _prefix(self, request: InferRequest) -> str:
        """What stands before the texts of a request: nothing where the encoder tells no types apart."""
        return self._prefixes[input_type(request.parameters, self._default_type, self._name)]

    def _open_tokenizer(self, version: ModelVersion) -> Tokenizer:
        file = version.folder / "tokenizer.json"
        if not file.is_file():
            raise Invalid(
                "the model has no tokenizer.json",
                f"{version.name}/{version.version}",
                "Publish it with the tokenizer beside model.onnx.",
            )
        return _tokenizers.get(file, self._max_tokens)

    def _tokenise(self, texts: list[str]) -> list[Ids]:
        """Token ids per text, cut to what the model reads.

        Of a very long text only the beginning is looked at, when that holds more tokens than the model reads.
        """
        encodings = self._tokenizer.encode_batch_fast([self._beginning(text) for text in texts])
        for at, text in enumerate(texts):
            if len(text) > self._enough and not encodings[at].overflowing:
                encodings[at] = self._tokenizer.encode(text)
        return [np.array(encoding.ids, dtype=np.int64) for encoding in encodings]

    def _beginning(self, text: str) -> str:
        """A long text up to a gap between words; all of a short one, or of one without gaps."""
        if len(text) <= self._enough:
            return text
        end = text.rfind(" ", 0, self._enough)
        return text[:end].rstrip() if end > 0 else text

    def _given_ids(self, inputs: Tensors) -> list[Ids]:
        ids = inputs.get("input_ids")
        if ids is None:
            raise Invalid("missing input 'text'", self._name, "Send 'text' (BYTES), or 'input_ids' (INT64).")
        mask = inputs.get("attention_mask")
        if ids.dtype != np.int64 or ids.ndim != 2:
            raise Invalid("'input_ids' must be INT64 of shape [n, tokens]", self._name)
        if mask is not None and mask.shape != ids.shape:
            raise Invalid("'attention_mask' and 'input_ids' have different shapes", self._name)
        if mask is not None and (mask.dtype != np.int64 or ((mask != 0) & (mask != 1)).any()):
            raise Invalid("'attention_mask' must be INT64, each 0 or 1", self._name)
        if mask is not None and not mask.any(axis=1).all():
            raise Invalid("'attention_mask' leaves a row without tokens", self._name, "Keep at least one.")
        if ids.shape[1] == 0 or ids.shape[1] > self._max_tokens:
            raise Invalid(
                f"'input_ids' has {ids.shape[1]} tokens per row", self._name, f"Send 1 to {self._max_tokens}."
            )
        vocabulary = self._tokenizer.get_vocab_size()
        if ids.size and (int(ids.min()) < 0 or int(ids.max()) >= vocabulary):
            raise Invalid(
                "'input_ids' holds a token outside the vocabulary", self._name, f"Send 0 to {vocabulary - 1}."
            )
        if mask is None:
            return list(ids)
        return [row[kept.astype(bool)] for row, kept in zip(ids, mask, strict=True)]


def _check_encoder(config: ModelConfig, runner: Runner) -> None:
    where = f"{config.name}/{CONFIG_NAME}"
    mode = config.parameters.get("pooling", "mean")
    if mode not in MODES:
        raise Invalid(f"unknown pooling {mode!r}", where, f"Use one of {', '.join(MODES)}.")
    takes = {spec.name for spec in runner.inputs}
    if "input_ids" not in takes or takes - _ENCODER_INPUTS:
        raise Invalid(
            f"a text-embedding model takes {', '.join(sorted(takes))}",
            where,
            "Export it with input_ids, attention_mask.",
        )
    shape = runner.outputs[0].shape
    if len(shape) != 3:
        raise Invalid(
            f"the first output of a text-embedding model has shape {list(shape)}", where, "Give one vector per token."
        )


def _texts(array: Any, model: str) -> list[str]:
    if array.dtype.kind not in "OSU" or array.ndim > 2 or (array.ndim == 2 and array.shape[1] != 1):
        raise Invalid("'text' must be BYTES of shape [n] or [n, 1]", model, f"It is {array.dtype} {list(array.shape)}.")
    try:
        return [item.decode("utf-8") if isinstance(item, bytes) else str(item) for item in array.ravel()]
    except UnicodeDecodeError as error:
        raise Invalid(f"'text' is not UTF-8: {error}", model, "Encode texts as UTF-8.") from None
