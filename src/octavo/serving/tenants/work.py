"""What the job `tenants.train` does, in a process of its own."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from octavo.jobs import report

if TYPE_CHECKING:
    from octavo.settings import Settings


def train_kept(settings: Settings, tenant: str, base: str, ticket: str) -> list[dict[str, Any]]:
    """Train a tenant on examples that were kept; gives what was published."""
    from octavo.serving.service import Serving
    from octavo.serving.tenants.submission import kept_examples
    from octavo.serving.tenants.training import train_tenant

    examples = kept_examples(ticket, settings)

    async def train() -> list[dict[str, Any]]:
        serving = await Serving.open(settings, keep_pinned=False)
        try:
            done = await train_tenant(serving, tenant, base, examples, report)
        finally:
            await serving.close()
        return [asdict(each) for each in done]

    return asyncio.run(train())
