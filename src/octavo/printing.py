"""What commands write: JSON, tables, and a line that turns while work goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer


def print_json(value: Any) -> None:
    """JSON on standard output; times in ISO 8601."""
    typer.echo(json.dumps(value, indent=2, default=datetime.isoformat))


def say(as_json: bool, facts: Any, sentence: str) -> None:
    """What a command did: a sentence, or with `--json` the facts of it."""
    if as_json:
        print_json(facts)
    else:
        typer.echo(sentence)


def print_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on standard output. Columns that no row fills are left out; the first is never cut: it is a name.

    Args:
        titles: of the columns.
        rows: a cell per column.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [at for at in range(len(titles)) if any(row[at] for row in rows)] or range(len(titles))
    table = Table(box=None, pad_edge=False)
    for at in shown:
        widest = max((len(row[at]) for row in rows), default=0)
        table.add_column(titles[at], no_wrap=at == 0, min_width=widest if at == 0 else None, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[at]) for at in shown))
    Console().print(table)


@contextmanager
def spinner(message: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on standard error that turns while work goes on; gives a function that changes its text."""
    from rich.console import Console

    with Console(stderr=True, quiet=quiet).status(message) as status:
        yield status.update
