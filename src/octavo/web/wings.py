"""The wings the console and the routes are assembled from: one list."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """What the dashboard says of a wing: a number and what it counts."""

    value: str
    caption: str


@dataclass(frozen=True, slots=True)
class Subpage:
    """Another page of a wing, listed below it."""

    title: str
    path: str


@dataclass(frozen=True, slots=True)
class Wing:
    """A system of the house.

    Attributes:
        name: its package under `octavo`.
        title: its name in the navigation.
        icon: a Material icon's name.
        path: its page.
        about: one line for the dashboard.
        service: what opens its service, as `module:function`, called with `await function(settings)`.
        extra: the extra that brings what it needs, and `needs`, a module of it.
        figure: what the dashboard shows, from the open service.
        work: the module that declares its kinds of jobs; empty when it has none.
        pages: its pages beside the first.
    """

    name: str
    title: str
    icon: str
    path: str
    about: str
    service: str
    extra: str
    needs: str
    figure: Callable[[Any], Figure]
    work: str = ""
    pages: tuple[Subpage, ...] = ()

    @property
    def built(self) -> bool:
        """Whether this octavo has the wing at all."""
        return find_spec(f"octavo.{self.name}") is not None

    @property
    def installed(self) -> bool:
        """Whether what it needs is installed."""
        return self.built and find_spec(self.needs) is not None

    @property
    def command(self) -> str:
        """What adds it."""
        return f"pip install 'octavo[{self.extra}]'"

    def door(self, name: str) -> Any:
        """Its module `name` (`routes`, `pages`), imported now; None when it has no such door."""
        module = f"octavo.{self.name}.{name}"
        return import_module(module) if find_spec(module) else None

    async def open(self, settings: Any) -> Any:
        """Its service."""
        module, _, function = self.service.partition(":")
        return await getattr(import_module(module), function)(settings)


def _models(serving: Any) -> Figure:
    snapshot = serving.residency()
    resident, known = len(snapshot.models), len(serving.repository.names())
    return Figure(f"{resident} / {known}", "models in memory")


WINGS: tuple[Wing, ...] = (
    Wing(
        "serving",
        "Models",
        "layers",
        "/models",
        "Hosts many models under one memory budget.",
        "octavo.serving.opening:open_serving",
        "serving",
        "onnxruntime",
        _models,
        "octavo.serving.work",
        (
            Subpage("Endpoints", "/endpoints"),
            Subpage("Roll-outs", "/rollouts"),
            Subpage("Tenants", "/tenants"),
            Subpage("Autoscaling", "/autoscaling"),
            Subpage("Costs", "/costs"),
        ),
    ),
)


def work_modules() -> list[str]:
    """The modules that declare kinds of jobs, of the wings that are installed."""
    return [wing.work for wing in WINGS if wing.work and wing.installed]


def wings() -> list[Wing]:
    """Those this octavo has, installed or not."""
    return [wing for wing in WINGS if wing.built]
