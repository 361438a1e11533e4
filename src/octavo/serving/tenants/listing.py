"""Which tenants a repository holds models of, and what is known of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from octavo.access import Principal, allowed
from octavo.errors import OctavoError
from octavo.serving.repository import Repository
from octavo.serving.tenants.backend import BACKEND, INTENT
from octavo.serving.tenants.evaluation import Asked, Remembered, evaluations
from octavo.serving.tenants.intent import DELTA_FILE, IntentHead
from octavo.storage.documents import Documents


@dataclass(frozen=True)
class TenantModel:
    """A tenant's model as it answers now.

    Attributes:
        tenant: the customer.
        model: its name in the repository.
        version: that answers.
        base: `name/version`.
        kind: "intent" or "embedding".
        examples: it was trained on; 0 where nobody knows.
        categories: those examples had, as `examples`.
        digest: of those examples.
        bytes: of its files.
        trained: when its files were written, seconds since 1970; 0 where nobody knows.
    """

    tenant: str
    model: str
    version: str
    base: str
    kind: str
    examples: int
    categories: int
    digest: str
    bytes: int
    trained: float


@dataclass(frozen=True)
class TenantSummary:
    """A tenant with its models; `evaluation` is the last one of the classifier that answers, None without one."""

    tenant: str
    models: tuple[TenantModel, ...]
    evaluation: Remembered | None

    @property
    def newest(self) -> TenantModel:
        """The model that was trained last: what it says of base and examples holds for the tenant."""
        return max(self.models, key=lambda model: (model.trained, model.kind == INTENT))

    @property
    def bytes(self) -> int:
        """Of all models' files."""
        return sum(model.bytes for model in self.models)


def tenants(repository: Repository) -> list[TenantModel]:
    """Every tenant's model that is served, by name."""
    found = []
    for name in repository.names():
        try:
            version = repository.choose(name)
            config = repository.config(name, version)
            if config.backend != BACKEND:
                continue
            size, trained = repository.stored(name, version)
        except OctavoError:  # another model's broken folder is no reason not to list the others
            continue
        said = config.parameters
        found.append(
            TenantModel(
                tenant=said.get("tenant", name),
                model=name,
                version=version,
                base=f"{said.get('base', '')}/{said.get('base_version', '')}",
                kind=said.get("kind", INTENT),
                examples=_count(said.get("texts", "")),
                categories=_count(said.get("categories", "")),
                digest=said.get("examples", ""),
                bytes=size,
                trained=trained,
            )
        )
    return found


def summarise(repository: Repository, documents: Documents) -> list[TenantSummary]:
    """Every tenant, by name, with the evaluations that are remembered of what answers now; blocks.

    Raises:
        Unavailable: the repository or the database does not answer.
    """
    known = evaluations(documents)
    grouped: dict[str, list[TenantModel]] = {}
    for model in tenants(repository):
        grouped.setdefault(model.tenant, []).append(model)
    summaries = []
    for tenant, found in sorted(grouped.items()):
        asked = [known.get(Asked(each.model, each.version, each.digest)) for each in found]
        summaries.append(TenantSummary(tenant, tuple(found), next(filter(None, asked), None)))
    return summaries


def seen_by(principal: Principal, found: Iterable[TenantSummary]) -> list[TenantSummary]:
    """Those tenants of which the principal may see a model, with only the models they may see."""
    seen = []
    for one in found:
        models = tuple(model for model in one.models if allowed(principal, "view", f"models/{model.model}"))
        if models:
            seen.append(replace(one, models=models))
    return seen


def categories(repository: Repository, model: str, version: str = "") -> tuple[str, ...]:
    """The categories of a tenant's classifier, in the order of its `probabilities`.

    Raises:
        NotFound: no such model or version.
        Invalid: its file is broken.
    """
    return IntentHead.load(repository.resolve(model, version).folder / DELTA_FILE).categories


def _count(text: str) -> int:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
