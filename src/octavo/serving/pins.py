"""The models an operator wants kept in memory, remembered over restarts in a small file of the workspace."""

from __future__ import annotations

import json
import logging
from collections.abc import Set
from pathlib import Path

from octavo.storage.atomic import write_atomic

PIN_FILE = "pins.json"

log = logging.getLogger("octavo.serving")


def read_pins(file: Path) -> set[str]:
    """Names of pinned models; none, with a word in the log, when the file cannot be read."""
    try:
        names = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return set(names)
        log.warning("%s does not hold a list of names; nothing is pinned", file)
    except FileNotFoundError:
        pass  # nothing was ever pinned
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read, nothing is pinned: %s", file, error)
    return set()


def write_pins(file: Path, names: Set[str]) -> None:
    """Remember the names, whole or not at all."""
    write_atomic(file, json.dumps(sorted(names)).encode())
