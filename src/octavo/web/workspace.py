"""`octavo init`: a folder to work in."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from octavo.errors import Conflict, Invalid
from octavo.settings import CONFIG_FILE, Settings
from octavo.storage.atomic import write_atomic

FOLDERS = ("models", "objects", "run")
_NOT_IN_FILE = {"workspace"}


def make_workspace(folder: Path) -> None:
    """Make `folder` with its sub-folders and an `octavo.toml` that holds every default, commented out.

    Raises:
        Conflict: it is a workspace already.
        Invalid: it cannot be made.
    """
    try:
        for name in FOLDERS:
            (folder / name).mkdir(parents=True, exist_ok=True, mode=0o700 if name == "run" else 0o777)
    except OSError as error:
        raise Invalid(f"the folder cannot be made: {error.strerror}", str(folder), "Choose another.") from None
    try:
        write_atomic(folder / CONFIG_FILE, default_file().encode(), create_only=True)
    except Conflict:
        raise Conflict("it is a workspace already", str(folder), f"Edit its {CONFIG_FILE}, or start it.") from None


def default_file() -> str:
    """The text of an `octavo.toml` in which every setting stands at its default, commented out."""
    lines = ["# Settings of this workspace. A line without # overrides the default shown.", ""]
    sections = []
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            sections.append((name, field.annotation))
        elif name not in _NOT_IN_FILE:
            lines += _setting(name, field)
    for name, section in sections:
        lines += [f"[{name}]"]
        for key, field in section.model_fields.items():
            lines += _setting(key, field)
    return "\n".join(lines)


def _setting(name: str, field: FieldInfo) -> list[str]:
    value = field.default
    if value is PydanticUndefined:
        return []
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    return [f"# {field.description}", f"#{name} = {json.dumps(value)}", ""]
