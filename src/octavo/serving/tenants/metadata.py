"""What a tenant's model is made from; its name and its version follow from that and from nothing else."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Final

from octavo.serving.model_config import DynamicBatching, ModelConfig, check_name
from octavo.serving.repository import ModelVersion
from octavo.serving.tenants.backend import BACKEND, EMBEDDING, INTENT
from octavo.serving.tenants.examples import OUT_OF_SCOPE, Examples

RECIPES: Final = {INTENT: "intent-3", EMBEDDING: "embedding-2"}
"""How each kind is learnt; raised when that changes, so that training again makes a new version."""

_MAX_BATCH: Final = 1024


@dataclass(frozen=True)
class TenantMetadata:
    """The whole origin of one version of a tenant's model.

    Attributes:
        tenant: the customer.
        base: the shared model's name.
        base_version: the version whose embeddings it was trained on, and is always asked with.
        base_digest: of that version's contents.
        examples: SHA-256 of the examples.
        recipe: how it was learnt.
        kind: of model.
    """

    tenant: str
    base: str
    base_version: str
    base_digest: str
    examples: str
    recipe: str
    kind: str

    @property
    def model(self) -> str:
        """The model's name in the repository."""
        return tenant_model(self.tenant, self.kind)

    def config(self, examples: Examples) -> ModelConfig:
        """The model's configuration, which carries all of this, and how many examples and categories there were."""
        counts = {"texts": str(len(examples.texts)), "categories": str(len(set(examples.categories) - {OUT_OF_SCOPE}))}
        return ModelConfig(
            backend=BACKEND,
            max_batch_size=_MAX_BATCH,
            dynamic_batching=DynamicBatching(),
            parameters=asdict(self) | counts,
        )

    def made(self, parameters: Mapping[str, str]) -> bool:
        """Whether a version with these parameters was made from the same."""
        return all(parameters.get(key) == value for key, value in asdict(self).items())


def tenant_model(tenant: str, kind: str = INTENT) -> str:
    """The name of a tenant's model: `acme` has `acme-intent` and `acme-embedding`.

    Raises:
        Invalid: not fit to be part of a model's name.
    """
    return check_name(f"{check_name(tenant)}-{kind}")


def origin(tenant: str, kind: str, base: ModelVersion, examples: Examples) -> TenantMetadata:
    """The metadata of a model of `tenant` on `base`, trained on `examples`."""
    digest = hashlib.sha256()
    for pair in zip(examples.texts, examples.categories, strict=True):
        digest.update("\0".join(pair).encode() + b"\1")
    return TenantMetadata(tenant, base.name, base.version, base.digest, digest.hexdigest(), RECIPES[kind], kind)
