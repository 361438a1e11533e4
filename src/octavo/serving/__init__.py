"""The multi-model server: many models on real input under one memory budget.

from octavo.serving import Client

client = Client("http://127.0.0.1:8600", token="...")
vectors = client.embed(["Where is my parcel?", "It arrives tomorrow."], model="minilm")  # float32 [2, 384]
print(vectors @ vectors.T)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from octavo.serving.client import Client
    from octavo.serving.inference import InferAnswer, InferRequest, ModelMetadata
    from octavo.serving.repository import Repository
    from octavo.serving.service import Serving

__all__ = ["Client", "InferAnswer", "InferRequest", "ModelMetadata", "Repository", "Serving"]

_MODULE_OF = {
    "Client": "client",
    "InferAnswer": "inference",
    "InferRequest": "inference",
    "ModelMetadata": "inference",
    "Repository": "repository",
    "Serving": "service",
}


def __getattr__(name: str) -> object:
    """Each name brings its libraries along, so it is loaded when first asked for."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
