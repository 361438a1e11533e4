"""`octavo tour`: a sample workspace, the main job of every installed system, and a report with figures and pictures."""

from __future__ import annotations

import html
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import typer

from octavo.errors import Conflict, OctavoError, Unavailable
from octavo.report import Chapter
from octavo.settings import Settings, load_settings
from octavo.storage.atomic import write_atomic

FIRST_LINE = "# The sample workspace of `octavo tour`."
CHAPTERS = ("octavo.serving.tour",)
REPORT = "tour.html"
START_SECONDS = 60.0

Say = Callable[[str], None]


def tour(
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", help="Sample workspace; default: ./tour-workspace.")
    ] = None,
    keep: Annotated[bool, typer.Option(help="Keep the sample workspace for another tour.")] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """See every installed system do its main job, and write tour.html into the current folder."""
    folder = (workspace or Path("tour-workspace")).absolute()
    check_workspace(folder)
    start = time.monotonic()

    def say(what: str) -> None:
        if not as_json:
            typer.echo(f"  {time.monotonic() - start:5.1f} s  {what}", err=True)

    chapters = take_tour(folder, say)
    seconds = time.monotonic() - start
    write_atomic(REPORT, render(chapters, seconds).encode())
    if not keep:
        shutil.rmtree(folder)
    failures = [failure for chapter in chapters for failure in chapter.failures]
    if as_json:
        typer.echo(json.dumps(_as_data(chapters, seconds), indent=2))
    else:
        _print(chapters, seconds)
    if failures:
        raise typer.Exit(1)


def take_tour(folder: Path, say: Say) -> list[Chapter]:
    """Prepare the workspace, start a real server on it, and visit every system.

    A system that raises becomes a chapter that says so.
    """
    from octavo.serving.client import Client

    modules = [importlib.import_module(name) for name in CHAPTERS]
    settings = make_workspace(folder, modules)
    failed = {module: _prepare(module, settings, say) for module in modules}
    with running_server(folder, say) as run, Client(run["url"], token=run["token"]) as client:
        return [failed[module] or _visit(module, client, say) for module in modules]


def check_workspace(folder: Path) -> None:
    """Raise `Conflict` for a folder that is not the tour's own: it writes settings there, and may delete it."""
    file = folder / "octavo.toml"
    own = file.is_file() and file.read_text(encoding="utf-8", errors="replace").startswith(FIRST_LINE)
    if not own and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise Conflict("the folder is not one of an earlier tour", str(folder), "Name an empty or a new one.")


def make_workspace(folder: Path, modules: list[ModuleType]) -> Settings:
    """The sample workspace with the settings its chapters ask for."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [FIRST_LINE]
    for module in modules:
        section = module.__name__.split(".")[1]
        lines += [f"[{section}]", *(f"{key} = {value}" for key, value in module.settings_for_tour().items())]
    write_atomic(folder / "octavo.toml", ("\n".join(lines) + "\n").encode())
    return load_settings(folder)


@contextmanager
def running_server(folder: Path, say: Say) -> Iterator[dict[str, Any]]:
    """A server of its own process on the workspace; gives its address and token, stops it at the end.

    Raises:
        Unavailable: it did not start; holds the last lines it printed.
    """
    say("starting the server")
    log_file = folder / "server.log"
    with log_file.open("w") as log:
        command = [sys.executable, "-m", "octavo.cli", "up", "--port", "0", "--workspace", str(folder)]
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | {"OCTAVO_WORKSPACE": str(folder)})
    try:
        yield _await_server(folder / "run" / "server.json", process, log_file)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()


def _await_server(file: Path, process: subprocess.Popen[bytes], log_file: Path) -> dict[str, Any]:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            run: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            if run["pid"] == process.pid:
                return run
        except (OSError, ValueError, KeyError):
            time.sleep(0.05)
            continue
        time.sleep(0.05)
    last = log_file.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-3:]
    raise Unavailable("the server did not start", str(log_file), " ".join(last))


def _prepare(module: ModuleType, settings: Settings, say: Say) -> Chapter | None:
    """Make a system's part of the workspace; a chapter that tells the failure when that is impossible."""
    try:
        module.prepare(settings, say)
    except Exception as error:
        return _failed(module, error)
    return None


