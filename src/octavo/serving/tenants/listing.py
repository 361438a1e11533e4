"""Which tenants a repository holds models of."""

from __future__ import annotations

from dataclasses import dataclass

from octavo.errors import OctavoError
from octavo.serving.repository import Repository
from octavo.serving.tenants.backend import BACKEND


@dataclass(frozen=True)
class TenantModel:
    """A tenant's model as it answers now; `base` is `name/version`."""

    tenant: str
    model: str
    version: str
    base: str


def tenants(repository: Repository) -> list[TenantModel]:
    """Every tenant's model that is served, by name."""
    found = []
    for name in repository.names():
        try:
            version = repository.choose(name)
            config = repository.config(name, version)
        except OctavoError:  # another model's broken folder is no reason not to list the others
            continue
        if config.backend == BACKEND:
            said = config.parameters
            base = f"{said.get('base', '')}/{said.get('base_version', '')}"
            found.append(TenantModel(said.get("tenant", name), name, version, base))
    return found
