"""The command-line door of serving: `octavo models ...` and `octavo bench MODEL`.

What needs the models in memory (load, unload, pin) talks to the workspace's running server; what needs only the
repository works without one.
"""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from octavo.errors import Invalid, NotFound, Unavailable

if TYPE_CHECKING:
    from octavo.serving.bench import BenchReport
    from octavo.serving.client import Client
    from octavo.settings import Settings

app = typer.Typer(help="Models: what there is, what is in memory, and answers from them.", no_args_is_help=True)

Workspace = Annotated[Path | None, typer.Option("--workspace", "-w", envvar="OCTAVO_WORKSPACE", help="Workspace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Name = Annotated[str, typer.Argument(help="Name of a model in the repository.")]


@app.command("ls")
def list_models(workspace: Workspace = None, as_json: AsJson = False) -> None:
    """List the repository's models; with a running server, what each holds in memory too."""
    settings = _settings(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            rows = client.models()
    else:
        from octavo.serving.repository import Repository

        repository = Repository.open(settings.repository_url, settings)
        rows = [{"name": name, "version": v} for name in repository.names() for v in repository.versions(name)]
    if as_json:
        _print_json(rows)
        return
    for row in rows:
        if row.get("resident"):
            row["memory"] = f"{row['resident_bytes'] / 2**20:.1f}"
        row["shown"] = row.get("reason") or ("in memory" if row.get("resident") else row.get("state", "").lower())
    heads = {"name": "Model", "version": "Version", "shown": "State", "memory": "MiB", "pinned": "Pinned"}
    _table(rows, heads)


@app.command()
def add(
    source: Annotated[str, typer.Argument(help="'minilm', a folder in sentence-transformers' format, or a hub id.")],
    name: Annotated[str, typer.Option(help="Name in the repository; default: from the source.")] = "",
    precision: Annotated[str, typer.Option(help="fp32, int8, or both (the int8 one is called NAME-int8).")] = "both",
    max_tokens: Annotated[int | None, typer.Option(help="Cut longer texts; default: what the source says.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Build an embedding model and publish it in the repository."""
    from octavo.serving.minilm import add_embedding_model
    from octavo.serving.onnx_runtime import OnnxRuntimeBackend
    from octavo.serving.repository import Repository

    if precision not in ("fp32", "int8", "both"):
        raise Invalid(f"unknown precision {precision!r}", "--precision", "Use fp32, int8 or both.")
    settings = _settings(workspace)
    repository = Repository.open(settings.repository_url, settings)
    base = name or Path(source).name.lower()
    wanted = {"fp32": [(base, "fp32")], "int8": [(base, "int8")]}.get(
        precision, [(base, "fp32"), (f"{base}-int8", "int8")]
    )
    added: list[dict[str, str]] = []
    for model, kind in wanted:
        try:
            with _spinner(f"building {model} ({kind})", quiet=as_json):
                version = add_embedding_model(repository, model, source, precision=kind, max_tokens=max_tokens)
                OnnxRuntimeBackend(settings).prepare(repository.resolve(model, version))
        except Invalid as error:
            if not added:
                raise
            typer.echo(f"no {kind} form: {error}", err=True)  # both were asked for by default, and one is there
            continue
        added.append({"name": model, "version": version, "precision": kind})
    if as_json:
        _print_json(added)
        return
    for row in added:
        typer.echo(f"added {row['name']} version {row['version']} ({row['precision']})")
    typer.echo(f"try it: octavo models infer {base} --text 'hello'")


@app.command()
def load(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Bring a model into the running server's memory."""
    with _server(workspace) as client:
        client.load(name)
    _done(f"{name} is in memory", {"name": name, "loaded": True}, as_json)


@app.command()
def unload(name: Name, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Send a model out of the running server's memory; the next request loads it again."""
    with _server(workspace) as client:
        client.unload(name)
    _done(f"{name} has left memory", {"name": name, "loaded": False}, as_json)


@app.command()
def pin(
    name: Name,
    off: Annotated[bool, typer.Option("--off", help="Let it be evicted again.")] = False,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Keep a model in the running server's memory."""
    with _server(workspace) as client:
        client.pin(name, not off)
    _done(f"{name} is {'no longer ' if off else ''}pinned", {"name": name, "pinned": not off}, as_json)


@app.command("use-version")
def use_version(name: Name, version: str, workspace: Workspace = None, as_json: AsJson = False) -> None:
    """Serve another version of a model by default (roll back or forward); nothing is deleted."""
    from octavo.serving.model_config import DEFAULT_LABEL
    from octavo.serving.repository import Repository

    settings = _settings(workspace)
    client = find_server(settings)
    if client is not None:
        with client:
            client.use_version(name, version)
    else:
        Repository.open(settings.repository_url, settings).set_label(name, DEFAULT_LABEL, version)
    _done(f"{name} answers with version {version}", {"name": name, "version": version}, as_json)


@app.command()
def infer(
    name: Name,
    text: Annotated[list[str] | None, typer.Option(help="A text to embed; may be given again.")] = None,
    inputs: Annotated[Path | None, typer.Option(help="JSON file: {input name: nested lists}.")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Ask a model: through the running server, or in this process when there is none."""
    settings = _settings(workspace)
    tensors = _read_inputs(text, inputs)
    client = find_server(settings)
    if client is not None:
        with client:
            outputs = client.infer(name, tensors)
    else:
        outputs = asyncio.run(_infer_here(settings, name, tensors))
    if as_json:
        _print_json({key: _plain(array) for key, array in outputs.items()})
        return
    for key, array in outputs.items():
        typer.echo(f"{key} {array.dtype} {list(array.shape)}: {_preview(array)}")


def bench(
    model: Annotated[str, typer.Argument(help="Name of a model in the repository.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Seconds per measurement.")] = 3.0,
    plot: Annotated[Path | None, typer.Option(help="Picture to draw (png or svg).")] = None,
    workspace: Workspace = None,
    as_json: AsJson = False,
) -> None:
    """Measure a model here: cold start, cached latency, throughput by length and callers at once."""
    report = asyncio.run(_bench_here(_settings(workspace), model, seconds, quiet=as_json))
    if plot is not None:
        from octavo.serving.bench import plot as draw

        draw(report, plot)
    if as_json:
        _print_json(report.to_json())
        return
    cold = report.cold
    typer.echo(f"{report.model} version {report.version}")
    typer.echo(f"cold start to first answer  {cold.cold_wall_ms:8.1f} ms  ({cold.cold_cpu_ms:.1f} CPU-ms)")
    typer.echo(f"cached                      {cold.cached_wall_ms:8.1f} ms  ({cold.cached_cpu_ms:.1f} CPU-ms)")
    typer.echo(f"cold / cached               {cold.cold_wall_ms / cold.cached_wall_ms:8.1f} x")
    rows = [
        {
            "tokens": load.tokens or "-",
            "callers": load.concurrency,
            "p50": f"{load.p50_ms:.1f}",
            "p99": f"{load.p99_ms:.1f}",
            "rate": f"{load.per_second:.1f}",
            "cpu": f"{load.cpu_ms:.2f}",
        }
        for load in report.loads
    ]
    heads = {"tokens": "Tokens", "callers": "Callers", "p50": "p50 ms", "p99": "p99 ms", "rate": "Requests/s"}
    _table(rows, heads | {"cpu": "CPU-ms/request"})


def find_server(settings: Settings) -> Client | None:
    """A client of the workspace's running server; None when there is none."""
    file = settings.run_folder / "server.json"
    try:
        run = json.loads(file.read_text(encoding="utf-8"))
        url, token = str(run["url"]), str(run["token"])
    except (OSError, ValueError, KeyError, TypeError):  # none was started, or it is just starting or stopping
        return None
    from octavo.serving.client import Client

    client = Client(url, token=token)
    return client if client.ready() else None


def _server(workspace: Path | None) -> Client:
    settings = _settings(workspace)
    client = find_server(settings)
    if client is None:
        raise Unavailable("no server is running", str(settings.workspace), "Start it: octavo up")
    return client


def _settings(workspace: Path | None) -> Settings:
    from octavo.settings import load_settings

    return load_settings(workspace)


async def _infer_here(settings: Settings, name: str, tensors: dict[str, Any]) -> dict[str, Any]:
    from octavo.serving.inference import InferRequest
    from octavo.serving.service import Serving

    server = await Serving.open(settings)
    try:
        return dict((await server.infer(InferRequest(name, tensors))).outputs)
    finally:
        await server.close()


async def _bench_here(settings: Settings, model: str, seconds: float, quiet: bool) -> BenchReport:
    from octavo.serving.bench import bench as measure
    from octavo.serving.service import Serving

    server = await Serving.open(settings)
    try:
        with _spinner(f"measuring {model}", quiet) as status:
            return await measure(server, model, seconds=seconds, progress=lambda what: status(f"{model}: {what}"))
    finally:
        await server.close()


def _read_inputs(text: list[str] | None, file: Path | None) -> dict[str, Any]:
    from octavo.serving.question import read_tensors, text_tensors

    if text and file is None:
        return text_tensors(text)
    if text or file is None:
        raise Invalid(
            "give either texts or a file", "octavo models infer", "Use --text 'hello', or --inputs FILE.json."
        )
    try:
        return read_tensors(file.read_bytes(), str(file))
    except OSError as error:
        raise NotFound(f"the file cannot be read: {error.strerror}", str(file)) from None


def _plain(array: Any) -> Any:
    """Nested lists; BYTES as text."""
    if array.dtype != object:
        return array.tolist()
    return [_plain(row) if hasattr(row, "dtype") else row.decode("utf-8", "replace") for row in array]


def _preview(array: Any) -> str:
    values = _plain(array.ravel()[:6])
    shown = ", ".join(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values)
    return shown + (", ..." if array.size > 6 else "")


def _spinner(message: str, quiet: bool) -> Any:
    """A line on stderr that turns while work goes on; gives a function that changes its text."""
    from contextlib import contextmanager

    from rich.console import Console

    @contextmanager
    def turning() -> Any:
        console = Console(stderr=True, quiet=quiet)
        with console.status(message) as status:
            yield status.update

    return turning()


def _done(sentence: str, facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _print_json(facts)
    else:
        typer.echo(sentence)


def _print_json(value: Any) -> None:
    typer.echo(json.dumps(value, indent=2))


def _table(rows: list[dict[str, Any]], heads: dict[str, str]) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = {key: head for key, head in heads.items() if any(row.get(key) is not None for row in rows)}
    if not rows:
        typer.echo("there are no models; add one: octavo models add minilm")
        return
    table = Table(box=None, pad_edge=False)
    for head in shown.values():
        table.add_column(head)
    for row in rows:
        table.add_row(*(str(row.get(key, "")) for key in shown))
    Console().print(table)
