"""What every page of serving works with, and the few pieces of markup that several share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from html import escape
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from nicegui import ui

from octavo.access import Principal
from octavo.errors import OctavoError

if TYPE_CHECKING:
    from octavo.jobs import Jobs
    from octavo.serving.service import Serving
    from octavo.serving.traffic import VariantStatistics
    from octavo.settings import Settings

T = TypeVar("T")
Frame = Callable[[str], AbstractContextManager[Principal]]

REFRESH_SECONDS = 2.0

_INK = "#8b93a1"
AXIS = {"color": _INK}
GRID_LINE = {"lineStyle": {"color": "#8883"}}
LEGEND = {"right": 8, "top": 0, "icon": "roundRect", "itemWidth": 10, "itemHeight": 10, "textStyle": {"color": _INK}}
"""Parts of a chart's options; their colours do in both themes."""

_SEARCHABLE = 6
"""A list longer than this can be searched."""
_MOST_CARDS = 50
_NUMBER = ' class="o-number"'
_WRONG = 0.01
"""The share of failures from which on they are marked."""


class Console(NamedTuple):
    """What pages are made with: the service, the frame around a page, the settings, and the jobs if there are any."""

    service: Serving
    frame: Frame
    settings: Settings
    jobs: Jobs | None


async def told(work: Awaitable[object], done: str) -> None:
    """Await a change and say how it went."""
    try:
        await work
    except OctavoError as error:
        ui.notify(str(error), type="negative", multi_line=True)
    else:
        ui.notify(done, type="positive")


class Search:
    """A field above a list of cards: of many only some are drawn, and those whose names hold what is searched for.

    Args:
        label: of the field.
        changed: draws the list anew.
    """

    def __init__(self, label: str, changed: Callable[[], Awaitable[None]]) -> None:
        self._field = ui.input(label, on_change=changed).props("dense clearable debounce=300").classes("o-search")
        self._more = ui.label().classes("o-quiet o-small")

    def pick(self, found: Sequence[T], name_of: Callable[[T], str]) -> list[T]:
        """What is to be drawn."""
        wanted = (self._field.value or "").strip().lower()
        fitting = [one for one in found if wanted in name_of(one).lower()]
        self._field.set_visibility(len(found) > _SEARCHABLE)
        hidden = len(fitting) > _MOST_CARDS or (bool(found) and not fitting)
        self._more.set_text(f"{min(_MOST_CARDS, len(fitting))} of {len(found):,} are shown.")
        self._more.set_visibility(hidden)
        return fitting[:_MOST_CARDS]


async def answer_of(dialog: ui.dialog) -> bool:
    """Show a dialog until it is answered, then take it off the page; no where the page was left meanwhile."""
    answer = bool(await dialog)
    if not dialog.is_deleted:
        dialog.delete()
    return answer


async def sure(title: str, text: str, yes: str) -> bool:
    """Ask before something that matters to others is done."""
    with ui.dialog() as dialog, ui.card():
        ui.label(title).classes("o-dialog-title")
        ui.label(text)
        with ui.element("div").classes("o-row o-wide o-end"):
            ui.button("Cancel", on_click=lambda: dialog.submit(False)).props("flat no-caps")
            ui.button(yes, on_click=lambda: dialog.submit(True)).props("unelevated no-caps")
    return await answer_of(dialog)


def may_change_some(principal: Principal) -> bool:
    """Whether it makes sense to offer something new: the name decides in the end."""
    return any(grant.role != "viewer" for grant in principal.grants)


def alert(problem: object) -> str:
    """Something went wrong; empty for nothing."""
    return f'<p class="o-alert" role="alert">{escape(str(problem))}</p>' if problem else ""


def empty(text: str, *commands: str) -> str:
    """Nothing here yet: what would be, and the commands that make it."""
    lines = "".join(f"<div>{command(each)}</div>" for each in commands)
    return f'<div class="o-card o-empty"><p>{escape(text)}</p>{lines}</div>'


def command(text: str) -> str:
    """A command line, which is broken between its words only."""
    return f"<code>{' '.join(f'<span>{escape(word)}</span>' for word in text.split())}</code>"


def figures(cards: Iterable[tuple[str, str]]) -> str:
    """Numbers with what they count, side by side."""
    drawn = "".join(
        f'<div class="o-card o-figure"><div class="o-figure-value">{escape(value)}</div>'
        f'<div class="o-figure-caption">{escape(caption)}</div></div>'
        for value, caption in cards
    )
    return f'<div class="o-grid">{drawn}</div>'


def table(titles: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """A table of cells that are markup already; the last `numbers` columns hold numbers."""
    first = len(titles) - numbers
    names = [escape(title) for title in titles]
    head = "".join(f"<th{_NUMBER if at >= first else ''}>{name}</th>" for at, name in enumerate(names))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td{_NUMBER} data-title="{names[at]}">{cell}</td>' if at >= first and cell else f"<td>{cell}</td>"
            for at, cell in enumerate(cells)
        )
        + "</tr>"
        for cells in rows
    )
    return (
        f'<div class="o-scroll"><table class="o-table o-lines"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def tag(text: str, kind: str = "", title: str = "") -> str:
    """A state; `kind` is one of the frame's colours, as `o-good`."""
    hint = f' title="{escape(title)}"' if title else ""
    return f'<span class="o-tag {kind}"{hint}>{escape(text)}</span>'


def split_bar(parts: Sequence[tuple[str, float]], label: str) -> str:
    """A bar of (name, share) parts, in the order of the frame's colours."""
    segments = "".join(
        f'<i class="o-part-{at % 6 + 1}" style="width:{share:.3%}" title="{escape(name)}: {share:.1%}"></i>'
        for at, (name, share) in enumerate(parts)
        if share > 0
    )
    return f'<div class="o-bar" role="img" aria-label="{escape(label)}">{segments}</div>'


def dot(at: int) -> str:
    """The colour of the part `at` in a `split_bar`."""
    return f'<i class="o-dot o-part-{at % 6 + 1}"></i>'


def errors_of(counts: VariantStatistics | None) -> str:
    """How many requests failed, marked from 1 % on."""
    if counts is None or not counts.failures.count:
        return "0"
    share = counts.failures.count / counts.requests
    return tag(f"{counts.failures.count:,} · {percent(share)}", "o-bad" if share >= _WRONG else "")


def latency_of(counts: VariantStatistics | None, share: float) -> str:
    """A percentile of the last minutes, in ms."""
    seconds = counts.latency.percentile(share) if counts else 0.0
    return f"{seconds * 1e3:,.1f}" if seconds else "–"


def agreement_of(counts: VariantStatistics | None) -> str:
    """How many of a shadow's answers were those of the variant that answered."""
    if counts is None or not (counts.compared or counts.dropped):
        return "–"
    dropped = f", {counts.dropped:,} not sent" if counts.dropped else ""
    if not counts.compared:
        return dropped.removeprefix(", ")
    return f"{percent(counts.agreed / counts.compared)} of {counts.compared:,}{dropped}"


def percent(share: float) -> str:
    """`7 %`, `0.25 %`."""
    return f"{100 * share:.3g} %"
