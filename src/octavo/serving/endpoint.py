"""An endpoint: a name clients ask for, and the variants that share its traffic. Pure: nothing is stored or served here.

An endpoint stands before the models: a request for its name without a version goes to one of its variants, whatever
protocol it came by. So a new version is rolled out by share without a client changing anything.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from octavo.errors import Invalid, NotFound
from octavo.serving.model_config import check_name, check_version

MAX_VARIANTS = 10
VARIANT_NAME = r"^[A-Za-z0-9](-?[A-Za-z0-9]){0,62}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Variant(_Part):
    """One share of an endpoint's traffic.

    Attributes:
        name: within the endpoint.
        model: a model of the repository.
        version: a number or label; empty follows the model's default.
        weight: share of the traffic relative to the other variants'; 0 gets only requests that name the variant.
        shadow: it gets a copy of the share of requests `weight` (0 to 1) and its answers go to nobody.
    """

    name: str = Field(pattern=VARIANT_NAME)
    model: str
    version: str = ""
    weight: float = Field(1.0, ge=0, le=1e6)
    shadow: bool = False

    @field_validator("model")
    @classmethod
    def _model(cls, value: str) -> str:
        return check_name(value)

    @field_validator("version")
    @classmethod
    def _version(cls, value: str) -> str:
        return check_version(value)


class Endpoint(_Part):
    """What is declared of an endpoint.

    Attributes:
        name: as models have it.
        variants: in order; the first takes the traffic when all weights are 0.
    """

    name: str
    variants: tuple[Variant, ...]

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        return check_name(value)

    @model_validator(mode="after")
    def _variants(self) -> Endpoint:
        live = [variant for variant in self.variants if not variant.shadow]
        names = [variant.name for variant in self.variants]
        if not live:
            raise Invalid("an endpoint needs a variant that answers", self.name, "Add one that is no shadow.")
        if len(self.variants) > MAX_VARIANTS:
            raise Invalid(f"{len(self.variants)} variants", self.name, f"An endpoint has at most {MAX_VARIANTS}.")
        if len(set(names)) < len(names):
            raise Invalid("two variants have one name", self.name, "Give each its own.")
        for variant in self.variants:
            if variant.shadow and variant.weight > 1:
                raise Invalid("the share of a shadow is over 1", f"{self.name}/{variant.name}", "Use 0 to 1.")
        return self

    @property
    def live(self) -> tuple[Variant, ...]:
        """The variants that answer."""
        return tuple(variant for variant in self.variants if not variant.shadow)

    @property
    def shadows(self) -> tuple[Variant, ...]:
        """The variants that get copies."""
        return tuple(variant for variant in self.variants if variant.shadow)

    def variant(self, name: str) -> Variant:
        """One by its name.

        Raises:
            NotFound: there is none.
        """
        for variant in self.variants:
            if variant.name == name:
                return variant
        known = ", ".join(variant.name for variant in self.variants)
        raise NotFound(f"the endpoint has no variant {name[:64]!r}", self.name, f"It has {known}.")

    def choose(self, variant: str = "", key: str = "") -> Variant:
        """The variant for one request.

        Args:
            variant: the one the client named, or empty.
            key: requests of one key (a session, a user) go to one variant as long as the weights stay; empty: by lot.

        Raises:
            NotFound: no such variant.
        """
        if variant:
            return self.variant(variant)
        live = self.live
        total = sum(one.weight for one in live)
        if len(live) == 1 or total <= 0:
            return live[0]
        at = (_fraction(f"{self.name}\0{key}") if key else random.random()) * total
        for one in live:
            at -= one.weight
            if at < 0:
                return one
        return max(live, key=lambda one: one.weight)


def _fraction(key: str) -> float:
    """A number of [0, 1) that a key always has."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=7).digest(), "big") / 2**56


def parse_endpoint(given: Mapping[str, Any]) -> Endpoint:
    """An endpoint from JSON.

    Raises:
        Invalid: a wrong or unknown field; names it.
    """
    try:
        return Endpoint.model_validate(dict(given))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        what = f"unknown field {place}" if first["type"] == "extra_forbidden" else f"{place}: {first['msg']}"
        raise Invalid(what, str(given.get("name", "endpoint"))[:100], "See the docs of endpoints.") from None
