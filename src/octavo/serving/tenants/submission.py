"""Training as a durable job: the examples are kept among the house's objects until the job has succeeded."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from octavo.access import Principal, require
from octavo.errors import Invalid, OctavoError
from octavo.serving.model_config import check_name
from octavo.serving.tenants.backend import EMBEDDING, INTENT
from octavo.serving.tenants.examples import Examples, parse_examples
from octavo.serving.tenants.metadata import tenant_model
from octavo.serving.tenants.training import check_examples
from octavo.storage import Objects

if TYPE_CHECKING:
    from octavo.jobs import Jobs
    from octavo.serving.repository import Repository
    from octavo.settings import Settings

TRAIN: Final = "tenants.train"
"""The kind of job."""

_FOLDER: Final = "examples"
_TICKET: Final = re.compile(r"[0-9a-f]{32}")
_KEPT: Final = timedelta(days=7)
"""How long the examples of a job that failed wait for another try."""


@dataclass(frozen=True)
class Submitted:
    """A training that is queued: the job's id, and what it will learn from."""

    job: str
    tenant: str
    base: str
    examples: int
    categories: int


def require_training(principal: Principal, tenant: str, base: str) -> None:
    """Raise `Forbidden` unless they may change both of a tenant's models, and ask the base."""
    for kind in (INTENT, EMBEDDING):
        require(principal, "edit", f"models/{tenant_model(tenant, kind)}")
    require(principal, "infer", f"models/{base}")


def read_upload(raw: bytes, name: str, settings: Settings) -> Examples:
    """The examples somebody sent; raises as `parse_examples`, whose limits the settings hold."""
    return parse_examples(raw, name, settings.serving.max_examples)


def submit_training(
    repository: Repository, jobs: Jobs, tenant: str, base: str, raw: bytes, name: str, owner: str
) -> Submitted:
    """Check what was sent, keep it, and queue the job; blocks.

    Args:
        repository: holds the base.
        jobs: of the workspace.
        tenant: whose models will be trained.
        base: the shared model's name.
        raw: a CSV, compressed by gzip or not.
        name: what the sender calls it.
        owner: who asks.

    Raises:
        NotFound: no such base.
        Invalid: the examples or the tenant's name are of no use; nothing was kept.
        Busy: too many jobs wait already.
    """
    settings = jobs.settings
    found = read_upload(raw, name, settings)
    count = check_examples(tenant, found)
    repository.choose(check_name(base))
    objects = Objects.open(settings.objects_url, settings.storage)
    _tidy(objects)
    ticket = secrets.token_hex(16)
    objects.create(_key(ticket), raw)
    try:
        job = jobs.submit(TRAIN, {"tenant": tenant, "base": base, "examples": ticket}, owner=owner)
    except OctavoError:
        objects.delete(_key(ticket))
        raise
    return Submitted(job, tenant, base, len(found.texts), count)


def kept_examples(ticket: str, settings: Settings) -> Examples:
    """The examples a job was given.

    Raises:
        NotFound: they are gone.
        Invalid: not a ticket.
    """
    raw = Objects.open(settings.objects_url, settings.storage).get(_key(ticket))
    return read_upload(raw, "the examples", settings)


def forget_examples(ticket: str, settings: Settings) -> None:
    """Remove a customer's texts that are not needed any more."""
    Objects.open(settings.objects_url, settings.storage).delete(_key(ticket))


def _key(ticket: str) -> str:
    """Jobs can be submitted by hand too: no ticket leads out of the folder."""
    if not _TICKET.fullmatch(ticket):
        raise Invalid("not a ticket of examples", "examples", "Train with octavo tenants train, or over HTTP.")
    return f"{_FOLDER}/{ticket}"


def _tidy(objects: Objects) -> None:
    """Remove what was left by jobs that failed long ago."""
    before = datetime.now(UTC) - _KEPT
    for info in objects.list(_FOLDER):
        if info.modified < before:
            objects.delete(info.key)
