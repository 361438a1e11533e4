"""`octavo bench MODEL`: the table of what a model costs on this machine, and a picture of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from octavo.errors import Invalid
from octavo.printing import print_json, print_table, spinner
from octavo.settings import existing_workspace

if TYPE_CHECKING:
    from octavo.serving.bench import BenchReport
    from octavo.settings import Settings

_BAR = 24
_PICTURES = (".png", ".svg", ".pdf")
_TITLES = ("Tokens", "Callers", "p50 ms", "p99 ms", "Requests/s", "CPU-ms/request", "p50")


def bench(
    model: Annotated[str, typer.Argument(help="Name of a model in the repository.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per measurement.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw: a .png, .svg or .pdf file.")] = None,
    workspace: Annotated[
        Path | None, typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="Workspace.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Measure a model here: cold start, cached latency, throughput by length and callers at once."""
    if plot is not None:
        _check_picture(plot)
    report = asyncio.run(_measure(existing_workspace(workspace), model, seconds, quiet=as_json))
    if as_json:
        print_json(report.to_json())
    else:
        _print(report)
    if plot is not None:
        from octavo.serving.bench import plot as draw

        draw(report, plot)


def _check_picture(file: Path) -> None:
    """Before minutes are spent measuring."""
    if file.suffix not in _PICTURES:
        raise Invalid(f"not a kind of picture: {file.name!r}", "--plot", f"End the name in {', '.join(_PICTURES)}.")
    if not file.absolute().parent.is_dir():
        raise Invalid("there is no such folder", str(file.absolute().parent), "Make it, or name another.")


async def _measure(settings: Settings, model: str, seconds: float, quiet: bool) -> BenchReport:
    from octavo.serving.bench import bench as measure
    from octavo.serving.service import Serving

    server = await Serving.open(settings, keep_pinned=False)
    try:
        with spinner(f"measuring {model}", quiet) as status:
            return await measure(server, model, seconds=seconds, progress=lambda what: status(f"{model}: {what}"))
    finally:
        await server.close()


def _print(report: BenchReport) -> None:
    cold = report.cold
    typer.echo(f"{report.model} version {report.version}")
    typer.echo(f"cold start to first answer  {cold.cold_wall_ms:8.1f} ms  ({cold.cold_cpu_ms:.1f} CPU-ms)")
    typer.echo(f"cached                      {cold.cached_wall_ms:8.1f} ms  ({cold.cached_cpu_ms:.1f} CPU-ms)")
    typer.echo(f"cold / cached               {cold.cold_wall_ms / cold.cached_wall_ms:8.1f} x\n")
    slowest = max(load.p50_ms for load in report.loads)
    rows = [
        (
            str(load.tokens or "-"),
            str(load.concurrency),
            f"{load.p50_ms:.1f}",
            f"{load.p99_ms:.1f}",
            f"{load.per_second:.1f}",
            f"{load.cpu_ms:.2f}",
            "█" * max(1, round(_BAR * load.p50_ms / slowest)),
        )
        for load in report.loads
    ]
    print_table(_TITLES, rows)
    cut = {load.tokens for load in report.loads if load.read < load.tokens}
    if cut:
        most = max(load.read for load in report.loads)
        typer.echo(f"\nThe model reads {most} tokens; of {min(cut)} it computed the first {most}.")
        typer.echo("A model added with a larger --max-tokens reads as many as it has positions.")