def _visit(module: ModuleType, client: Any, say: Say) -> Chapter:
    try:
        chapter: Chapter = module.visit(client, say)
    except Exception as error:
        return _failed(module, error)
    return chapter


def _failed(module: ModuleType, error: Exception) -> Chapter:
    """One system's failure, whatever it is, leaves the others their chapters."""
    what = str(error) if isinstance(error, OctavoError) else f"{type(error).__name__}: {error}"
    title = module.__name__.split(".")[1].capitalize()
    return Chapter(title, "It could not do its main job.", failures=[what])


def _print(chapters: list[Chapter], seconds: float) -> None:
    for chapter in chapters:
        typer.echo(f"\n{chapter.title}\n{chapter.story}\n")
        width = max((len(figure.label) for figure in chapter.figures), default=0)
        for figure in chapter.figures:
            note = f"   ({figure.note})" if figure.note else ""
            typer.echo(f"  {figure.label:<{width}}  {figure.value}{note}")
        for failure in chapter.failures:
            typer.secho(f"  FAILED: {failure}", fg=typer.colors.RED)
    typer.echo(f"\n{seconds:.0f} s in all; pictures: {Path(REPORT).absolute()}")


def _as_data(chapters: list[Chapter], seconds: float) -> dict[str, Any]:
    rows = [
        {
            "title": chapter.title,
            "figures": [{"label": f.label, "value": f.value, "note": f.note} for f in chapter.figures],
            "failures": chapter.failures,
        }
        for chapter in chapters
    ]
    return {"seconds": round(seconds, 1), "report": REPORT, "chapters": rows}


def render(chapters: list[Chapter], seconds: float) -> str:
    """The report as one HTML page without outside parts."""
    body = "\n".join(_render_chapter(chapter) for chapter in chapters)
    return _PAGE.format(style=_STYLE, body=body, seconds=f"{seconds:.0f}")


def _render_chapter(chapter: Chapter) -> str:
    cards = "".join(
        f"<div class=card><div class=label>{html.escape(f.label)}</div><div class=value>{html.escape(f.value)}</div>"
        f"<div class=note>{html.escape(f.note)}</div></div>"
        for f in chapter.figures
    )
    pictures = "".join(
        f"<figure>{p.svg}<figcaption>{html.escape(p.caption)}</figcaption></figure>" for p in chapter.pictures
    )
    failures = "".join(f"<p class=failed>{html.escape(failure)}</p>" for failure in chapter.failures)
    return (
        f"<section><h2>{html.escape(chapter.title)}</h2><p>{html.escape(chapter.story)}</p>{failures}"
        f"<div class=cards>{cards}</div>{pictures}</section>"
    )


_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8889; --panel: #8881; --bad: #c0392b; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 760px; margin: 3rem auto; padding: 0 1rem; }
h1 { font-weight: 600; margin-bottom: 0; } h2 { font-weight: 600; margin-top: 2.5rem; }
.cards { display: flex; flex-wrap: wrap; gap: .75rem; margin: 1.5rem 0; }
.card { flex: 1 1 165px; border: 1px solid var(--line); border-radius: 8px; padding: .75rem 1rem; }
.label, .note, figcaption, footer { color: GrayText; font-size: .85rem; }
.value { font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.failed { border-left: 4px solid var(--bad); padding-left: .75rem; }
figure { margin: 1.5rem 0; padding: 1rem; border: 1px solid var(--line); border-radius: 8px; }
figure svg { width: 100%; height: auto; display: block; } figcaption { margin-top: .5rem; }
footer { margin-top: 3rem; }
"""

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>octavo tour</title><style>{style}</style></head>
<body><h1>octavo tour</h1>
{body}
<footer>Made by <code>octavo tour</code> in {seconds} s; every figure was measured on this machine in this run.</footer>
</body></html>
"""
