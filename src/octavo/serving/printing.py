"""What serving's commands write: JSON, tables, and a line that turns while work goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import typer


def print_json(value: Any) -> None:
    """JSON on standard output."""
    typer.echo(json.dumps(value, indent=2))


def print_table(rows: Sequence[Mapping[str, Any]], heads: Mapping[str, str]) -> None:
    """A table of the columns that any row fills.

    Args:
        rows: by key.
        heads: key to heading, in order.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = {key: head for key, head in heads.items() if any(row.get(key) not in (None, "") for row in rows)}
    table = Table(*shown.values(), box=None, pad_edge=False)
    for row in rows:
        table.add_row(*(Text(str(row.get(key, ""))) for key in shown))
    Console().print(table)


@contextmanager
def spinner(message: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on standard error that turns while work goes on; gives a function that changes its text."""
    from rich.console import Console

    with Console(stderr=True, quiet=quiet).status(message) as status:
        yield status.update
