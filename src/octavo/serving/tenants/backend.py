"""Tenants' models as models of the repository: a small part of one's own, behind a base that all tenants share.

The server asks the base for the embeddings first (`Serving`), so texts of all tenants travel in the base's batches;
what is left for this backend is a few small products per tenant.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np

from octavo.errors import Invalid
from octavo.serving.inference import InferRequest
from octavo.serving.repository import ModelVersion
from octavo.serving.tenants.adapter import ADAPTER_FILE, Adapter
from octavo.serving.tenants.intent import DELTA_FILE, IntentHead
from octavo.serving.tensors import Tensors, TensorSpec

BACKEND: Final = "tenant"
INTENT: Final = "intent"
EMBEDDING: Final = "embedding"
"""Kinds of a tenant's models; each tenant has one of each, named `TENANT-KIND`."""


class TenantBackend:
    """Loads tenants' models; `backend: "tenant"` in config.pbtxt, with `base` and `kind` among its parameters."""

    name = BACKEND

    def start(self) -> None:
        """Nothing to import."""

    def load(self, version: ModelVersion, *, quick: bool = False) -> IntentRunner | AdapterRunner:
        """Map the tenant's part.

        Raises:
            Invalid: no base is named, or the file is broken.
        """
        if not version.config.parameters.get("base"):
            where = f"{version.key}/config.pbtxt"
            raise Invalid("the tenant's model names no base", where, "Train it: octavo tenants train")
        file = version.folder / _file(version)
        return AdapterRunner(Adapter.load(file)) if file.name == ADAPTER_FILE else IntentRunner(IntentHead.load(file))

    def has_quick_tier(self, version: ModelVersion) -> bool:
        """There is one form."""
        return False

    def is_prepared(self, version: ModelVersion) -> bool:
        """It is loaded as it was published."""
        return True

    def share_key(self, version: ModelVersion) -> str:
        """Copies of one content map the same pages."""
        return version.digest

    def mapped_folders(self, version: ModelVersion) -> tuple[str, ...]:
        """The version's own."""
        return (os.path.realpath(version.folder),)

    def disk_bytes(self, version: ModelVersion) -> int:
        """Size of the tenant's file."""
        known = version.stamps.get(_file(version))
        if known is not None:
            return known.size
        file = version.folder / _file(version)
        return file.stat().st_size if file.is_file() else 0


class IntentRunner:
    """One tenant's classifier: texts with their embeddings in, categories out."""

    concurrency = 8  # it only reads

    def __init__(self, head: IntentHead) -> None:
        self._head = head
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("text", "BYTES", (-1, 1)),
            TensorSpec("embedding", "FP32", (-1, head.dimensions), optional=True),
        )
        self.outputs: tuple[TensorSpec, ...] = (
            TensorSpec("label", "BYTES", (-1, 1)),
            TensorSpec("confidence", "FP32", (-1, 1)),
            TensorSpec("probabilities", "FP32", (-1, len(head.categories))),
        )

    def run(self, inputs: Tensors) -> Tensors:
        """Classify the rows."""
        try:
            texts = [text.decode("utf-8") for text in inputs["text"].ravel().tolist()]
        except UnicodeDecodeError as error:
            raise Invalid(f"'text' is not UTF-8: {error}", "text", "Encode texts as UTF-8.") from None
        said = self._head.predict(np.asarray(inputs["embedding"], np.float32), texts)
        labels = np.array([label.encode() for label in said.labels], dtype=object)
        return {
            "label": labels[:, None],
            "confidence": said.confidence[:, None],
            "probabilities": said.probabilities,
        }

    def processes(self) -> tuple[int, ...]:
        """None beside the server's."""
        return ()

    def close(self) -> None:
        """The map goes with the last reference."""


class AdapterRunner:
    """One tenant's adapter: the base's embeddings in, the tenant's out."""

    concurrency = 8  # it only reads

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self.inputs: tuple[TensorSpec, ...] = (
            TensorSpec("text", "BYTES", (-1, 1), optional=True),
            TensorSpec("embedding", "FP32", (-1, adapter.width), optional=True),
        )
        self.outputs: tuple[TensorSpec, ...] = (TensorSpec("embedding", "FP32", (-1, adapter.width)),)

    def run(self, inputs: Tensors) -> Tensors:
        """Move the rows."""
        if "embedding" not in inputs:
            raise Invalid("missing input 'text'", "text", "Send 'text' (BYTES), or the base's 'embedding' (FP32).")
        return {"embedding": self._adapter.apply(np.asarray(inputs["embedding"], np.float32))}

    def processes(self) -> tuple[int, ...]:
        """None beside the server's."""
        return ()

    def close(self) -> None:
        """The map goes with the last reference."""


def _file(version: ModelVersion) -> str:
    return ADAPTER_FILE if version.config.parameters.get("kind") == EMBEDDING else DELTA_FILE


def embedding_request(version: ModelVersion, request: InferRequest) -> InferRequest:
    """What the base of a tenant's model is asked for the tenant's request: the embeddings of its texts.

    The base answers with the version the tenant was trained on, whatever its default is by now.

    Raises:
        Invalid: the texts are not BYTES of shape [n] or [n, 1].
    """
    texts = request.inputs["text"]
    if texts.dtype != object or texts.ndim not in (1, 2) or (texts.ndim == 2 and texts.shape[1] != 1):
        raise Invalid("'text' must be BYTES of shape [n] or [n, 1]", version.name, f"It is {list(texts.shape)}.")
    parameters = version.config.parameters
    return InferRequest(
        model=parameters.get("base", ""),
        version=parameters.get("base_version", ""),
        inputs={"text": texts.reshape(-1, 1)},
        outputs=("embedding",),
        id=request.id,
        priority=request.priority,
        deadline=request.deadline,
        parameters=request.parameters,
        caller=request.caller,
    )
