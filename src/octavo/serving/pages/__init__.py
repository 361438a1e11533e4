"""The console's pages of serving, one file each: models, endpoints, roll-outs, tenants, autoscaling, costs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from octavo.serving.pages import autoscaling, costs, endpoints, models, rollouts, tenants
from octavo.serving.pages.console import Console, Frame

if TYPE_CHECKING:
    from octavo.jobs import Jobs
    from octavo.serving.service import Serving
    from octavo.settings import Settings


def register(service: Serving, frame: Frame, settings: Settings, jobs: Jobs | None = None) -> None:
    """Declare the pages; without `jobs` nothing can be trained from them."""
    console = Console(service, frame, settings, jobs)
    for page in (models, endpoints, rollouts, tenants, autoscaling, costs):
        page.register(console)
