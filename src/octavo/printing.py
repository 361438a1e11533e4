"""What commands write: JSON, tables, and a line that turns while work goes on."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import typer

_NUMBER = re.compile(r"[-+]?[\d.,]*%?")
_NARROWEST = 12
"""Characters that a column of names keeps where it is broken."""
_SENTENCE = 20
"""Characters that a column of sentences keeps."""


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
    """A table on standard output. Columns that no row fills are left out.

    Sentences wrap between words. Numbers are never broken, nor is the first column: it is a name. Other names are
    broken on a terminal only, when the whole does not fit otherwise; where it does not fit even so, lines are longer.

    Args:
        titles: of the columns.
        rows: a cell per column.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [at for at in range(len(titles)) if any(row[at] for row in rows)] or range(len(titles))
    columns = [[row[at] for row in rows] for at in shown]
    console = Console()
    widths, gap = _fit([titles[at] for at in shown], columns, console.width, console.is_terminal)
    table = Table(box=None, pad_edge=False, padding=(0, gap, 0, 0))
    for at, width in zip(shown, widths, strict=True):
        table.add_column(titles[at], width=width, overflow="fold")
    for row in rows:
        table.add_row(*(Text(row[at]) for at in shown))
    console.width = max(console.width, sum(widths) + gap * len(widths))
    console.print(table)


def _fit(titles: Sequence[str], columns: Sequence[Sequence[str]], room: int, may_break: bool) -> tuple[list[int], int]:
    """The width of each column and the gap between them, in characters, for lines of `room` characters."""
    from rich.cells import cell_len

    wide = [max(map(cell_len, [title, *column])) for title, column in zip(titles, columns, strict=True)]
    least = [_least(title, column) for title, column in zip(titles, columns, strict=True)]
    least[0] = wide[0]
    gap = 2 if sum(least) + 2 * (len(least) - 1) <= room else 1
    room -= gap * (len(least) - 1)
    names = [at for at, column in enumerate(columns) if at and not all(_NUMBER.fullmatch(cell) for cell in column)]
    while may_break and sum(least) > room and names:
        longest = max(names, key=lambda at: least[at])
        if least[longest] <= _NARROWEST:
            break
        least[longest] -= 1
    while sum(wide) > room and wide != least:
        widest = max((at for at in range(len(wide)) if wide[at] > least[at]), key=lambda at: wide[at])
        wide[widest] -= 1
    return wide, gap


def _least(title: str, column: Sequence[str]) -> int:
    """The narrowest that a column can be without a broken word, or a sentence one word wide."""
    from rich.cells import cell_len

    words = max((cell_len(word) for text in (title, *column) for word in text.split()), default=1)
    longest = max(map(cell_len, column), default=0)
    return max(words, min(longest, _SENTENCE))


@contextmanager
def spinner(message: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A line on standard error that turns while work goes on; gives a function that changes its text."""
    from rich.console import Console

    with Console(stderr=True, quiet=quiet).status(message) as status:
        yield status.update
