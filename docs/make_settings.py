"""Write docs/settings.md from the settings classes: `python docs/make_settings.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, SecretStr

from octavo.settings import Settings

_INTRO = """# Settings

Defaults, then `octavo.toml` in the workspace, then `OCTAVO_*` in the environment, then command-line flags: the later
wins. A size is a number of bytes or a text such as `"2GiB"`.

```toml
# octavo.toml
[serving]
memory_budget = "4GiB"
```

is the same as `OCTAVO_SERVING__MEMORY_BUDGET=4GiB`.
"""


def render() -> str:
    """The page as Markdown."""
    own = {name: field for name, field in Settings.model_fields.items() if not _is_section(field)}
    parts = [_INTRO, _table("At the top of the file", own, "")]
    for name, field in Settings.model_fields.items():
        if _is_section(field):
            section: Any = field.annotation
            parts.append(_table(f"`[{name}]`: {section.__doc__.rstrip('.')}", section.model_fields, name))
    return "\n".join(parts)


def _is_section(field: Any) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)


def _table(title: str, fields: dict[str, Any], section: str) -> str:
    rows = [f"\n## {title}\n", "| setting | default | environment | what |", "| --- | --- | --- | --- |"]
    for name, field in fields.items():
        variable = "OCTAVO_" + (f"{section.upper()}__" if section else "") + name.upper()
        rows.append(f"| `{name}` | {_default(field)} | `{variable}` | {field.description} |")
    return "\n".join(rows)


def _default(field: Any) -> str:
    value = field.get_default()
    if field.default_factory is not None:
        return "the user's data folder"
    if isinstance(value, SecretStr) or value == "":
        return "empty"
    if isinstance(value, int) and not isinstance(value, bool) and value >= 2**20 and value % 2**20 == 0:
        return f"`{value // 2**20} MiB`" if value < 2**30 else f"`{value // 2**30} GiB`"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    (Path(__file__).parent / "settings.md").write_text(render() + "\n", encoding="utf-8")
