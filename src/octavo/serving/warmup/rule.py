"""A rule of the warm-up: which models are to be in memory, and when. Pure: nothing is stored or loaded here.

Either by schedule: from each firing of a cron expression on, for some minutes. Or by prediction: whenever usage so far
makes a request in the next hour likely enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from octavo.access.permissions import matches
from octavo.errors import Invalid
from octavo.jobs.schedules import next_time
from octavo.serving.model_config import MAX_NAME, is_name

MAX_NAMES = 1000
HOURLY = "0 * * * *"

_Pattern = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_*-][A-Za-z0-9._*-]{0,199}$")]


class WarmupRule(BaseModel):
    """One rule.

    Attributes:
        name: of the rule.
        models: names of models or endpoints; `*` stands for any run of characters of a model's name.
        predict: load those that are likely to be asked, instead of all at set times.
        probability: with `predict`, of a request within the next hour, from which on a model is loaded. The likeliest
            go first anyway, so a low one costs loads, and what memory is free is used.
        cron: five fields, in `timezone`; hourly unless said.
        keep_minutes: after a firing, for which the models are kept in memory.
        lead_minutes: before a firing (with `predict`: before the hour), at which loading begins.
        timezone: of `cron`, as Europe/Berlin.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    models: tuple[_Pattern, ...] = Field(("*",), min_length=1, max_length=MAX_NAMES)
    predict: bool = False
    probability: float = Field(0.05, ge=0.001, le=1)
    cron: str = HOURLY
    keep_minutes: int = Field(60, ge=1, le=7 * 24 * 60)
    lead_minutes: int = Field(5, ge=0, le=30)
    timezone: str = Field("UTC", max_length=60)

    @field_validator("name")
    @classmethod
    def _name(cls, value: str) -> str:
        if not is_name(value):
            fix = f"Use up to {MAX_NAME} letters, digits, '.', '_' and '-', the first not a dot."
            raise Invalid(f"{value[: MAX_NAME + 1]!r} is not a rule's name", "name", fix)
        return value

    @field_validator("timezone")
    @classmethod
    def _timezone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise Invalid(f"no such time zone: {value!r:.70}", "timezone", "Write UTC, or as Europe/Berlin.") from None
        return value

    @field_validator("cron")
    @classmethod
    def _cron(cls, value: str) -> str:
        next_time(value, datetime(2026, 1, 1, tzinfo=ZoneInfo("UTC")))
        return value

    def is_open(self, now: datetime) -> bool:
        """Whether a schedule wants its models in memory at this time (aware): it fires soon, or has lately."""
        zone = ZoneInfo(self.timezone)
        since = (now - timedelta(minutes=self.keep_minutes)).astimezone(zone)
        return not self.predict and next_time(self.cron, since) <= now + timedelta(minutes=self.lead_minutes)

    def names(self, model: str) -> bool:
        """Whether the rule is about a model."""
        return any(matches(pattern, model) for pattern in self.models)


def parse_rule(given: Mapping[str, Any]) -> WarmupRule:
    """A rule from JSON.

    Raises:
        Invalid: a wrong or unknown field; names it and says what is allowed.
    """
    try:
        return WarmupRule.model_validate(dict(given))
    except ValidationError as error:
        raise _readable(error, str(given.get("name", "rule"))[:100]) from None


def _readable(error: ValidationError, rule: str) -> Invalid:
    """The first thing that is wrong, with what its field may be."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:100]
    known = WarmupRule.model_json_schema()["properties"]
    if first["type"] == "extra_forbidden":
        return Invalid(f"unknown field {place}", rule, f"Fields are: {', '.join(known)}.")
    if first["type"] == "missing":
        return Invalid(f"{place} is missing", rule)
    return Invalid(f"{place} cannot be {first['input']!r:.80}", rule, _allowed(known[str(first["loc"][0])]))


def _allowed(field: Mapping[str, Any]) -> str:
    """What a field may be, from its JSON schema."""
    if "minimum" in field:
        whole = "a whole number from " if field["type"] == "integer" else ""
        return f"Write {whole}{field['minimum']:g} to {field['maximum']:g}."
    if field["type"] == "array":
        return f"Write 1 to {MAX_NAMES} names of models or endpoints, * for any run of characters."
    return "Write true or false." if field["type"] == "boolean" else "Write a text."
